"""Collects decoded changes into transactions, and hands a large transaction over in parts so that memory stays flat.

Shared by both decoders: ordinals count every message of a transaction, also those of tables that are not ours, so a
redelivered transaction numbers its changes the same way.
"""

from __future__ import annotations

from cdc_agent.errors import DecodeError
from cdc_agent.events import Change, RawRow, Relation, Transaction
from cdc_agent.lsn import Lsn
from cdc_agent.snapshot import widen_xid

__all__ = ["Assembler"]

#: A transaction is handed over in parts of about this many bytes or changes, whichever comes first.
PART_BYTES = 1 << 20
PART_CHANGES = 5_000
_new = tuple.__new__


class Assembler:
    """The open transaction of one decoder."""

    def __init__(self) -> None:
        #: Nearest known 64-bit transaction id; the log carries only the low half.
        self.xid_reference = 0
        self._open: Transaction | None = None
        self._ordinal = 0

    @property
    def in_transaction(self) -> bool:
        return self._open is not None

    def reset(self) -> None:
        self._open = None

    def begin(self, xid: int, commit_lsn: int, commit_ts_us: int) -> None:
        if self._open is not None:
            raise DecodeError("BEGIN inside a transaction", hint="report this with the slot's LSN")
        full = widen_xid(xid, self.xid_reference)
        self.xid_reference = max(self.xid_reference, full)
        self._ordinal = 0
        self._open = Transaction(xid=full, commit_lsn=Lsn(commit_lsn), commit_ts_us=commit_ts_us, changes=[])

    def skip(self) -> None:
        """A message that is not ours still takes its place."""
        self._ordinal += 1

    def add(
        self, op: str, relation: Relation | None, before: RawRow | None, after: RawRow | None, size_bytes: int
    ) -> Transaction | None:
        """Add one change; returns a part to hand over when enough has gathered."""
        tx = self._open
        if tx is None:
            raise DecodeError("a change outside a transaction", hint="report this with the slot's LSN")
        self._ordinal += 1
        changes = tx.changes
        # What Change(...) does, without the detour: this line runs for every row.
        changes.append(_new(Change, (op, relation, self._ordinal, before, after)))
        tx.size_bytes += size_bytes
        if tx.size_bytes < PART_BYTES and len(changes) < PART_CHANGES:
            return None
        self._open = Transaction(xid=tx.xid, commit_lsn=tx.commit_lsn, commit_ts_us=tx.commit_ts_us, changes=[])
        return tx

    def commit(self, end_lsn: int) -> Transaction:
        tx = self._open
        if tx is None:
            raise DecodeError("COMMIT without BEGIN", hint="report this with the slot's LSN")
        tx.end_lsn = Lsn(end_lsn)
        self._open = None
        return tx
