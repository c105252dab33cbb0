"""A flip in Postgres: one transaction of three round trips, whatever its size.

Everything that decides is read under locks that last until the commit: first the agent's checkpoint, so that flips of
one agent come one after the other, then the documents' manifests in their order. A document that nobody knew when it
was looked for, and that somebody else has inserted meanwhile, breaks the transaction, which then comes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdc_agent.errors import FlipOutdated
from cdc_agent.ledger import rows
from cdc_agent.ledger.base import Flip, Manifest
from cdc_agent.ledger.postgres_server import SQL, Transaction, columns, read, spelt
from cdc_agent.ledger.postgres_vectors import SharedVectors

__all__ = ["carry_out", "stored"]

#: The generation of an intent that outlived its own: the chunk lives, and a request may still change it.
_SUSPECTED = 0
_MANIFEST_COLUMNS = 14

Place = tuple[str, str]


def carry_out(tx: Transaction, flip: Flip, vectors: SharedVectors) -> int:
    """Returns how many manifests were left out because newer ones are known. Raises ``FlipOutdated``."""
    found = _held(tx, flip)
    work = _Work(flip=flip, found=found)
    for manifest in flip.manifests:
        work.replace(manifest)
    for manifest in flip.same:
        work.keep(manifest)
    work.settle_intents(_elsewhere(tx, work))
    _write(tx, work, vectors)
    return work.late


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What the ledger said when the locks were taken. ``intents`` are the agent's, with their generations."""

    manifests: dict[Place, Manifest]
    intents: dict[Place, int]
    any_letter: bool


@dataclass(slots=True, kw_only=True)
class _Work:
    """What a flip comes to. Pure."""

    flip: Flip
    found: _Found
    late: int = 0
    inserted: list[Manifest] = field(default_factory=list)
    #: The last one of each document.
    updated: dict[Place, Manifest] = field(default_factory=dict)
    accepted: list[Manifest] = field(default_factory=list)
    garbage: set[Place] = field(default_factory=set)
    lost: list[tuple[str, str, bytes]] = field(default_factory=list)
    gone: list[Place] = field(default_factory=list)
    deltas: dict[str, tuple[int, int]] = field(default_factory=dict)
    suspected: set[Place] = field(default_factory=set)
    abandoned: bool = False

    def replace(self, manifest: Manifest) -> None:
        if not self._takes(manifest):
            return
        place = (manifest.collection, manifest.document_id)
        old = self.found.manifests.get(place)
        self._save(manifest, old)
        self.accepted.append(manifest)
        self._count(manifest, old)
        kept = {chunk.id for chunk in manifest.chunks}
        self.garbage |= {
            (manifest.collection, chunk.id) for chunk in (old.chunks if old else ()) if chunk.id not in kept
        }
        if manifest.deleted:
            self.gone.append(place)
        elif old is not None and old.chunks:
            hashes = {chunk.text_hash for chunk in manifest.chunks}
            self.lost += [(*place, chunk.text_hash) for chunk in old.chunks if chunk.text_hash not in hashes]

    def keep(self, manifest: Manifest) -> None:
        if self._takes(manifest):
            self._save(manifest, self.found.manifests.get((manifest.collection, manifest.document_id)))

    def _takes(self, manifest: Manifest) -> bool:
        """False for what is older than what is known: only somebody who is late brings that."""
        old = self.found.manifests.get((manifest.collection, manifest.document_id))
        if old is not None and manifest.version < old.version:
            self.late += 1
            return False
        live = {chunk.id for chunk in old.chunks} if old is not None else set()
        lost = [
            c.id for c in manifest.chunks if c.id not in live and (manifest.collection, c.id) not in self.found.intents
        ]
        if lost:
            raise FlipOutdated(
                f"{manifest.document_id} was written by somebody else meanwhile: {len(lost)} of its chunks are no more",
                hint="another process works for the same agent; what was planned is planned again",
            )
        return True

    def _save(self, manifest: Manifest, old: Manifest | None) -> None:
        place = (manifest.collection, manifest.document_id)
        if old is None:
            self.inserted.append(manifest)
        else:
            self.updated[place] = manifest
        self.found.manifests[place] = manifest

    def _count(self, manifest: Manifest, old: Manifest | None) -> None:
        documents, chunks = self.deltas.get(manifest.collection, (0, 0))
        was_live = old is not None and not old.deleted
        self.deltas[manifest.collection] = (
            documents + (not manifest.deleted) - was_live,
            chunks + len(manifest.chunks) - (len(old.chunks) if old else 0),
        )

    @property
    def named(self) -> set[Place]:
        return {(manifest.collection, chunk.id) for manifest in self.accepted for chunk in manifest.chunks}

    def begun(self) -> dict[Place, int]:
        """Intents that this flip decides about."""
        return {place: g for place, g in self.found.intents.items() if g <= self.flip.generation}

    def settle_intents(self, elsewhere: set[Place]) -> None:
        """``elsewhere`` are those that manifests name which are not of this flip: only their metadata was to change."""
        named = self.named
        self.suspected = set(self.flip.suspected) & named
        for place, generation in self.begun().items():
            if place in named:
                self.suspected |= {place} if generation == _SUSPECTED else set()
            elif place in elsewhere:
                self.suspected.add(place)
            else:
                self.garbage.add(place)
                # Its document may never come to be, and then no deletion reaches the vectors.
                self.abandoned = True


