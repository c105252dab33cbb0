"""The ledger in one SQLite file (``ledger.file``): the statements of its contract, every commit on disk."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cdc_agent.ledger import rows
from cdc_agent.ledger.base import (
    Checkpoint,
    DeadLetter,
    Flip,
    Generation,
    Manifest,
    NewChunks,
    Resync,
    SourceIdentity,
    SourceTable,
    is_fresh,
)
from cdc_agent.ledger.file import SQL, LedgerFile
from cdc_agent.ledger.vectors import VectorCache
from cdc_agent.lsn import Lsn

__all__ = ["SqliteLedger"]

#: So few documents are looked up one by one.
_FEW = 2
#: So many of the newest generations keep the second of their writing.
_WRITINGS_KEPT = 1_000
#: Documents that one statement looks up.
_LOOKED_UP_AT_ONCE = 500
#: The generation of an intent that outlived its own: the chunk lives, and a request may still change it.
_SUSPECTED = 0


class SqliteLedger(LedgerFile):
    """See ``ledger.base.Ledger``."""

    def __init__(
        self, path: Path, *, embedding_cache_bytes: int = 256 << 20, wall_clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(path)
        self._wall_clock = wall_clock
        self._counts: dict[str, tuple[int, int]] = {}
        self._turns: dict[str, int] = {}
        with self._translated():
            for collection, document_id, *row in self._reader.execute(SQL["every_manifest"]):
                rows.check_seal(collection, document_id, row)
            self._vectors = VectorCache(self._writer, embedding_cache_bytes)

    # -- identity and configuration ---------------------------------------------------------------------------

    def identity(self) -> SourceIdentity | None:
        row = self._one(SQL["load_identity"])
        return rows.identity(row) if row else None

    def save_identity(self, identity: SourceIdentity) -> None:
        with self._transaction() as tx:
            tx.execute(SQL["save_identity"], rows.identity_row(identity))
            if identity.slot_ready:
                tx.execute(SQL["end_mendings"])

    def begin_mending(self, state: str, identity: SourceIdentity, at: float) -> None:
        with self._transaction() as tx:
            tx.execute(SQL["save_identity"], rows.identity_row(identity))
            tx.execute(SQL["begin_mending"], (state, at))

    def mending(self) -> str | None:
        row = self._one(SQL["mending"])
        return row[0] if row else None

    def mendings_since(self, state: str, at: float) -> int:
        return int(self._one(SQL["mendings_since"], (state, at))[0])

    def rebase(self, at: float) -> None:
        with self._transaction() as tx:
            for what in ("tombstones", "manifests", "checkpoints", "dead_letters", "source_tables"):
                tx.execute(SQL[f"rebase_{what}"])
            tx.execute(SQL["seal_manifests"], (None,))
            tx.execute(SQL["rebase_resyncs"], (at,))

    def source_tables(self) -> dict[str, SourceTable]:
        rows_ = self._all(SQL["load_source_tables"])
        return {name: SourceTable(name=name, oid=oid, shape=shape) for name, oid, shape in rows_}

    def save_source_table(self, table: SourceTable) -> None:
        with self._transaction() as tx:
            tx.execute(SQL["save_source_table"], (table.name, table.oid, table.shape))

    def collection_fingerprint(self, name: str) -> str | None:
        row = self._one(SQL["load_collection"], (name,))
        return row[0] if row else None

    def save_collection(self, name: str, fingerprint: str) -> None:
        with self._transaction() as tx:
            tx.execute(SQL["save_collection"], (name, fingerprint))

    # -- generations ------------------------------------------------------------------------------------------

    def generations(self) -> list[Generation]:
        return [rows.generation(row) for row in self._all(SQL["generations"])]

    def save_generation(self, generation: Generation) -> None:
        with self._transaction() as tx:
            tx.execute(SQL["save_generation"], rows.generation_row(generation))

    def switch_generation(self, collection: str, number: int, at: float) -> None:
        with self._transaction() as tx:
            tx.execute(SQL["switch_generation"], (collection, number, at))

    def drop_generation(self, generation: Generation, *, forget_agent: bool) -> None:
        physical = generation.physical
        with self._counting_anew(physical), self._transaction() as tx:
            for kind in ("manifests", "intents", "garbage", "dead_letters", "collection"):
                tx.execute(SQL[f"forget_{kind}"], (physical,))
            tx.execute(SQL["forget_resyncs"], (rows.names((physical,)),))
            self._vectors.note_orphans(tx)
            if forget_agent:
                tx.execute(SQL["forget_agent"], (generation.agent,))
            tx.execute(SQL["save_generation"], rows.generation_row(replace(generation, state="dropped")))

    def leave_collection(self, generation: Generation) -> None:
        with self._transaction() as tx:
            tx.execute(SQL["forget_collection"], (generation.physical,))
            tx.execute(SQL["forget_resyncs"], (rows.names((generation.physical,)),))

    def forget_agent(self, agent: str) -> None:
        with self._transaction() as tx:
            tx.execute(SQL["forget_agent"], (agent,))

    def register_agent(self, agent: str, offset: int) -> Checkpoint:
        with self._transaction() as tx:
            tx.execute(SQL["register_agent"], (agent, offset))
        return self.checkpoint(agent)

    # -- the write protocol -----------------------------------------------------------------------------------

    def checkpoint(self, agent: str) -> Checkpoint:
        row = self._one(SQL["load_checkpoint"], (agent,))
        return Checkpoint(offset=row[0], applied_lsn=Lsn(row[1])) if row else Checkpoint()

    def manifests(self, collection: str, document_ids: Iterable[str]) -> dict[str, Manifest]:
        found: dict[str, Manifest] = {}
        for document_id, row in self._manifest_rows(collection, list(document_ids)):
            with self._translated():
                found[document_id] = rows.manifest(collection, document_id, row)
        return found

    def _manifest_rows(self, collection: str, wanted: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        """Many in one statement: each statement hands Python's lock to another thread, which may keep it for long."""
        plain = [document_id for document_id in wanted if "\0" not in document_id] if len(wanted) > _FEW else []
        for place in range(0, len(plain), _LOOKED_UP_AT_ONCE):
            part = rows.names(plain[place : place + _LOOKED_UP_AT_ONCE])
            for document_id, *row in self._all(SQL["load_manifests"], (collection, part)):
                yield document_id, row
        # JSON in SQLite ends at a NUL.
        for document_id in wanted if not plain else (d for d in wanted if "\0" in d):
            found = self._one(SQL["load_manifest"], (collection, document_id))
            if found is not None:
                yield document_id, found

    def documents_of_relation(
        self, collection: str, relation_oid: int | None, *, after: str = "", limit: int = -1
    ) -> list[str]:
        return [row[0] for row in self._all(SQL["documents"], (collection, relation_oid, after, limit))]

    def documents_after(self, collection: str, document_id: str, limit: int) -> list[str]:
        return [row[0] for row in self._all(SQL["documents_after"], (collection, document_id, limit))]

    def unseen(self, collection: str, epoch: int, *, after: str = "", limit: int = -1) -> list[str]:
        return [row[0] for row in self._all(SQL["unseen"], (collection, epoch, after, limit))]

    def generation(self) -> int:
        return int(self._meta("generation"))

    def begin_write(
        self,
        new_chunks: Sequence[NewChunks],
        *,
        agent: str,
        touched: Sequence[tuple[str, str]] = (),
        fingerprint: str = "",
        vectors: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> tuple[int, dict[tuple[str, str], list[str]]]:
        with self._transaction() as tx:
            generation = self._next_generation(tx)
            ids = {
                (new.collection, new.document_id): [f"{new.document_id}#{generation}.{n}" for n in range(new.count)]
                for new in new_chunks
            }
            written = [(c, i) for (c, _), chunk_ids in ids.items() for i in chunk_ids]
            tx.executemany(SQL["insert_intent"], [(c, i, generation, agent) for c, i in (*written, *touched)])
            self._vectors.use(tx, [(n.collection, n.document_id, h) for n in new_chunks for h in n.hashes])
            self._vectors.remember(tx, fingerprint, vectors)
        return generation, ids

    def _next_generation(self, tx: sqlite3.Connection) -> int:
        generation = int(tx.execute(SQL["next_generation"]).fetchone()[0])
        tx.execute(SQL["note_writing"], (generation, self._wall_clock()))
        if generation % _WRITINGS_KEPT == 0:
            tx.execute(SQL["thin_writings"], (generation - _WRITINGS_KEPT,))
        return generation

    def written_at(self, chunk_id: str) -> float | None:
        row = self._one(SQL["written_at"], (int(chunk_id.rpartition("#")[2].partition(".")[0]),))
        return None if row is None else float(row[0])

    def intents(self, agent: str) -> list[tuple[str, str]]:
        return [(row[0], row[1]) for row in self._all(SQL["intents"], (agent, None))]

    def flip(self, flip: Flip) -> None:
        deltas: dict[str, tuple[int, int]] = {}
        with self._counting(deltas), self._turning(m.collection for m in flip.manifests), self._transaction() as tx:
            named: set[tuple[str, str]] = set()
            garbage: list[tuple[str, str]] = []
            for manifest in flip.manifests:
                garbage += self._replace(tx, manifest, deltas, flip)
                named.update((manifest.collection, chunk.id) for chunk in manifest.chunks)
            tx.executemany(SQL["save_manifest"], map(rows.manifest_row, flip.same))
            if tx.execute(SQL["any_dead_letter"]).fetchone() is not None:
                # Where the chunks stay as they are, nothing of what was parked came into the index.
                tx.executemany(SQL["settle"], [rows.settled(flip.agent, manifest) for manifest in flip.manifests])
            suspected = set(flip.suspected) & named
            begun = tx.execute(SQL["intents"], (flip.agent, flip.generation)).fetchall()
            abandoned = False
            for collection, chunk_id, generation in begun:
                place = (collection, chunk_id)
                if place in named:
                    suspected |= {place} if generation == _SUSPECTED else set()
                elif self._names(tx, *place):
                    suspected.add(place)
                else:
                    garbage.append(place)
                    # Its document may never come to be, and then no deletion reaches the vectors.
                    abandoned = True
            if abandoned:
                self._vectors.note_orphans(tx)
            tx.execute(SQL["clear_intents"], (flip.agent, flip.generation))
            tx.executemany(SQL["insert_intent"], [(c, i, _SUSPECTED, flip.agent) for c, i in suspected])
            tx.executemany(SQL["insert_garbage"], garbage)
            tx.executemany(SQL["park"], [rows.dead_letter_row(letter) for letter in flip.dead_letters])
            tx.executemany(SQL["save_resync"], [rows.resync_progress(r) for r in flip.resyncs])
            checkpoint = flip.checkpoint
            tx.execute(SQL["save_checkpoint"], (flip.agent, checkpoint.offset, int(checkpoint.applied_lsn)))

    def _names(self, tx: sqlite3.Connection, collection: str, chunk_id: str) -> bool:
        """Whether a manifest names the chunk (an intent to change only its metadata, of an earlier life)."""
        document_id = chunk_id.rpartition("#")[0]
        row = tx.execute(SQL["load_manifest"], (collection, document_id)).fetchone()
        chunks = rows.manifest(collection, document_id, row).chunks if row else ()
        return any(chunk.id == chunk_id for chunk in chunks)

    def _replace(
        self, tx: sqlite3.Connection, manifest: Manifest, deltas: dict[str, tuple[int, int]], flip: Flip
    ) -> list[tuple[str, str]]:
        """Save one manifest; returns the chunks that it drops."""
        place = (manifest.collection, manifest.document_id)
        row = tx.execute(SQL["load_manifest"], place).fetchone()
        old = rows.manifest(*place, row) if row else None
        tx.execute(SQL["save_manifest"], rows.manifest_row(manifest))
        documents, chunks = deltas.get(manifest.collection, (0, 0))
        was_live = old is not None and not old.deleted
        deltas[manifest.collection] = (
            documents + (not manifest.deleted) - was_live,
            chunks + len(manifest.chunks) - (len(old.chunks) if old else 0),
        )
        if manifest.deleted:
            self._vectors.forget_document(tx, place, flip.generation)
        elif old is not None and old.chunks:
            hashes = {chunk.text_hash for chunk in manifest.chunks}
            lost = {chunk.text_hash for chunk in old.chunks} - hashes
            self._vectors.lose(tx, place, lost, flip.checkpoint.offset)
        kept = {chunk.id for chunk in manifest.chunks}
        return [(manifest.collection, chunk.id) for chunk in (old.chunks if old else ()) if chunk.id not in kept]

    def garbage(self, limit: int, collections: Sequence[str] | None = None) -> list[tuple[str, str]]:
        wanted = None if collections is None else rows.names(collections)
        return [(row[0], row[1]) for row in self._all(SQL["garbage"], (wanted, limit))]

    def clear_garbage(self, items: Iterable[tuple[str, str]]) -> None:
        with self._transaction() as tx:
            tx.executemany(SQL["clear_garbage"], list(items))

    def live(self, collection: str, chunk_ids: Iterable[str]) -> set[str]:
        wanted = set(chunk_ids)
        documents = {chunk_id.rpartition("#")[0] for chunk_id in wanted}
        manifests = self.manifests(collection, documents).values()
        return {chunk.id for manifest in manifests for chunk in manifest.chunks} & wanted

    def known(self, collection: str, chunk_ids: Iterable[str]) -> set[str]:
        # Ids move from intent to manifest to garbage; asked in this order none can slip through in between.
        wanted = set(chunk_ids)
        found = wanted & {row[0] for row in self._all(SQL["intents_of"], (collection,))}
        found |= self.live(collection, wanted - found)
        return found | {i for i in wanted - found if self._one(SQL["has_garbage"], (collection, i))}

    def counts(self, collection: str) -> tuple[int, int]:
        with self._read_lock:
            if collection in self._counts:
                return self._counts[collection]
        # While nobody writes: a flip that is committed and not counted yet would be counted twice.
        with self._write_lock, self._read_lock, self._translated():
            row = self._reader.execute(SQL["counts"], (collection,)).fetchone()
            return self._counts.setdefault(collection, (row[0], row[1]))

    @contextmanager
    def _counting(self, deltas: Mapping[str, tuple[int, int]]) -> Iterator[None]:
        """Nobody looks between a commit and what it does to the counts."""
        with self._write_lock:
            yield
            with self._read_lock:
                for collection, (documents, chunks) in deltas.items():
                    if collection in self._counts:
                        before = self._counts[collection]
                        self._counts[collection] = (before[0] + documents, before[1] + chunks)

    @contextmanager
    def _counting_anew(self, collection: str) -> Iterator[None]:
        with self._write_lock, self._turning([collection]):
            yield
            with self._read_lock:
                self._counts.pop(collection, None)

    def turn(self, collection: str) -> int:
        return self._turns.get(collection, 0)

    @contextmanager
    def _turning(self, collections: Iterable[str]) -> Iterator[None]:
        """Called holding the write lock."""
        names = set(collections)
        for name in names:
            self._turns[name] = self.turn(name) + 1
        try:
            yield
        finally:
            for name in names:
                self._turns[name] += 1

    # -- vectors by content -----------------------------------------------------------------------------------

    def cached_vectors(self, fingerprint: str, hashes: Iterable[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for text_hash in hashes:
            row = self._one(SQL["cached_vector"], (fingerprint, text_hash))
            vector = rows.vector(row[0]) if row is not None else None
            if vector is not None:
                found[text_hash] = vector
        return found

    def remember_vectors(self, fingerprint: str, vectors: Mapping[bytes, bytes]) -> None:
        with self._transaction() as tx:
            self._vectors.remember(tx, fingerprint, vectors)
            self._vectors.note_orphans(tx)

    def prune_vectors(self) -> None:
        with self._transaction() as tx:
            self._vectors.prune_orphans(tx)

    def forget_collection(self, name: str, then: Resync) -> Resync:
        with self._counting_anew(name), self._transaction() as tx:
            tx.execute(SQL["empty_manifests"], (name, rows.NO_CHUNKS))
            tx.execute(SQL["seal_manifests"], (name,))
            tx.execute(SQL["forget_intents"], (name,))
            tx.execute(SQL["forget_garbage"], (name,))
            self._vectors.note_orphans(tx)
            running = [rows.resync(row) for row in tx.execute(SQL["resyncs"], (1, None)).fetchall()]
            begun = next((r.id for r in running if is_fresh(r, then)), None)
            number = begun or tx.execute(SQL["insert_resync"], rows.resync_row(then)).lastrowid
        return next(r for r in self.resyncs() if r.id == number)

    def forget_vectors(self, fingerprint: str, hashes: Iterable[bytes]) -> None:
        with self._transaction() as tx:
            self._vectors.forget(tx, fingerprint, hashes)

    # -- dead letters and resyncs -----------------------------------------------------------------------------

    def dead_letters(
        self, *, collection: str | None = None, reason: str | None = None, after: int = 0, limit: int = -1
    ) -> list[DeadLetter]:
        return [rows.dead_letter(row) for row in self._all(SQL["dead_letters"], (after, collection, reason, limit))]

    def dead_letter_counts(self) -> dict[str, int]:
        return dict(self._all(SQL["dead_letter_counts"]))

    def dead_letter(self, letter_id: int) -> DeadLetter | None:
        found = self._all(SQL["dead_letter"], (letter_id,))
        return rows.dead_letter(found[0]) if found else None

    def parked(self, collection: str, document_ids: Iterable[str]) -> set[str]:
        return {d for d in document_ids if self._one(SQL["is_parked"], (collection, d))}

    def discard_dead_letter(self, letter_id: int) -> bool:
        with self._transaction() as tx:
            return tx.execute(SQL["discard"], (letter_id,)).rowcount == 1

    def discard_dead_letters(self, *, collection: str | None = None, reason: str | None = None) -> int:
        with self._transaction() as tx:
            return tx.execute(SQL["discard_many"], (collection, reason)).rowcount

    def start_resync(self, resync: Resync) -> Resync:
        with self._transaction() as tx:
            number = tx.execute(SQL["insert_resync"], rows.resync_row(resync)).lastrowid
        return replace(resync, id=number or 0)

    def save_resync(self, resync: Resync) -> None:
        with self._transaction() as tx:
            tx.execute(SQL["save_resync"], rows.resync_progress(resync))

    def resyncs(self, *, running_only: bool = False) -> list[Resync]:
        return [rows.resync(row) for row in self._all(SQL["resyncs"], (int(running_only), None))]

    def resync(self, resync_id: int) -> Resync | None:
        row = self._one(SQL["resyncs"], (0, resync_id))
        return rows.resync(row) if row else None

    def move_resync(self, resync_id: int, state: str, *, only: Sequence[str], at: float | None = None) -> bool:
        with self._transaction() as tx:
            return tx.execute(SQL["move_resync"], (resync_id, state, at, rows.names(only))).rowcount == 1

    def prune_tombstones(self, collection: str, *, below_xid: int, up_to: Lsn) -> None:
        with self._transaction() as tx:
            tx.execute(SQL["prune_tombstones"], (collection, below_xid, int(up_to)))
