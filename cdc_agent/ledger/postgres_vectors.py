"""Vectors by content inside the ledger's schema: see ``ledger.vectors``, whose rules these are.

Several processes share the cache. Each counts what it adds and looks at the whole again after a sixteenth of the bound,
so the cache exceeds it by at most that much for each of the other processes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from cdc_agent.ledger import rows
from cdc_agent.ledger.postgres_server import SQL, Transaction, columns, spelt

__all__ = ["SharedVectors"]

#: What one vector costs besides its bytes.
_OVERHEAD_BYTES = 64
#: Vectors or uses dropped at a time when the cache is over its bound.
_TRIM_ROWS = 1_000
#: In `meta`: vectors may be here whose document is gone without having been deleted by a flip.
_ORPHANS = "orphaned_vectors"


class SharedVectors:
    """Every method works inside the caller's transaction. ``limit`` is in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes: int | None = None
        self._added = 0

    def remember(self, tx: Transaction, fingerprint: str, vectors: Mapping[bytes, bytes]) -> None:
        if not vectors:
            return
        # In one order, so that two who remember the same texts never wait for each other.
        sealed = [(text_hash, rows.sealed_vector(data)) for text_hash, data in sorted(vectors.items())]
        tx.execute(SQL["cache_vectors"], (fingerprint, *columns(sealed, 2)))
        self._added += sum(len(data) + _OVERHEAD_BYTES for _, data in sealed)
        if self._bytes is None or self._added > self._limit // 16:
            self._bytes, self._added = _bytes_of(tx), 0
        if self._bytes + self._added > self._limit:
            self._trim(tx)

    def _trim(self, tx: Transaction) -> None:
        self._bytes, self._added = _bytes_of(tx), 0
        while self._bytes > self._limit:
            freed = self._trim_dropped(tx) or self._trim_oldest(tx)
            if not freed:
                break
            self._bytes -= freed

    def forget(self, tx: Transaction, fingerprint: str, hashes: Iterable[bytes]) -> None:
        """These vectors are not to be believed: their texts will be embedded anew."""
        tx.execute(SQL["forget_vectors"], (fingerprint, list(hashes)))

    def use(self, tx: Transaction, uses: Iterable[tuple[str, str, bytes]]) -> None:
        """``(collection, document, text hash)`` that are about to be live."""
        if used := sorted({(c, spelt(d), h) for c, d, h in uses}):
            tx.execute(SQL["use_vectors"], columns(used, 3))

    def lose(self, tx: Transaction, lost: Iterable[tuple[str, str, bytes]], offset: int) -> None:
        """The documents have these texts no longer."""
        if places := sorted({(c, spelt(d), h) for c, d, h in lost}):
            tx.execute(SQL["drop_uses"], (offset, *columns(places, 3)))

    def forget_documents(self, tx: Transaction, places: Collection[tuple[str, str]], generation: int) -> None:
        """The documents are deleted by a flip, and with them goes every vector that only they used.

        If one is being written again already, its new texts are noted beside its old ones: then none goes before the
        next look for orphans.
        """
        if not places:
            return
        gone = {(collection, spelt(document)) for collection, document in places}
        if generation:
            asked = columns(sorted(gone), 2)
            begun = set(tx.execute(SQL["begun_later"], (*asked, generation)).fetchall())
            if begun:
                self.note_orphans(tx)
            gone -= begun
        hashes = {h for (h,) in tx.execute(SQL["forget_uses"], columns(sorted(gone), 2)).fetchall()}
        if hashes:
            tx.execute(SQL["hold_vectors"], (sorted(hashes),))
            tx.execute(SQL["forget_unused"], (sorted(hashes),))

    def note_orphans(self, tx: Transaction) -> None:
        """From now on there may be vectors that no deletion will reach."""
        tx.execute(SQL["note"], (_ORPHANS, "1"))

    def prune_orphans(self, tx: Transaction) -> None:
        """Forget what belongs to no document that lives or is being written, if there may be any."""
        if tx.execute(SQL["meta"], (_ORPHANS,)).fetchone() is None:
            return
        tx.execute(SQL["forget_uses_of_gone"])
        tx.execute(SQL["forget_all_unused"])
        if tx.execute(SQL["any_use_of_gone"]).fetchone() is None:
            tx.execute(SQL["forget_note"], (_ORPHANS,))
        self._bytes = None

    def _trim_dropped(self, tx: Transaction) -> int:
        """0 when there is none left; else more than that, though the vectors may be in use elsewhere."""
        hashes = {h for (h,) in tx.execute(SQL["trim_uses"], (_TRIM_ROWS,)).fetchall()}
        if not hashes:
            return 0
        return max(1, _freed(tx.execute(SQL["trim_dropped"], (sorted(hashes),)).fetchall()))

    def _trim_oldest(self, tx: Transaction) -> int:
        return _freed(tx.execute(SQL["trim_cache"], (_TRIM_ROWS,)).fetchall())


def _freed(sizes: Sequence[tuple[int]]) -> int:
    return sum(size + _OVERHEAD_BYTES for (size,) in sizes)


def _bytes_of(tx: Transaction) -> int:
    row = tx.execute(SQL["cache_bytes"]).fetchone()
    return int(row[0]) if row else 0