def _held(tx: Transaction, flip: Flip) -> _Found:
    """Take the locks, and read what is true now."""
    places = sorted({(m.collection, spelt(m.document_id)) for m in (*flip.manifests, *flip.same)})
    with tx.pipeline():
        tx.execute(SQL["register_agent"], (flip.agent, 0))
        tx.execute(SQL["hold_checkpoint"], (flip.agent,))
        manifests = tx.execute(SQL["hold_manifests"], columns(places, 2))
        intents = tx.execute(SQL["intents"], (flip.agent,))
        letters = tx.execute(SQL["any_dead_letter"], (flip.agent,))
        return _Found(
            manifests=_manifests(manifests.fetchall()),
            intents={(collection, read(chunk)): generation for collection, chunk, generation in intents.fetchall()},
            any_letter=letters.fetchall() == [(True,)],
        )


def _manifests(found: Sequence[Sequence[Any]]) -> dict[Place, Manifest]:
    """Raises ``rows.Damaged``."""
    places = [(collection, read(document), row) for collection, document, *row in found]
    return {(collection, document): rows.manifest(collection, document, row) for collection, document, row in places}


def _elsewhere(tx: Transaction, work: _Work) -> set[Place]:
    """Which of the intents that this flip does not name a manifest names all the same."""
    unnamed = set(work.begun()) - work.named
    if not unnamed:
        return set()
    owners = {(collection, chunk_id.rpartition("#")[0]) for collection, chunk_id in unnamed}
    known = {place: found for place, found in work.found.manifests.items() if place in owners}
    if missing := sorted((collection, spelt(document)) for collection, document in owners - set(known)):
        known |= _manifests(tx.execute(SQL["hold_manifests"], columns(missing, 2)).fetchall())
    return {(m.collection, chunk.id) for m in known.values() for chunk in m.chunks} & unnamed


def _write(tx: Transaction, work: _Work, vectors: SharedVectors) -> None:
    flip, checkpoint = work.flip, work.flip.checkpoint
    vectors.forget_documents(tx, work.gone, flip.generation)
    with tx.pipeline():
        if work.inserted:
            tx.execute(SQL["insert_manifests"], columns([stored(m) for m in work.inserted], _MANIFEST_COLUMNS))
        if work.updated:
            tx.execute(SQL["update_manifests"], columns([stored(m) for m in work.updated.values()], _MANIFEST_COLUMNS))
        if work.accepted and work.found.any_letter:
            # Where the chunks stay as they are, nothing of what was parked came into the index.
            tx.execute(SQL["settle"], columns([_settled(flip.agent, m) for m in work.accepted], 5))
        vectors.lose(tx, work.lost, checkpoint.offset)
        if work.abandoned:
            vectors.note_orphans(tx)
        tx.execute(SQL["clear_intents"], (flip.agent, flip.generation))
        if work.suspected:
            tx.execute(SQL["insert_intents"], (_SUSPECTED, flip.agent, *_columns(work.suspected)))
        if work.garbage:
            tx.execute(SQL["insert_garbage"], _columns(work.garbage))
        many = tx.cursor().executemany
        many(SQL["park"], [_letter(rows.dead_letter_row(letter)) for letter in flip.dead_letters])
        many(SQL["save_resync"], [rows.resync_progress(r) for r in sorted(flip.resyncs, key=lambda r: r.id)])
        many(SQL["count"], [(name, flip.agent, *delta) for name, delta in sorted(work.deltas.items())])
        parameters = {"agent": flip.agent, "offset": checkpoint.offset, "lsn": int(checkpoint.applied_lsn)}
        tx.execute(SQL["save_checkpoint"], parameters)


def _columns(chunks: Iterable[Place]) -> list[list[str]]:
    return columns(sorted((collection, spelt(chunk_id)) for collection, chunk_id in chunks), 2)


def stored(manifest: Manifest) -> tuple[Any, ...]:
    """The row of a manifest as Postgres takes it."""
    collection, document, *row = rows.manifest_row(manifest)
    return (collection, spelt(document), *row)


def _settled(agent: str, manifest: Manifest) -> tuple[Any, ...]:
    _, collection, document, *version = rows.settled(agent, manifest)
    return (agent, collection, spelt(document), *version)


def _letter(row: Sequence[Any]) -> tuple[Any, ...]:
    agent, collection, document, table, key, lsn, ordinal, reason, error, *rest = row
    return (agent, collection, spelt(document), table, key, lsn, ordinal, reason, spelt(error), *rest)
