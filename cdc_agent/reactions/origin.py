"""Origin marks: what an agent writes to the database says whose it is, so that it does not wake the agent for ever.

The mark is a logical message in the same transaction, before the first row:
``pg_logical_emit_message(true, 'cdc_agent.origin', …)``. Whoever may connect can write one; it can only make an event
older than it is, so that a guard stops it sooner.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from cdc_agent.reactions.context import Context
from cdc_agent.reactions.guard import step_of

__all__ = ["ORIGIN_PREFIX", "Origin", "mark", "origin_of", "parse_origin"]

ORIGIN_PREFIX = "cdc_agent.origin"
#: Longer ones are not looked into.
_MAX_BYTES = 64 << 10
_MARK = f"select pg_logical_emit_message(true, '{ORIGIN_PREFIX}', %s)"


Word = Annotated[str, msgspec.Meta(max_length=1_000)]
Step = Annotated[str, msgspec.Meta(pattern=r"^\S{1,100}$")]


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Which event a transaction answers."""

    causation_id: Word
    correlation_id: Word
    hops: Annotated[int, msgspec.Meta(ge=0, le=1_000)]
    trail: Annotated[tuple[Step, ...], msgspec.Meta(max_length=1_000)]


def origin_of(context: Context) -> str:
    """What a transaction of this handler says about itself: the content of the message."""
    cause = context.event
    origin = Origin(
        causation_id=cause.id,
        correlation_id=cause.correlation_id or cause.id,
        hops=cause.hops + 1,
        trail=(*cause.trail, step_of(context.agent, cause)),
    )
    return msgspec.json.encode(origin).decode()


def mark(connection: Any, context: Context) -> Any:
    """Say on this connection of psycopg (or any with ``execute`` and ``%s``) whose transaction it is; call it first in
    the transaction. Of an async connection the result is to be awaited."""
    return connection.execute(_MARK, (origin_of(context),))


def parse_origin(content: bytes | None) -> Origin | None:
    """None for what says nothing that we understand."""
    if content is None:
        return None
    try:
        return msgspec.json.decode(content[:_MAX_BYTES], type=Origin)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
