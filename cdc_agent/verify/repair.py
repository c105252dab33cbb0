"""Mends what an audit found, through the stream: rows are read again and written under new ids, as a resync does it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from cdc_agent.documents.model import text_hash
from cdc_agent.ledger.base import Resync
from cdc_agent.retry import Stopping
from cdc_agent.verify.defects import Defect, Kind
from cdc_agent.verify.ends import Audited, Ends

__all__ = ["Repairer"]

log = logging.getLogger(__name__)

_REASON = "verify"
_ASK_INTERVAL_S = 0.05
#: States of a resync that is still to be waited for; how it ended, the second look at the documents tells.
_UNDER_WAY = ("running", "paused")
#: Rows that one resync reads by key.
_KEYS_AT_A_TIME = 500


class Repairer:
    def __init__(self, ends: Ends, collections: Mapping[str, Audited]) -> None:
        self._ends = ends
        self._collections = collections

    def documents(self, table: str, defects: Sequence[Defect]) -> None:
        """Write the documents of these defects anew; one whose row is gone leaves the index."""
        self._forget_vectors(defects)
        keys: dict[str, dict[tuple[str, ...], None]] = {}
        for defect in defects:
            keys.setdefault(defect.collection, {})[defect.key] = None
        for collection, wanted in keys.items():
            listed = list(wanted)
            for start in range(0, len(listed), _KEYS_AT_A_TIME):
                self._rewrite(table, collection, listed[start : start + _KEYS_AT_A_TIME])

    def records(self, collection: str, defects: Sequence[Defect]) -> None:
        """Delete records that nothing names."""
        ids = [defect.chunk_id for defect in defects]
        known = self._ends.ledger.known(collection, ids)
        unknown = [chunk_id for chunk_id in ids if chunk_id not in known]
        self._ends.in_store(lambda: self._ends.store.delete(collection, unknown))
        log.info("verify deleted records collection=%s records=%d", collection, len(unknown))

    def generation(self, audited: Audited) -> None:
        """Write a whole collection anew with the configured model, then mark it as that."""
        if self._rewrite(audited.collection.table, audited.name, ()):
            self._ends.in_store(lambda: self._ends.store.set_marker(audited.name, audited.marker))

    def _forget_vectors(self, defects: Sequence[Defect]) -> None:
        """A wrong vector may be the cache's own: its text is embedded anew."""
        for name, audited in self._collections.items():
            ids = [d.chunk_id for d in defects if d.kind is Kind.VECTOR and d.collection == name]
            if not ids:
                continue
            hashes = {text_hash(record.text) for record in self._ends.records(name, ids).values()}
            self._ends.in_ledger(
                lambda fingerprint=audited.fingerprint, hashes=hashes: self._ends.ledger.forget_vectors(  # type: ignore[misc]
                    fingerprint, hashes
                )
            )

    def _rewrite(self, table: str, collection: str, keys: Sequence[tuple[str, ...]]) -> bool:
        """Returns whether it was done to the end."""
        wanted = Resync(table=table, collections=(collection,), keys=tuple(keys), rewrite=True, reason=_REASON)
        begun = self._ends.request(wanted)
        log.info("verify repairs collection=%s rows=%s resync=%d", collection, len(keys) or "all", begun.id)
        while (found := self._ends.ledger.resync(begun.id)) is not None and found.state in _UNDER_WAY:
            if self._ends.stop.wait(_ASK_INTERVAL_S):
                raise Stopping
        return found is not None and found.state == "done"
