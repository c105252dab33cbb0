"""How the position moves with what is appended, and what of a delivery is new. Pure; the same for every backend."""

from __future__ import annotations

from collections.abc import Sequence

from cdc_agent.events import Transaction
from cdc_agent.lsn import Lsn, Version
from cdc_agent.stream.base import Position

__all__ = ["after", "fresh", "reached"]


def fresh(transactions: Sequence[Transaction], position: Position) -> tuple[list[Transaction], Position]:
    """What is not here yet, and the position with it. A redelivered commit starts before the position, a partial one is
    known by place; both may come twice in one call, when the source reconnected meanwhile."""
    new: list[Transaction] = []
    for tx in transactions:
        if tx.commit_lsn < position.captured_lsn:
            continue
        partial = position.partial
        if partial is not None and tx.commit_lsn == partial.commit_lsn:
            tx.changes = [change for change in tx.changes if change.ordinal > partial.ordinal]
        new.append(tx)
        position = after(position, tx)
    return new, position


def after(position: Position, tx: Transaction) -> Position:
    """The position once ``tx`` is appended."""
    if tx.end_lsn is not None:
        return reached(position, tx.end_lsn)
    if tx.changes:
        return Position(captured_lsn=position.captured_lsn, partial=Version(tx.commit_lsn, tx.changes[-1].ordinal))
    return position


def reached(position: Position, lsn: Lsn) -> Position:
    """Everything that ends at or before ``lsn`` is here. A commit that is partly here may lie behind it still."""
    captured, partial = max(position.captured_lsn, lsn), position.partial
    ended = partial is not None and captured > partial.commit_lsn
    return Position(captured_lsn=captured, partial=None if ended else partial)
