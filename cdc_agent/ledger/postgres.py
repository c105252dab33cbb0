"""The ledger in a schema of a Postgres database, which several processes may share.

Who writes for one agent is one process at a time, by the stream's own rules; should two do it all the same (one was
thought to be dead), ``flip`` lets the later one change nothing that is newer. See ``postgres_flip``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
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
from cdc_agent.ledger.postgres_flip import carry_out
from cdc_agent.ledger.postgres_server import SQL, LedgerServer, Transaction, columns, read, spelt
from cdc_agent.ledger.postgres_vectors import SharedVectors
from cdc_agent.lsn import Lsn

__all__ = ["PostgresLedger"]

log = logging.getLogger(__name__)

#: So many of the newest generations keep the second of their writing.
_WRITINGS_KEPT = 1_000
#: Manifests that are sealed anew at a time.
_PAGE = 1_000


class PostgresLedger(LedgerServer):
    """See ``ledger.base.Ledger``."""

    def __init__(
        self,
        dsn: str,
        schema: str = "cdc_agent",
        *,
        embedding_cache_bytes: int = 256 << 20,
        wall_clock: Callable[[], float] = time.time,
        stall_timeout_s: float = 30.0,
        alone: bool = False,
    ) -> None:
        super().__init__(dsn, schema, stall_timeout_s=stall_timeout_s, alone=alone)
        self._wall_clock = wall_clock
        self._vectors = SharedVectors(embedding_cache_bytes)

    # -- identity and configuration ---------------------------------------------------------------------------

    def identity(self) -> SourceIdentity | None:
        row = self._one(SQL["load_identity"])
        return rows.identity(row) if row else None

    def save_identity(self, identity: SourceIdentity) -> None:
        def save(tx: Transaction) -> None:
            tx.execute(SQL["save_identity"], rows.identity_row(identity))
            if identity.slot_ready:
                tx.execute(SQL["end_mendings"])

        self._write(save)

    def begin_mending(self, state: str, identity: SourceIdentity, at: float) -> None:
        def begin(tx: Transaction) -> None:
            tx.execute(SQL["save_identity"], rows.identity_row(identity))
            tx.execute(SQL["begin_mending"], (state, at))

        self._write(begin, repeatable=False)

    def mending(self) -> str | None:
        row = self._one(SQL["mending"])
        return row[0] if row else None

    def mendings_since(self, state: str, at: float) -> int:
        return int(self._one(SQL["mendings_since"], (state, at))[0])

    def rebase(self, at: float) -> None:
        def rebase(tx: Transaction) -> None:
            tx.execute(SQL["lock_manifests"])
            for what in ("tombstones", "manifests", "checkpoints", "dead_letters", "source_tables"):
                tx.execute(SQL[f"rebase_{what}"])
            self._seal(tx, None)
            tx.execute(SQL["rebase_resyncs"], (at,))

        self._write(rebase)

    def source_tables(self) -> dict[str, SourceTable]:
        found = self._all(SQL["load_source_tables"])
        return {name: SourceTable(name=name, oid=oid, shape=shape) for name, oid, shape in found}

    def save_source_table(self, table: SourceTable) -> None:
        self._execute("save_source_table", (table.name, table.oid, table.shape))

    def collection_fingerprint(self, name: str) -> str | None:
        row = self._one(SQL["load_collection"], (name,))
        return row[0] if row else None

    def save_collection(self, name: str, fingerprint: str) -> None:
        self._execute("save_collection", (name, fingerprint))

    # -- generations ------------------------------------------------------------------------------------------

    def generations(self) -> list[Generation]:
        return [rows.generation(row) for row in self._all(SQL["generations"])]

    def save_generation(self, generation: Generation) -> None:
        self._execute("save_generation", rows.generation_row(generation))

    def switch_generation(self, collection: str, number: int, at: float) -> None:
        self._execute("switch_generation", {"collection": collection, "number": number, "at": at})

    def drop_generation(self, generation: Generation, *, forget_agent: bool) -> None:
        physical = generation.physical

        def drop(tx: Transaction) -> None:
            self._count_anew(tx, physical)
            for kind in ("manifests", "intents", "garbage", "dead_letters", "collection"):
                tx.execute(SQL[f"forget_{kind}"], (physical,))
            tx.execute(SQL["forget_resyncs"], (rows.names((physical,)),))
            self._vectors.note_orphans(tx)
            if forget_agent:
                tx.execute(SQL["forget_agent"], (generation.agent,))
            tx.execute(SQL["save_generation"], rows.generation_row(replace(generation, state="dropped")))

        self._write(drop)

    def leave_collection(self, generation: Generation) -> None:
        def leave(tx: Transaction) -> None:
            tx.execute(SQL["forget_collection"], (generation.physical,))
            tx.execute(SQL["forget_resyncs"], (rows.names((generation.physical,)),))

        self._write(leave)

    def forget_agent(self, agent: str) -> None:
        self._execute("forget_agent", (agent,))

    def register_agent(self, agent: str, offset: int) -> Checkpoint:
        self._execute("register_agent", (agent, offset))
        return self.checkpoint(agent)

    # -- the write protocol -----------------------------------------------------------------------------------

    def checkpoint(self, agent: str) -> Checkpoint:
        row = self._one(SQL["load_checkpoint"], (agent,))
        return Checkpoint(offset=row[0], applied_lsn=Lsn(row[1])) if row else Checkpoint()

    def manifests(self, collection: str, document_ids: Iterable[str]) -> dict[str, Manifest]:
        found = self._all(SQL["load_manifests"], (collection, [spelt(d) for d in document_ids]))
        with self._translated():
            return {read(d): rows.manifest(collection, read(d), row) for d, *row in found}

    def documents_of_relation(
        self, collection: str, relation_oid: int | None, *, after: str = "", limit: int = -1
    ) -> list[str]:
        return self._documents("documents", collection, after, limit, relation=relation_oid)

    def documents_after(self, collection: str, document_id: str, limit: int) -> list[str]:
        return self._documents("documents", collection, document_id, limit, relation=None)

    def unseen(self, collection: str, epoch: int, *, after: str = "", limit: int = -1) -> list[str]:
        return self._documents("unseen", collection, after, limit, epoch=epoch)

    def _documents(self, which: str, collection: str, after: str, limit: int, **more: Any) -> list[str]:
        page = {"collection": collection, "after": spelt(after), "limit": _limit(limit)}
        return [read(row[0]) for row in self._all(SQL[which], page | more)]

    def generation(self) -> int:
        return int(self._one(SQL["generation"])[0])

    def begin_write(
        self,
        new_chunks: Sequence[NewChunks],
        *,
        agent: str,
        touched: Sequence[tuple[str, str]] = (),
        fingerprint: str = "",
        vectors: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> tuple[int, dict[tuple[str, str], list[str]]]:
        # Outside of the transaction: a number that was taken is gone, whatever becomes of it.
        generation = int(self._one(SQL["next_generation"])[0])
        ids = {
            (new.collection, new.document_id): [f"{new.document_id}#{generation}.{n}" for n in range(new.count)]
            for new in new_chunks
        }
        written = [(c, i) for (c, _), chunk_ids in ids.items() for i in chunk_ids]
        intents = columns(sorted((c, spelt(i)) for c, i in {*written, *touched}), 2)

        def begin(tx: Transaction) -> None:
            with tx.pipeline():
                tx.execute(SQL["note_writing"], (generation, self._wall_clock()))
                if generation % _WRITINGS_KEPT == 0:
                    tx.execute(SQL["thin_writings"], {"last": generation - _WRITINGS_KEPT})
                tx.execute(SQL["insert_intents"], (generation, agent, *intents))
                self._vectors.use(tx, [(n.collection, n.document_id, h) for n in new_chunks for h in n.hashes])
            self._vectors.remember(tx, fingerprint, vectors)

        self._write(begin)
        return generation, ids

    def written_at(self, chunk_id: str) -> float | None:
        row = self._one(SQL["written_at"], (int(chunk_id.rpartition("#")[2].partition(".")[0]),))
        return None if row is None else float(row[0])

    def intents(self, agent: str) -> list[tuple[str, str]]:
        return [(row[0], read(row[1])) for row in self._all(SQL["intents"], (agent,))]

    def flip(self, flip: Flip) -> None:
        late = self._write(lambda tx: carry_out(tx, flip, self._vectors))
        if late:
            log.warning("late flip agent=%s offset=%d manifests_left_out=%d", flip.agent, flip.checkpoint.offset, late)

    def garbage(self, limit: int, collections: Sequence[str] | None = None) -> list[tuple[str, str]]:
        wanted = None if collections is None else list(collections)
        found = self._all(SQL["garbage"], {"collections": wanted, "limit": _limit(limit)})
        return [(row[0], read(row[1])) for row in found]

    def clear_garbage(self, items: Iterable[tuple[str, str]]) -> None:
        gone = sorted((collection, spelt(chunk_id)) for collection, chunk_id in items)
        self._execute("clear_garbage", columns(gone, 2))

    def live(self, collection: str, chunk_ids: Iterable[str]) -> set[str]:
        wanted = set(chunk_ids)
        documents = {chunk_id.rpartition("#")[0] for chunk_id in wanted}
        manifests = self.manifests(collection, documents).values()
        return {chunk.id for manifest in manifests for chunk in manifest.chunks} & wanted

    def known(self, collection: str, chunk_ids: Iterable[str]) -> set[str]:
        # Ids move from intent to manifest to garbage; asked in this order none can slip through in between.
        wanted = set(chunk_ids)
        found = self._named("intents_of", collection, wanted)
        found |= self.live(collection, wanted - found)
        return found | self._named("garbage_of", collection, wanted - found)

    def _named(self, where: str, collection: str, chunk_ids: Iterable[str]) -> set[str]:
        return {read(row[0]) for row in self._all(SQL[where], (collection, [spelt(i) for i in chunk_ids]))}

    def counts(self, collection: str) -> tuple[int, int]:
        documents, chunks = self._one(SQL["counts"], (collection,))
        return documents, chunks

    def turn(self, collection: str) -> int:
        # A flip is seen whole or not at all, and its count with it: there is no moment that would be odd.
        return 2 * int(self._one(SQL["turn"], (collection,))[0])

    def _count_anew(self, tx: Transaction, collection: str) -> None:
        """All its documents are about to go; nobody flips until the transaction is over."""
        tx.execute(SQL["lock_manifests"])
        tx.execute(SQL["begin_to_count_anew"], (collection,))
        tx.execute(SQL["count_anew"], (collection,))

    # -- vectors by content -----------------------------------------------------------------------------------

    def cached_vectors(self, fingerprint: str, hashes: Iterable[bytes]) -> dict[bytes, bytes]:
        found = self._all(SQL["cached_vectors"], (fingerprint, list(hashes)))
        whole = ((text_hash, rows.vector(sealed)) for text_hash, sealed in found)
        return {text_hash: vector for text_hash, vector in whole if vector is not None}

    def remember_vectors(self, fingerprint: str, vectors: Mapping[bytes, bytes]) -> None:
        def remember(tx: Transaction) -> None:
            self._vectors.remember(tx, fingerprint, vectors)
            self._vectors.note_orphans(tx)

        self._write(remember)

    def prune_vectors(self) -> None:
        self._write(self._vectors.prune_orphans)

    def forget_collection(self, name: str, then: Resync) -> Resync:
        def forget(tx: Transaction) -> int:
            self._count_anew(tx, name)
            tx.execute(SQL["empty_manifests"], (rows.NO_CHUNKS, name))
            self._seal(tx, name)
            tx.execute(SQL["forget_intents"], (name,))
            tx.execute(SQL["forget_garbage"], (name,))
            self._vectors.note_orphans(tx)
            running = [rows.resync(row) for row in tx.execute(SQL["resyncs"], {"running": True, "id": None}).fetchall()]
            return next((r.id for r in running if is_fresh(r, then)), 0) or _inserted(tx, then)

        number = self._write(forget)
        return next(r for r in self.resyncs() if r.id == number)

    def _seal(self, tx: Transaction, collection: str | None) -> None:
        """After a change of many rows at once, while nobody flips."""
        after = ("", "")
        while page := tx.execute(SQL["page_of_manifests"], _page(collection, after)).fetchall():
            after = (page[-1][0], page[-1][1])
            sealed = [(rows.seal(c, read(d), *row[:-1]), c, d) for c, d, *row in page]
            tx.cursor().executemany(SQL["seal_manifest"], sealed)

    def forget_vectors(self, fingerprint: str, hashes: Iterable[bytes]) -> None:
        self._write(lambda tx: self._vectors.forget(tx, fingerprint, hashes))

    # -- dead letters and resyncs -----------------------------------------------------------------------------

    def dead_letters(
        self, *, collection: str | None = None, reason: str | None = None, after: int = 0, limit: int = -1
    ) -> list[DeadLetter]:
        wanted = {"collection": collection, "reason": reason, "after": after, "limit": _limit(limit)}
        return [_letter(row) for row in self._all(SQL["dead_letters"], wanted)]

    def dead_letter_counts(self) -> dict[str, int]:
        return dict(self._all(SQL["dead_letter_counts"]))

    def dead_letter(self, letter_id: int) -> DeadLetter | None:
        row = self._one(SQL["dead_letter"], (letter_id,))
        return _letter(row) if row else None

    def parked(self, collection: str, document_ids: Iterable[str]) -> set[str]:
        return self._named("parked", collection, document_ids)

    def discard_dead_letter(self, letter_id: int) -> bool:
        return self._execute("discard", (letter_id,)) == 1

    def discard_dead_letters(self, *, collection: str | None = None, reason: str | None = None) -> int:
        return self._execute("discard_many", {"collection": collection, "reason": reason})

    def start_resync(self, resync: Resync) -> Resync:
        return replace(resync, id=self._write(lambda tx: _inserted(tx, resync), repeatable=False))

    def save_resync(self, resync: Resync) -> None:
        self._execute("save_resync", rows.resync_progress(resync))

    def resyncs(self, *, running_only: bool = False) -> list[Resync]:
        return [rows.resync(row) for row in self._all(SQL["resyncs"], {"running": running_only, "id": None})]

    def resync(self, resync_id: int) -> Resync | None:
        row = self._one(SQL["resyncs"], {"running": False, "id": resync_id})
        return rows.resync(row) if row else None

    def move_resync(self, resync_id: int, state: str, *, only: Sequence[str], at: float | None = None) -> bool:
        return self._execute("move_resync", (state, at, resync_id, list(only)), repeatable=False) == 1

    def prune_tombstones(self, collection: str, *, below_xid: int, up_to: Lsn) -> None:
        self._execute("prune_tombstones", (collection, below_xid, int(up_to)))

    def _execute(self, statement: str, params: Any, *, repeatable: bool = True) -> int:
        """One statement that writes; returns how many rows it met."""
        return self._write(lambda tx: tx.execute(SQL[statement], params).rowcount, repeatable=repeatable)


def _inserted(tx: Transaction, resync: Resync) -> int:
    row = tx.execute(SQL["insert_resync"], rows.resync_row(resync)).fetchone()
    assert row is not None
    return int(row[0])


def _letter(row: Sequence[Any]) -> DeadLetter:
    letter = rows.dead_letter(row)
    return replace(letter, document_id=read(letter.document_id), error=read(letter.error))


def _limit(limit: int) -> int | None:
    return None if limit < 0 else limit


def _page(collection: str | None, after: tuple[str, str]) -> dict[str, Any]:
    return {"collection": collection, "after_collection": after[0], "after_document": after[1], "limit": _PAGE}
