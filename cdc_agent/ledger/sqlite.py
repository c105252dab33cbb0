"""The ledger in one SQLite file: one writing connection, one reading connection, every commit on disk.

Searches read through the second connection, so they never wait for a writer's sync.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cdc_agent import queries
from cdc_agent.errors import LedgerError, LedgerFull
from cdc_agent.ledger import rows
from cdc_agent.ledger.base import (
    Checkpoint,
    DeadLetter,
    Flip,
    Manifest,
    NewChunks,
    Resync,
    SourceIdentity,
    SourceTable,
)
from cdc_agent.lsn import Lsn
from cdc_agent.sqlite_file import open_file

__all__ = ["SqliteLedger"]

_SQL = queries.load("cdc_agent.ledger", "schema.sql")
_VERSION = "1"
#: Vectors dropped from the cache at a time when it is over its bound.
_CACHE_TRIM_ROWS = 1_000
#: The generation of an intent that outlived its own: the chunk lives, and a request may still change it.
_SUSPECTED = 0


class SqliteLedger:
    """See ``ledger.base.Ledger``."""

    def __init__(self, path: Path, *, embedding_cache_bytes: int = 256 << 20) -> None:
        self._cache_limit = embedding_cache_bytes
        self._writer = open_file(path, LedgerError)
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._counts: dict[str, tuple[int, int]] = {}
        with self._translated():
            self._writer.executescript(_SQL["schema"])
        self._reader = open_file(path, LedgerError)
        self._uuid = self._meta("uuid")
        if self._meta("schema_version") != _VERSION:
            raise LedgerError(
                f"{path} has schema {self._meta('schema_version')}", hint="it needs another cdc-agent version"
            )
        self._cache_bytes: int = self._one(_SQL["cache_bytes"])[0]

    @property
    def uuid(self) -> str:
        return self._uuid

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()

    # -- identity and configuration ---------------------------------------------------------------------------

    def identity(self) -> SourceIdentity | None:
        row = self._one(_SQL["load_identity"])
        return rows.identity(row) if row else None

    def save_identity(self, identity: SourceIdentity) -> None:
        with self._transaction() as tx:
            tx.execute(_SQL["save_identity"], rows.identity_row(identity))

    def source_tables(self) -> dict[str, SourceTable]:
        rows_ = self._all(_SQL["load_source_tables"])
        return {name: SourceTable(name=name, oid=oid, shape=shape) for name, oid, shape in rows_}

    def save_source_table(self, table: SourceTable) -> None:
        with self._transaction() as tx:
            tx.execute(_SQL["save_source_table"], (table.name, table.oid, table.shape))

    def collection_fingerprint(self, name: str) -> str | None:
        row = self._one(_SQL["load_collection"], (name,))
        return row[0] if row else None

    def save_collection(self, name: str, fingerprint: str) -> None:
        with self._transaction() as tx:
            tx.execute(_SQL["save_collection"], (name, fingerprint))

    # -- the write protocol -----------------------------------------------------------------------------------

    def checkpoint(self, agent: str) -> Checkpoint:
        row = self._one(_SQL["load_checkpoint"], (agent,))
        return Checkpoint(offset=row[0], applied_lsn=Lsn(row[1])) if row else Checkpoint()

    def manifests(self, collection: str, document_ids: Iterable[str]) -> dict[str, Manifest]:
        found: dict[str, Manifest] = {}
        for document_id in document_ids:
            row = self._one(_SQL["load_manifest"], (collection, document_id))
            if row is not None:
                found[document_id] = rows.manifest(collection, document_id, row)
        return found

    def documents_of_relation(self, collection: str, relation_oid: int | None) -> list[str]:
        return [row[0] for row in self._all(_SQL["documents"], (collection, relation_oid))]

    def unseen(self, collection: str, epoch: int) -> list[Manifest]:
        ids = [row[0] for row in self._all(_SQL["unseen"], (collection, epoch))]
        return list(self.manifests(collection, ids).values())

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
            generation = tx.execute(_SQL["next_generation"]).fetchone()[0]
            ids = {
                (new.collection, new.document_id): [f"{new.document_id}#{generation}.{n}" for n in range(new.count)]
                for new in new_chunks
            }
            written = [(c, i) for (c, _), chunk_ids in ids.items() for i in chunk_ids]
            tx.executemany(_SQL["insert_intent"], [(c, i, generation, agent) for c, i in (*written, *touched)])
            self._remember(tx, fingerprint, vectors)
        return generation, ids

    def intents(self, agent: str) -> list[tuple[str, str]]:
        return [(row[0], row[1]) for row in self._all(_SQL["intents"], (agent, None))]

    def flip(self, flip: Flip) -> None:
        deltas: dict[str, tuple[int, int]] = {}
        with self._transaction() as tx:
            named: set[tuple[str, str]] = set()
            garbage: list[tuple[str, str]] = []
            for manifest in flip.manifests:
                garbage += self._replace(tx, manifest, deltas)
                named.update((manifest.collection, chunk.id) for chunk in manifest.chunks)
                tx.execute(_SQL["settle"], rows.settled(flip.agent, manifest))
            suspected = set(flip.suspected) & named
            begun = tx.execute(_SQL["intents"], (flip.agent, flip.generation)).fetchall()
            for collection, chunk_id, generation in begun:
                place = (collection, chunk_id)
                if place in named:
                    suspected |= {place} if generation == _SUSPECTED else set()
                elif self._names(tx, *place):
                    suspected.add(place)
                else:
                    garbage.append(place)
            tx.execute(_SQL["clear_intents"], (flip.agent, flip.generation))
            tx.executemany(_SQL["insert_intent"], [(c, i, _SUSPECTED, flip.agent) for c, i in suspected])
            tx.executemany(_SQL["insert_garbage"], garbage)
            tx.executemany(_SQL["park"], [rows.dead_letter_row(letter) for letter in flip.dead_letters])
            tx.executemany(_SQL["save_resync"], [rows.resync_progress(r) for r in flip.resyncs])
            checkpoint = flip.checkpoint
            tx.execute(_SQL["save_checkpoint"], (flip.agent, checkpoint.offset, int(checkpoint.applied_lsn)))
        self._count(deltas)

    def _names(self, tx: sqlite3.Connection, collection: str, chunk_id: str) -> bool:
        """Whether a manifest names the chunk (an intent to change only its metadata, of an earlier life)."""
        document_id = chunk_id.rpartition("#")[0]
        row = tx.execute(_SQL["load_manifest"], (collection, document_id)).fetchone()
        chunks = rows.manifest(collection, document_id, row).chunks if row else ()
        return any(chunk.id == chunk_id for chunk in chunks)

    def _replace(
        self, tx: sqlite3.Connection, manifest: Manifest, deltas: dict[str, tuple[int, int]]
    ) -> list[tuple[str, str]]:
        """Save one manifest; returns the chunks that it drops."""
        place = (manifest.collection, manifest.document_id)
        row = tx.execute(_SQL["load_manifest"], place).fetchone()
        old = rows.manifest(*place, row) if row else None
        tx.execute(_SQL["save_manifest"], rows.manifest_row(manifest))
        documents, chunks = deltas.get(manifest.collection, (0, 0))
        was_live = old is not None and not old.deleted
        deltas[manifest.collection] = (
            documents + (not manifest.deleted) - was_live,
            chunks + len(manifest.chunks) - (len(old.chunks) if old else 0),
        )
        kept = {chunk.id for chunk in manifest.chunks}
        return [(manifest.collection, chunk.id) for chunk in (old.chunks if old else ()) if chunk.id not in kept]

    def garbage(self, limit: int) -> list[tuple[str, str]]:
        return [(row[0], row[1]) for row in self._all(_SQL["garbage"], (limit,))]

    def clear_garbage(self, items: Iterable[tuple[str, str]]) -> None:
        with self._transaction() as tx:
            tx.executemany(_SQL["clear_garbage"], list(items))

    def live(self, collection: str, chunk_ids: Iterable[str]) -> set[str]:
        wanted = set(chunk_ids)
        documents = {chunk_id.rpartition("#")[0] for chunk_id in wanted}
        manifests = self.manifests(collection, documents).values()
        return {chunk.id for manifest in manifests for chunk in manifest.chunks} & wanted

    def known(self, collection: str, chunk_ids: Iterable[str]) -> set[str]:
        # Ids move from intent to manifest to garbage; asked in this order none can slip through in between.
        wanted = set(chunk_ids)
        found = {i for i in wanted if self._one(_SQL["has_intent"], (collection, i))}
        found |= self.live(collection, wanted - found)
        return found | {i for i in wanted - found if self._one(_SQL["has_garbage"], (collection, i))}

    def counts(self, collection: str) -> tuple[int, int]:
        with self._read_lock, self._translated():
            if collection not in self._counts:
                row = self._reader.execute(_SQL["counts"], (collection,)).fetchone()
                self._counts[collection] = (row[0], row[1])
            return self._counts[collection]

    def _count(self, deltas: Mapping[str, tuple[int, int]]) -> None:
        with self._read_lock:
            for collection, (documents, chunks) in deltas.items():
                if collection in self._counts:
                    before = self._counts[collection]
                    self._counts[collection] = (before[0] + documents, before[1] + chunks)

    # -- vectors by content -----------------------------------------------------------------------------------

    def cached_vectors(self, fingerprint: str, hashes: Iterable[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for text_hash in hashes:
            row = self._one(_SQL["cached_vector"], (fingerprint, text_hash))
            if row is not None:
                found[text_hash] = row[0]
        return found

    def _remember(self, tx: sqlite3.Connection, fingerprint: str, vectors: Mapping[bytes, bytes]) -> None:
        tx.executemany(_SQL["cache_vector"], [(fingerprint, text_hash, v) for text_hash, v in vectors.items()])
        self._cache_bytes += sum(len(v) + 64 for v in vectors.values())
        while self._cache_bytes > self._cache_limit and tx.execute(_SQL["trim_cache"], (_CACHE_TRIM_ROWS,)).rowcount:
            self._cache_bytes = tx.execute(_SQL["cache_bytes"]).fetchone()[0]

    # -- dead letters and resyncs -----------------------------------------------------------------------------

    def dead_letters(self) -> list[DeadLetter]:
        return [rows.dead_letter(row) for row in self._all(_SQL["dead_letters"], (None,))]

    def dead_letter(self, letter_id: int) -> DeadLetter | None:
        found = self._all(_SQL["dead_letters"], (letter_id,))
        return rows.dead_letter(found[0]) if found else None

    def discard_dead_letter(self, letter_id: int) -> bool:
        with self._transaction() as tx:
            return tx.execute(_SQL["discard"], (letter_id,)).rowcount == 1

    def start_resync(self, resync: Resync) -> Resync:
        with self._transaction() as tx:
            number = tx.execute(_SQL["insert_resync"], rows.resync_row(resync)).lastrowid
        return next(r for r in self.resyncs() if r.id == number)

    def save_resync(self, resync: Resync) -> None:
        with self._transaction() as tx:
            tx.execute(_SQL["save_resync"], rows.resync_progress(resync))

    def resyncs(self, *, running_only: bool = False) -> list[Resync]:
        return [rows.resync(row) for row in self._all(_SQL["resyncs"], (int(running_only),))]

    def prune_tombstones(self, collection: str, *, below_xid: int, up_to: Lsn) -> None:
        with self._transaction() as tx:
            tx.execute(_SQL["prune_tombstones"], (collection, below_xid, int(up_to)))

    # -- connections ------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock, self._translated():
            self._writer.execute("begin immediate")
            try:
                yield self._writer
                self._writer.execute("commit")
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("rollback")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise LedgerFull(
                    "the disk under the ledger is full", hint="free space; work goes on by itself"
                ) from exc
            raise LedgerError(f"the ledger failed: {exc}", hint="check the file and its disk") from exc

    def _one(self, statement: str, params: Sequence[Any] = ()) -> Any:
        with self._read_lock, self._translated():
            return self._reader.execute(statement, params).fetchone()

    def _all(self, statement: str, params: Sequence[Any] = ()) -> list[Any]:
        with self._read_lock, self._translated():
            return self._reader.execute(statement, params).fetchall()

    def _meta(self, key: str) -> str:
        return str(self._one(_SQL["meta"], (key,))[0])
