"""What a handler may do: emit, command, start a saga, search, remember. Nothing of it happens unless the handler ends
well; then all of it does, together with the event counting as handled."""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import orjson

from cdc_agent.errors import AgentError
from cdc_agent.events import Event, Kind
from cdc_agent.journal.base import Entry, Query
from cdc_agent.lsn import Lsn
from cdc_agent.reactions.guard import step_of
from cdc_agent.sagas.model import START, Saga

__all__ = ["Context", "Moment", "Park", "Search", "Tools", "named"]

#: Most bytes of JSON in one event or memory.
_MAX_BYTES = 1 << 20
_UNREAD: Final = object()
#: Facts that are read at once.
_PAGE = 1_000

#: Up to where an index is to be complete: a commit, or all that has been captured when it is asked.
Moment = Lsn | Literal["captured"]

#: ``(collection, query, k, where, min_lsn)`` to hits, as ``/search`` finds them.
Search = Callable[[str, str, int, "Mapping[str, Any] | None", "Moment | None"], Sequence[Any]]


class Park(Exception):
    """Raised by a handler: this event is not to be tried again. What the exception says stands in the dead letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What contexts are made with. ``commands`` and ``sagas`` are those that somebody carries out."""

    commands: Collection[str] = frozenset()
    sagas: Collection[str] = frozenset()
    search: Search | None = None
    recall: Callable[[str, str], Any] = field(default=lambda _agent, _key: None)
    find: Callable[[Query], Sequence[Entry]] = field(default=lambda _wanted: ())
    now: Callable[[], dt.datetime] = field(default=lambda: dt.datetime.now(dt.UTC))


