"""A message becomes an event: which rule takes it, what it is about, and what its id is. Pure.

A message is never refused: a payload that is no JSON is kept as text, or as base64 where it is none. Its id is
what the rule finds in it, so that a message that a device sends twice is one event. Without such a rule the id is
made up, and begins with what a redelivered message has in common with itself: see ``likeness``.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from cdc_agent.errors import ConfigError
from cdc_agent.events import Event

__all__ = ["Message", "Rule", "check_filter", "Template", "event_of", "likeness", "matches", "rule_of"]

_FIELD = re.compile(r"\{([^{}]*)\}")
_KNOWN = re.compile(r"topic|topic\[(?P<level>\d{1,3})\]|payload(?P<path>(?:\.[^.{}\[\]]+)+)")
#: Longer ids, and keys, become their hash.
_LONGEST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One delivery. ``number`` is the broker's packet identifier, 0 for what it does not want acknowledged; ``again``:
    it may have been delivered before; ``retained``: it is what the topic said last, and not said just now."""

    topic: str
    payload: bytes
    number: int
    again: bool
    retained: bool


class Template:
    """Text with ``{topic}``, ``{topic[1]}`` or ``{payload.a.b}`` in it. Raises ``ConfigError`` for anything else."""

    def __init__(self, text: str) -> None:
        self._text = text
        for name in _FIELD.findall(text):
            if not _KNOWN.fullmatch(name):
                raise ConfigError(
                    f"{text!r} has {{{name}}}, which is nothing of a message",
                    hint="write {topic}, {topic[0]} for one of its levels, or {payload.device.id}",
                )
        if set(_FIELD.sub("", text)) & set("{}"):
            raise ConfigError(f"{text!r} has a brace too many", hint="braces stand around a field, as in {topic[0]}")

    def render(self, message: Message, payload: Any) -> str:
        """Empty when one of the fields is not in the message."""
        values = {name: _value(name, message, payload) for name in _FIELD.findall(self._text)}
        if not all(values.values()):
            return ""
        return _FIELD.sub(lambda field: values[field[1]], self._text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What messages of a topic filter are. ``id`` None: nothing in them names them."""

    filter: str
    type: str
    key: Template
    id: Template | None


def check_filter(text: str) -> None:
    """Raises ``ConfigError`` for what no broker takes."""
    levels = text.split("/")
    wild = [level for level in levels if set(level) & set("+#") and level not in ("+", "#")]
    if not text or wild or "#" in levels[:-1] or "\0" in text or len(text.encode()) > 65_535:
        raise ConfigError(
            f"{text!r} is no topic filter", hint="+ stands for one whole level, # for all that are left, at the end"
        )


def matches(filter_: str, topic: str) -> bool:
    """Whether a topic is one of the filter's. Topics that begin with $ are the broker's own."""
    wanted, levels = filter_.split("/"), topic.split("/")
    if topic.startswith("$") and not filter_.startswith(levels[0]):
        return False
    for place, level in enumerate(wanted):
        if level == "#":
            return True
        if place >= len(levels) or level not in ("+", levels[place]):
            return False
    return len(wanted) == len(levels)


def rule_of(message: Message, rules: Sequence[Rule]) -> Rule | None:
    """The first rule that fits. None for what a session is still subscribed to that the configuration has forgotten."""
    return next((rule for rule in rules if matches(rule.filter, message.topic)), None)


def event_of(message: Message, rule: Rule, *, source: str, now: dt.datetime, max_bytes: int) -> tuple[Event, bool]:
    """The event, and whether its payload could be read."""
    content = _content(message.payload, max_bytes)
    payload = content.get("payload")
    named = rule.id.render(message, payload) if rule.id is not None else ""
    event = Event(
        id=_short(named) or _made_up(message, now),
        source=source,
        type=rule.type,
        key=_short(rule.key.render(message, payload)),
        time=now,
        data={"topic": message.topic, **content},
    )
    return event, "payload" in content


def likeness(message: Message) -> str:
    """What a message and its redelivery share, and hardly anything else that is told at about the same time."""
    raw = b"\0".join((message.topic.encode("utf-8", "replace"), str(message.number).encode(), message.payload))
    return hashlib.sha256(raw).hexdigest()[:24]


def _made_up(message: Message, now: dt.datetime) -> str:
    if message.retained:
        # Told at each subscription: the same state is the same event.
        return f"retained-{likeness(message_without_number(message))}"
    return f"{likeness(message)}-{int(now.timestamp() * 1_000_000):x}"


def message_without_number(message: Message) -> Message:
    return Message(topic=message.topic, payload=message.payload, number=0, again=False, retained=True)


def _content(raw: bytes, max_bytes: int) -> dict[str, Any]:
    if len(raw) > max_bytes:
        return {"too_large_bytes": len(raw)}
    try:
        payload = orjson.loads(raw)
        # What can be read can be nested too deep to be written.
        orjson.dumps(payload)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass
    else:
        return {"payload": payload}
    try:
        return {"text": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}


def _value(name: str, message: Message, payload: Any) -> str:
    known = _KNOWN.fullmatch(name)
    assert known is not None
    if known["level"] is not None:
        levels, place = message.topic.split("/"), int(known["level"])
        return levels[place] if place < len(levels) else ""
    if known["path"] is None:
        return message.topic
    found = payload
    for part in known["path"][1:].split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        return found
    return "" if found is None or isinstance(found, list | dict) else orjson.dumps(found).decode()


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
