"""What a step may see and do. What it emits counts only if it ends well; then it does together with its result."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from zlib import crc32

import orjson

from cdc_agent.errors import AgentError
from cdc_agent.events import Event, Kind
from cdc_agent.journal.saga_book import SagaRecord

__all__ = ["Purpose", "SagaTools", "StepContext", "as_json", "said_by"]

#: What a function of a step is called for; ``stuck``: to tell somebody.
Purpose = Literal["do", "undo", "stuck"]
#: Most bytes of JSON in one event or result.
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaTools:
    """What contexts are made with. ``commands`` are those that somebody carries out (None: that is not known);
    ``search`` takes what ``StepContext.search`` takes."""

    search: Callable[..., Sequence[Any]] | None = None
    commands: Collection[str] | None = None
    now: Callable[[], dt.datetime] = field(default=lambda: dt.datetime.now(dt.UTC))


class StepContext:
    """Of one attempt to do, or to undo, one step; for the thread or task of the step.

    ``data`` is what the saga was begun with, ``results`` what its earlier steps returned, by name. ``idempotency_key``
    is the same for every attempt and for nothing else: hand it to the outside world with every effect there, because a
    step whose answer was lost is done again. ``attempt`` counts from 1. ``reason``: why the saga is being undone.
    """

    def __init__(self, record: SagaRecord, *, purpose: Purpose, tools: SagaTools) -> None:
        self.saga_id = record.id
        self.key = record.key
        self.event = record.start
        self.data = record.start.data
        # A copy: what the step does to it stays with the step.
        self.results: dict[str, Any] = orjson.loads(orjson.dumps(record.results))
        self.step = record.step
        self.idempotency_key = f"{record.id}:{record.step}" + (f":{purpose}" if purpose != "do" else "")
        self.attempt = record.attempt + 1
        self.reason = record.reason
        self.error = record.error
        #: What ``reactions.mark`` calls whoever writes to the database.
        self.agent = record.source
        self.log = logging.LoggerAdapter(
            logging.getLogger(f"cdc_agent.saga.{record.name}"), {"saga_id": record.id, "step": record.step}
        )
        self.emitted: list[Event] = []
        self._record = record
        self._tools = tools

    def emit(self, type_: str, data: Any = None, *, key: str | None = None) -> Event:
        """A fact: something happened. ``key`` is what it is about; that of the saga unless given.

        ``data`` is JSON: what ``orjson`` can write. Raises ``AgentError`` for what is not.
        """
        return self._add(Kind.FACT, type_, data, key)

    def command(self, type_: str, data: Any = None, *, key: str | None = None) -> Event:
        """Ask the agent that carries out such commands to act. Raises ``AgentError`` when there is none."""
        if self._tools.commands is not None and type_ not in self._tools.commands:
            known = ", ".join(sorted(self._tools.commands)) or "none"
            raise AgentError(f"no agent carries out {type_!r}", hint=f"commands here: {known}")
        return self._add(Kind.COMMAND, type_, data, key)

    def search(
        self, collection: str, query: str, *, k: int = 5, where: Mapping[str, Any] | None = None
    ) -> Sequence[Any]:
        """The ``k`` nearest chunks, best first. Raises ``AgentError`` where there is nothing to search."""
        if self._tools.search is None:
            raise AgentError("there is no index to search here", hint="give one to the test: search=")
        return self._tools.search(collection, query, k=k, where=where)

    def _add(self, kind: Kind, type_: str, data: Any, key: str | None) -> Event:
        if not isinstance(type_, str) or not type_:
            raise AgentError("an event needs a type", hint='emit("refund_made", {...})')
        as_json([type_, str(key)], "type or key of an event")
        event = said_by(
            self._record,
            f"e{len(self.emitted) + 1}",
            version=self._record.version,
            kind=kind,
            type_=type_,
            data=as_json(data, f"data of {type_}"),
            key=key,
            now=self._tools.now(),
        )
        self.emitted.append(event)
        return event


def said_by(
    record: SagaRecord,
    id_: str,
    *,
    version: int,
    kind: Kind,
    type_: str,
    data: Any,
    key: str | None,
    now: dt.datetime,
) -> Event:
    """An event of the transition that a saga makes from ``version`` on. The same transition makes the same ids."""
    start = record.start
    step = f"{start.type} {start.key}".encode("utf-8", "surrogatepass")
    return Event(
        id=f"{record.id}/{version:06d}/{id_}",
        source=record.source,
        kind=kind,
        type=type_,
        key=record.key if key is None else str(key),
        time=now,
        data=data,
        correlation_id=start.correlation_id or start.id,
        causation_id=start.id,
        hops=start.hops + 1,
        trail=(*start.trail, f"{record.source}:{crc32(step):08x}"),
    )


def as_json(value: Any, what: str) -> Any:
    """As it will be read again. Raises ``AgentError`` for what is no JSON, or too much of it."""
    try:
        written = orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError) as exc:
        raise AgentError(f"{what} is no JSON: {exc}", hint="text, numbers, true, false, null, lists and dicts") from exc
    if len(written) > _MAX_BYTES:
        raise AgentError(f"{what} has {len(written)} bytes of JSON", hint=f"at most {_MAX_BYTES}: keep it elsewhere")
    return orjson.loads(written)