class Context:
    """Of one attempt to handle one event. For the thread (or task) of the handler.

    ``idempotency_key`` is the same for every attempt and for nothing else: hand it to the outside world with every
    effect there, because an attempt that failed late has had its effects. ``attempt`` counts from 1.
    """

    def __init__(self, *, agent: str, event: Event, key: str, attempt: int, tools: Tools) -> None:
        self.event = event
        self.key = key
        self.attempt = attempt
        self.agent = agent
        self.idempotency_key = f"{agent}-{named(event)}"
        self.log = logging.LoggerAdapter(
            logging.getLogger(f"cdc_agent.agent.{agent}"), {"event_id": event.id, "agent": agent}
        )
        self.emitted: list[Event] = []
        self._tools = tools
        self._memory: Any = _UNREAD
        self._before = b""

    def emit(self, type_: str, data: Any = None, *, key: str | None = None) -> Event:
        """A fact: something happened. ``key`` is what it is about; that of the event unless given.

        ``data`` is JSON: what ``orjson`` can write. Raises ``AgentError`` for what is not.
        """
        return self._add(Kind.FACT, type_, data, key)

    def command(self, type_: str, data: Any = None, *, key: str | None = None) -> Event:
        """Ask the agent that carries out such commands to act. Raises ``AgentError`` when there is none."""
        if type_ not in self._tools.commands:
            known = ", ".join(sorted(self._tools.commands)) or "none"
            raise AgentError(f"no agent carries out {type_!r}", hint=f"commands here: {known}")
        return self._add(Kind.COMMAND, type_, data, key)

    def start(self, saga: str | Saga, data: Any = None, *, key: str | None = None) -> Event:
        """Begin a saga. Raises ``AgentError`` when there is none of this name."""
        name = saga.name if isinstance(saga, Saga) else saga
        if name not in self._tools.sagas:
            known = ", ".join(sorted(self._tools.sagas)) or "none"
            raise AgentError(f"there is no saga {name!r}", hint=f"app.add(saga) makes one known; known here: {known}")
        return self._add(Kind.COMMAND, f"{START}{name}", data, key)

    def search(
        self, collection: str, query: str, *, k: int = 5, where: Mapping[str, Any] | None = None, fresh: bool = False
    ) -> Sequence[Any]:
        """The ``k`` nearest chunks, best first (``SearchHit``). With ``fresh`` only once the index knows the commit of
        the change that is being handled, or, for any other event, all that had been captured by now. Raises
        ``AgentError`` where there is nothing to search."""
        if self._tools.search is None:
            raise AgentError("there is no index to search here", hint="give one to the test: search=")
        return self._tools.search(collection, query, k, where, self._moment() if fresh else None)

    def facts(
        self, type_: str = "", *, key: str = "", correlation_id: str = "", since: dt.datetime | None = None
    ) -> Iterator[Event]:
        """What is recorded, the oldest first: facts of a type (which may end in ``*``), about a key, of one chain of
        events (``event.correlation_id or event.id``), since a moment. What this handler emits is not among it yet."""
        wanted = Query(kind=Kind.FACT, type=type_, key=key, correlation_id=correlation_id, since=since, limit=_PAGE)
        while page := self._tools.find(wanted):
            yield from (entry.event for entry in page)
            wanted = replace(wanted, after=page[-1].number)

    def now(self) -> dt.datetime:
        """The time; a test's own in a test."""
        return self._tools.now()

    @property
    def state(self) -> dict[str, Any]:
        """What this agent remembers of this key: a dict of JSON, to be changed in place. What it holds at the end of
        the handler is kept; an empty one is forgotten."""
        if self._memory is _UNREAD:
            self._memory = self._tools.recall(self.agent, self.key) or {}
            self._before = orjson.dumps(self._memory, option=orjson.OPT_SORT_KEYS)
        memory: dict[str, Any] = self._memory
        return memory

    def memory(self) -> tuple[str, Any] | None:
        """The key and what is to be remembered of it; None if that is what is remembered already."""
        if self._memory is _UNREAD:
            return None
        after = _json(self._memory, "the state", option=orjson.OPT_SORT_KEYS)
        return None if after == self._before else (self.key, self._memory or None)

    def _add(self, kind: Kind, type_: str, data: Any, key: str | None) -> Event:
        if not isinstance(type_, str) or not type_:
            raise AgentError("an event needs a type", hint='emit("payment_failed", {...})')
        cause = self.event
        about = cause.key if key is None else str(key)
        _check_text(type_, about)
        event = Event(
            id=f"{self.idempotency_key}-{len(self.emitted) + 1}",
            source=f"agent/{self.agent}",
            kind=kind,
            type=type_,
            key=about,
            time=self._tools.now(),
            # As it will be read again: whoever changes what was passed in changes nothing.
            data=orjson.loads(_json(data, f"data of {type_}")),
            correlation_id=cause.correlation_id or cause.id,
            causation_id=cause.id,
            hops=cause.hops + 1,
            trail=(*cause.trail, step_of(self.agent, cause)),
        )
        self.emitted.append(event)
        return event

    def _moment(self) -> Moment:
        if self.event.kind is not Kind.CHANGE:
            # The change that it may come of was captured before it.
            return "captured"
        return Lsn(self.event.data["source"]["lsn"])


def named(event: Event) -> str:
    """A short name of an event that nothing else has: its id may be long, and another source's, too."""
    return hashlib.blake2s(f"{event.source}\0{event.id}".encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _check_text(*texts: str) -> None:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as exc:
        raise AgentError("a type or key is no text that can be written", hint="it holds half a surrogate pair") from exc


def _json(value: Any, what: str, *, option: int = 0) -> bytes:
    try:
        written = orjson.dumps(value, option=option)
    except (TypeError, orjson.JSONEncodeError) as exc:
        raise AgentError(f"{what} is no JSON: {exc}", hint="text, numbers, true, false, null, lists and dicts") from exc
    if len(written) > _MAX_BYTES:
        raise AgentError(f"{what} has {len(written)} bytes of JSON", hint=f"at most {_MAX_BYTES}: keep it elsewhere")
    return written
