"""Signals: logical messages by which people who only have SQL ask for a resync.

``select pg_logical_emit_message(true, 'cdc_agent.signal', '{"type": "resync", "table": "public.docs"}')``

What a signal asks for is in the ledger before its transaction is in the stream, so it is heard at least once. Whoever
may connect to the database may write one. So its ``where`` is limited to the small language of ``collections[].where``,
which can call nothing, and within its own edges (no comment, no other lexical rules); and one that cannot be understood
is logged and ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import msgspec

from cdc_agent.documents.predicate import Predicate
from cdc_agent.errors import CdcAgentError, LedgerError
from cdc_agent.events import Op, Transaction
from cdc_agent.ledger.base import Resync
from cdc_agent.resync_order import ResyncOrder
from cdc_agent.source.condition import check_condition

__all__ = ["SIGNAL_PREFIX", "Signals"]

log = logging.getLogger(__name__)

SIGNAL_PREFIX = "cdc_agent.signal"
#: Longer ones are not looked into.
_MAX_BYTES = 1 << 20

Key = Annotated[list[str], msgspec.Meta(min_length=1)]


class _Signal(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    type: Literal["resync"]
    collection: str | None = None
    table: str | None = None
    keys: Annotated[list[Key], msgspec.Meta(max_length=10_000)] = []
    where: str = ""
    rewrite: bool = False
    reason: Annotated[str, msgspec.Meta(max_length=200)] = "signal"


class Signals:
    """Hears signals on the way of a transaction into the stream. ``tables`` are those of the collections."""

    def __init__(self, *, tables: Mapping[str, str], request: Callable[[Resync], object]) -> None:
        self._tables = dict(tables)
        self._request = request

    def hear(self, tx: Transaction) -> None:
        """Returns once what it asks for is recorded."""
        for change in tx.changes:
            if change.op != Op.MESSAGE or change.before is None:
                continue
            prefix, content = change.before
            if prefix == SIGNAL_PREFIX.encode() and isinstance(content, bytes):
                self._follow(content, tx)

    def _follow(self, content: bytes, tx: Transaction) -> None:
        try:
            wanted = self._understood(content)
            for resync in wanted:
                self._request(resync)
        except LedgerError:
            raise
        except (CdcAgentError, msgspec.DecodeError, UnicodeDecodeError) as exc:
            said = exc.message if isinstance(exc, CdcAgentError) else str(exc)
            log.error("signal ignored lsn=%s error=%s", tx.commit_lsn, said)
            return
        log.info("signal heard lsn=%s resyncs=%d", tx.commit_lsn, len(wanted))

    def _understood(self, content: bytes) -> list[Resync]:
        signal = msgspec.json.decode(content[:_MAX_BYTES], type=_Signal)
        if signal.where:
            Predicate(signal.where)
            # The predicate's parser passes over comments, and the server reads the text itself.
            check_condition(signal.where)
        order = ResyncOrder(
            collection=signal.collection,
            table=signal.table,
            keys=tuple(tuple(key) for key in signal.keys),
            where=signal.where,
            rewrite=signal.rewrite,
            reason=signal.reason,
        )
        return order.resyncs(self._tables)
