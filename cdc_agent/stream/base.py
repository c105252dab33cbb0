"""The contract of every stream backend: durable append, exactly once by position, ordered reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cdc_agent.errors import IdentityMismatch
from cdc_agent.events import ChangeEvent, Transaction
from cdc_agent.lsn import Lsn, Version

__all__ = ["Batch", "Position", "Stream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How much of the source the stream holds.

    ``captured_lsn``: every commit that ends at or before it is here.
    ``partial``: the last change that is here of a commit whose end is not here yet.
    """

    captured_lsn: Lsn = Lsn(0)
    partial: Version | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one read returned.

    Once a reader has dealt with ``events`` its offset is ``next_offset`` and it is complete up to ``applied_lsn``.
    ``head_offset`` is the newest offset in the stream at the time of the read.
    """

    events: Sequence[ChangeEvent] = field(default=())
    next_offset: int
    applied_lsn: Lsn
    head_offset: int


class Stream(Protocol):
    """The log. One writer (capture), many readers, each with an offset that it keeps itself.

    Where it is another machine's, everything but ``wake`` and what tells a number may raise ``StreamUnavailable``.
    """

    @property
    def damage(self) -> IdentityMismatch | None:
        """What was found damaged, or not to be the stream any more, while it was in use."""
        ...

    def append(self, transactions: Sequence[Transaction], captured_lsn: Lsn | None = None) -> Position:
        """Append whole or partial transactions; durable on return.

        Exactly once: a commit that ends at or before the position is dropped, and of a commit that is partly here
        only the rest is taken. ``captured_lsn`` moves the position further than the transactions do (an idle
        server). Blocks nothing: raises ``StreamFull`` when the configured bytes are used up.
        """
        ...

    def ledger(self) -> str:
        """The uuid of the ledger that this stream belongs to, empty before it has one."""
        ...

    def tie(self, ledger: str) -> None:
        """From now on the stream belongs to this ledger."""
        ...

    def begin_at(self, offset: int) -> None:
        """Count on from here: the readers are there already, and nobody will read what is before it. Raises
        ``StreamError`` where that is not allowed, or would be backward."""
        ...

    def check(self, after_offset: int) -> None:
        """Raise ``IdentityMismatch`` when an entry after ``after_offset`` is not as it was written."""
        ...

    def rebase(self, captured_lsn: Lsn) -> None:
        """The source's history is another one: what is here is void, and the position moves to ``captured_lsn``,
        which may be before it. Offsets go on counting; readers go on behind what is void. Nobody may append
        meanwhile."""
        ...

    def position(self) -> Position:
        """What is durable, and may be read."""
        ...

    def acknowledgeable(self) -> Lsn:
        """Everything up to here outlives a loss of power, too, so Postgres may forget it. It follows the position,
        if need be with time alone, and is never ahead of it; 0 where that is not known yet."""
        ...

    def read(self, after_offset: int, *, limit: int, wait_s: float) -> Batch:
        """Return events after ``after_offset`` in order; wait up to ``wait_s`` for the first one or for a move
        of the position. Raises ``StreamError`` when retention has removed entries after ``after_offset``."""
        ...

    def head_offset(self) -> int:
        """The newest offset, 0 for an empty stream."""
        ...

    def first_offset(self) -> int:
        """The oldest offset that is still here; ``head_offset() + 1`` for an empty stream."""
        ...

    def release(self, consumer: str, offset: int) -> None:
        """``consumer`` will never read at or before ``offset`` again; retention may remove it."""
        ...

    def consumers(self) -> list[str]:
        """Who retention waits for."""
        ...

    def released(self, consumer: str) -> int:
        """How far ``consumer`` said that it is; 0 if it never did."""
        ...

    def forget(self, consumer: str) -> None:
        """``consumer`` is no more; retention does not wait for it."""
        ...

    def size_bytes(self) -> int:
        """Bytes in use by entries."""
        ...

    def wake(self) -> None:
        """Wake every waiting reader (shutdown)."""
        ...

    def close(self) -> None: ...
