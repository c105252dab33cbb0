"""Any message becomes an event; rules say which, templates what it is about, and an id makes two of the same one."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.errors import ConfigError
from cdc_agent.events import Event
from cdc_agent.mqtt.messages import Message, Rule, Template, check_filter, event_of, likeness, matches, rule_of

NOW = dt.datetime(2026, 11, 28, 2, 0, tzinfo=dt.UTC)
MESSAGE = Message(topic="factory/7/disk", payload=b'{"id": "m-1", "used": 91}', number=5, again=False, retained=False)


def rule(filter_: str = "factory/#", key: str = "{topic[1]}", id_: str | None = None) -> Rule:
    return Rule(filter=filter_, type="disk.usage", key=Template(key), id=Template(id_) if id_ else None)


def told(message: Message = MESSAGE, by: Rule | None = None, max_bytes: int = 1000) -> Event:
    return event_of(message, by or rule(), source="factory", now=NOW, max_bytes=max_bytes)[0]


def test_a_message_becomes_an_event() -> None:
    event = told(by=rule(id_="{payload.id}"))

    assert (event.id, event.source, event.type, event.key, event.time) == ("m-1", "factory", "disk.usage", "7", NOW)
    assert event.data == {"topic": "factory/7/disk", "payload": {"id": "m-1", "used": 91}}


@pytest.mark.parametrize(
    ("payload", "content"),
    [
        (b"21.5", {"payload": 21.5}),
        (b"", {"text": ""}),
        (b"{broken", {"text": "{broken"}),
        (b"NaN", {"text": "NaN"}),
        (b"\xff\xfe", {"base64": "//4="}),
        (b"[" * 900 + b"]" * 900, {"text": "[" * 900 + "]" * 900}),
        (b"x" * 2001, {"too_large_bytes": 2001}),
    ],
)
def test_a_payload_is_never_refused(payload: bytes, content: dict[str, object]) -> None:
    event, readable = event_of(
        replace(MESSAGE, payload=payload), rule(id_="{payload.id}"), source="factory", now=NOW, max_bytes=2000
    )

    assert event.data == {"topic": "factory/7/disk", **content}
    assert readable is ("payload" in content)
    assert event.id


@given(st.binary(max_size=200), st.text(max_size=50))
def test_no_bytes_whatever_stop_us(payload: bytes, topic: str) -> None:
    event = told(replace(MESSAGE, payload=payload, topic=topic), rule(key="{payload.a.b}{topic}", id_="{payload.id}"))

    assert event.id


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{topic}", "factory/7/disk"),
        ("{topic[0]}-{topic[2]}", "factory-disk"),
        ("{topic[9]}", ""),
        ("{payload.id}", "m-1"),
        ("used {payload.used}", "used 91"),
        ("{payload.id}{payload.nothing}", ""),
        ("{payload.id.deeper}", ""),
        ("always", "always"),
    ],
)
def test_a_template_is_filled_or_empty(template: str, text: str) -> None:
    assert told(by=rule(key=template)).key == text


@pytest.mark.parametrize("template", ["{topik}", "{topic[x]}", "{payload}", "{payload.}", "{}", "{topic", "}"])
def test_a_template_that_means_nothing_is_refused(template: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Template(template)

    assert caught.value.hint


def test_a_long_key_or_id_is_shortened_and_stays_its_own() -> None:
    long = told(replace(MESSAGE, topic="a" * 5000), rule("#", key="{topic}", id_="{topic}"))

    assert len(long.id) == len(long.key) == 64
    assert long.id != told(replace(MESSAGE, topic="b" * 5000), rule("#", id_="{topic}")).id


def test_without_an_id_two_equal_messages_are_two_and_a_redelivery_is_known_by_its_likeness() -> None:
    first = told()
    second = event_of(MESSAGE, rule(), source="f", now=NOW + dt.timedelta(microseconds=1), max_bytes=1000)[0]

    assert first.id != second.id
    assert first.id.startswith(likeness(replace(MESSAGE, again=True)))
    assert likeness(replace(MESSAGE, number=6)) != likeness(MESSAGE)


def test_a_retained_message_is_one_event_as_long_as_it_says_the_same() -> None:
    retained = replace(MESSAGE, retained=True)

    assert told(retained).id == told(replace(retained, number=77)).id
    assert told(retained).id != told(replace(retained, payload=b"{}")).id


levels = st.lists(st.sampled_from(["a", "b", "+", "", "$x"]), min_size=1, max_size=4)


@given(levels, st.booleans(), st.lists(st.sampled_from(["a", "b", "", "$x"]), min_size=1, max_size=4))
def test_filters_mean_what_they_mean_to_others(wanted: list[str], rest: bool, topic: list[str]) -> None:
    filter_, name = "/".join([*wanted, *(["#"] if rest else [])]), "/".join(topic)
    if filter_ and name:
        assert matches(filter_, name) == paho.topic_matches_sub(filter_, name)


def test_the_first_filter_that_fits_counts() -> None:
    first, second = rule("factory/+/disk"), rule("factory/#")

    assert rule_of(MESSAGE, [first, second]) is first
    assert rule_of(MESSAGE, [second, first]) is second
    assert rule_of(replace(MESSAGE, topic="office/1"), [first, second]) is None


@pytest.mark.parametrize("text", ["", "a/#/b", "a+", "a/b#", "#/a"])
def test_a_filter_that_no_broker_takes_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        check_filter(text)
