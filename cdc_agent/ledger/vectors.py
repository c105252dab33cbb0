"""Vectors by content inside the ledger's file: what is remembered, whose texts they are, and when one is forgotten.

A vector says nearly as much as its text. So the ledger notes whose texts it has vectors of, and a vector leaves with
the last document that ever had its text. Texts that a document merely lost stay, because people revert; when the
cache is over its bound they go first, and those in use last.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from cdc_agent import queries
from cdc_agent.ledger import rows

__all__ = ["VectorCache"]

_SQL = queries.load("cdc_agent.ledger", "schema.sql")
#: What one vector costs besides its bytes.
_OVERHEAD_BYTES = 64
#: Vectors or uses dropped at a time when the cache is over its bound.
_TRIM_ROWS = 1_000
#: In `meta`: vectors may be here whose document is gone without having been deleted by a flip.
_ORPHANS = "orphaned_vectors"


class VectorCache:
    """Every method works inside the caller's transaction. ``limit`` is in bytes."""

    def __init__(self, tx: sqlite3.Connection, limit: int) -> None:
        self._limit = limit
        self._bytes = _bytes_of(tx)

    def remember(self, tx: sqlite3.Connection, fingerprint: str, vectors: Mapping[bytes, bytes]) -> None:
        sealed = [(fingerprint, text_hash, rows.sealed_vector(data)) for text_hash, data in vectors.items()]
        for text_hash in vectors:
            self._freed(tx.execute(_SQL["vector_size"], (fingerprint, text_hash)))
        tx.executemany(_SQL["cache_vector"], sealed)
        self._bytes += sum(len(row[2]) + _OVERHEAD_BYTES for row in sealed)
        while self._bytes > self._limit and (self._trim_dropped(tx) or self._trim_oldest(tx)):
            continue

    def forget(self, tx: sqlite3.Connection, fingerprint: str, hashes: Iterable[bytes]) -> None:
        """These vectors are not to be believed: their texts will be embedded anew."""
        for text_hash in hashes:
            self._freed(tx.execute(_SQL["forget_vector"], (fingerprint, text_hash)))

    def use(self, tx: sqlite3.Connection, uses: Iterable[tuple[str, str, bytes]]) -> None:
        """``(collection, document, text hash)`` that are about to be live."""
        tx.executemany(_SQL["use_vector"], uses)

    def lose(self, tx: sqlite3.Connection, place: tuple[str, str], hashes: Iterable[bytes], offset: int) -> None:
        """The document has these texts no longer."""
        tx.executemany(_SQL["drop_use"], [(*place, text_hash, offset) for text_hash in hashes])

    def forget_document(self, tx: sqlite3.Connection, place: tuple[str, str], generation: int) -> None:
        """The document is deleted by a flip, and with it goes every vector that only it used.

        If it is being written again already, its new texts are noted beside its old ones: then none goes before the
        next look for orphans.
        """
        if generation and tx.execute(_SQL["begun_later"], (*place, generation)).fetchone() is not None:
            self.note_orphans(tx)
            return
        for (text_hash,) in tx.execute(_SQL["forget_uses"], place).fetchall():
            self._freed(tx.execute(_SQL["forget_unused"], (text_hash,)))

    def note_orphans(self, tx: sqlite3.Connection) -> None:
        """From now on there may be vectors that no deletion will reach."""
        tx.execute(_SQL["note"], (_ORPHANS, "1"))

    def prune_orphans(self, tx: sqlite3.Connection) -> None:
        """Forget what belongs to no document that lives or is being written, if there may be any."""
        if tx.execute(_SQL["meta"], (_ORPHANS,)).fetchone() is None:
            return
        tx.execute(_SQL["forget_uses_of_gone"])
        tx.execute(_SQL["forget_all_unused"])
        if tx.execute(_SQL["any_use_of_gone"]).fetchone() is None:
            tx.execute(_SQL["forget_note"], (_ORPHANS,))
        self._bytes = _bytes_of(tx)

    def _trim_dropped(self, tx: sqlite3.Connection) -> bool:
        hashes = tx.execute(_SQL["trim_uses"], (_TRIM_ROWS,)).fetchall()
        for row in set(hashes):
            self._freed(tx.execute(_SQL["trim_dropped"], row))
        return bool(hashes)

    def _trim_oldest(self, tx: sqlite3.Connection) -> bool:
        return self._freed(tx.execute(_SQL["trim_cache"], (_TRIM_ROWS,)))

    def _freed(self, gone: sqlite3.Cursor) -> bool:
        sizes = [size for (size,) in gone.fetchall()]
        self._bytes -= sum(sizes) + _OVERHEAD_BYTES * len(sizes)
        return bool(sizes)


def _bytes_of(tx: sqlite3.Connection) -> int:
    return int(tx.execute(_SQL["cache_bytes"]).fetchone()[0])
