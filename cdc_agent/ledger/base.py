"""The contract of the ledger, and the facts it keeps.

The ledger is the truth about the index: a chunk is live if and only if a manifest names it. The vector store is a
projection that can always be rebuilt from the ledger and the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from cdc_agent.lsn import Lsn, Version

__all__ = [
    "Checkpoint",
    "ChunkRef",
    "DeadLetter",
    "Flip",
    "Generation",
    "Ledger",
    "Manifest",
    "NewChunks",
    "Resync",
    "SourceIdentity",
    "SourceTable",
    "is_fresh",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceIdentity:
    """Which database and slot this ledger belongs to. ``slot_ready`` is False while the slot is being created.

    ``publication_oid`` is that of the publication which the slot is read with (0: the plugin needs none).
    """

    system_id: str
    timeline: int
    database_oid: int
    slot_name: str
    plugin: str
    slot_ready: bool
    publication_oid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """A watched table as it was when its rows were last known to be complete in the stream.

    ``name`` is the configured one. ``shape`` is JSON of what the catalog said (``source.shape``); the ledger only
    keeps it.
    """

    name: str
    oid: int
    shape: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One build of a configured collection, with all that is needed to keep it without the configuration.

    ``physical`` is its name in manifests and for the store, ``agent`` the consumer of the stream that keeps it,
    ``spec`` JSON that only the daemon reads. ``state``: ``building``, ``live`` (answers searches), ``retired`` (was
    live, kept fresh), ``dropping`` (is being removed) or ``dropped`` (is gone; its number is never used again).
    """

    collection: str
    number: int
    physical: str
    agent: str
    fingerprint: str
    spec: str
    state: str
    created_at: float
    switched_at: float | None = None


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """One live chunk: its id in the store and the hash of its text."""

    id: str
    text_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the index holds of one document.

    ``xid`` is the 64-bit transaction of the last change (0: visible to everybody). ``snapshot`` is set when the
    content was read from the table instead of the log; changes visible in it are already included. ``epoch`` is the
    last resync that saw the document. A deleted document stays as a tombstone so that an older read cannot bring it
    back. ``column_hashes`` are 8 bytes for each text column (see ``planning``): they tell whether a text can have
    changed when Postgres sent only some of its columns.
    """

    collection: str
    document_id: str
    version: Version
    xid: int
    relation_oid: int
    chunks: tuple[ChunkRef, ...] = ()
    column_hashes: bytes = b""
    metadata_hash: bytes = b""
    snapshot: str | None = None
    epoch: int = 0
    deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How far an agent is: its stream offset, and the commit up to which its work is complete."""

    offset: int = 0
    applied_lsn: Lsn = Lsn(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One document version that could not be indexed. Carries no cell values besides the key."""

    id: int = 0
    agent: str
    collection: str
    document_id: str
    table: str
    key: tuple[str, ...]
    version: Version
    reason: str
    error: str
    attempts: int
    parked_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """One watermarked re-reading of a table (or of some keys), and how far it is.

    ``predicate`` is SQL that narrows it to some rows. With ``rewrite`` every chunk is written anew, also where nothing
    changed. ``state``: ``running``, ``paused``, ``done``, ``failed`` (``error`` says why) or ``cancelled``.
    ``last_key`` is the key of the last row applied to the index. ``snapshot`` is that of its beginning: documents that
    are visible in it and never seen are gone from the source.
    """

    id: int = 0
    table: str
    collections: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...] = ()
    predicate: str = ""
    rewrite: bool = False
    reason: str = ""
    state: str = "running"
    snapshot: str | None = None
    last_key: tuple[str, ...] | None = None
    rows_done: int = 0
    rows_estimated: int = 0
    started_at: float = 0.0
    finished_at: float | None = None
    error: str = ""

    @property
    def open(self) -> bool:
        """Whether it may still go on."""
        return self.state in ("running", "paused")


def is_fresh(running: Resync, wanted: Resync) -> bool:
    """Whether a running resync reads all that is wanted and has not read any of it yet."""
    whole = not (running.keys or running.predicate) and set(wanted.collections) <= set(running.collections)
    return whole and running.table == wanted.table and running.snapshot is None and running.last_key is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """One commit point: everything in it becomes true at once.

    ``manifests`` replace what was there, ``same`` as well, but those name the chunks that the documents have already;
    chunk ids that no manifest names any more become garbage, and so do intents of the agent up to ``generation`` that
    none names. What was begun later is still being written, and vectors that only it uses stay. A dead letter of a
    document is settled by one of ``manifests`` that moves past it, never by one of ``same``: a parked change that comes
    by once more is no news. ``resyncs`` carry progress.
    ``suspected`` are chunks that a request which failed may still change: like those of writes in place that were
    never flipped they stay intents while they live.
    """

    agent: str
    checkpoint: Checkpoint
    generation: int
    manifests: Sequence[Manifest] = ()
    same: Sequence[Manifest] = ()
    dead_letters: Sequence[DeadLetter] = ()
    resyncs: Sequence[Resync] = ()
    suspected: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChunks:
    """Chunks that one document needs new ids for. ``hashes`` name their texts: their vectors stay while it lives."""

    collection: str
    document_id: str
    count: int
    hashes: Sequence[bytes] = ()


class Ledger(Protocol):
    """Durable on return, safe to call from several threads.

    A file has one process. A ledger that several processes share (``ledger.postgres``) keeps all of this for all of
    them together, on two conditions: one agent's work is given to one process at a time, and no document is written by
    two agents of one collection. Who breaks the first because it was thought to be dead does no harm: see ``flip``.
    Where a server is away, any method raises ``LedgerUnavailable``; what it was to do may have been done.
    """

    @property
    def uuid(self) -> str:
        """Names this ledger; the store carries it as its marker."""
        ...

    # Identity and configuration.
    def identity(self) -> SourceIdentity | None: ...
    def save_identity(self, identity: SourceIdentity) -> None:
        """Once the slot is ready, what was being mended is."""
        ...

    def begin_mending(self, state: str, identity: SourceIdentity, at: float) -> None:
        """Record that a lost place is being mended, and that the slot is not ready until it is."""
        ...

    def mending(self) -> str | None:
        """The state that is being mended, if any."""
        ...

    def mendings_since(self, state: str, at: float) -> int:
        """How often this state had to be mended since then."""
        ...

    def rebase(self, at: float) -> None:
        """The source's history is another one: what is indexed stays, and anything that is read or changes from now
        on is newer. Tombstones, running resyncs and what was known of the tables are void; offsets stay."""
        ...

    def source_tables(self) -> dict[str, SourceTable]:
        """What is remembered of the watched tables, by configured name."""
        ...

    def save_source_table(self, table: SourceTable) -> None: ...
    def collection_fingerprint(self, name: str) -> str | None: ...
    def save_collection(self, name: str, fingerprint: str) -> None: ...

    # Generations.
    def generations(self) -> list[Generation]:
        """Every generation of every collection, dropped ones too, by collection and number."""
        ...

    def save_generation(self, generation: Generation) -> None: ...
    def switch_generation(self, collection: str, number: int, at: float) -> None:
        """From now on this generation is live, and the one that was is retired; both at once."""
        ...

    def drop_generation(self, generation: Generation, *, forget_agent: bool) -> None:
        """Forget all that is known of its documents, and its agent if told so; it is ``dropped``."""
        ...

    def leave_collection(self, generation: Generation) -> None:
        """Nobody keeps it for now: should it come back it is read again, as if for the first time. Resyncs of it alone
        are forgotten: nobody may go on with one, and none that is done makes it complete."""
        ...

    def forget_agent(self, agent: str) -> None:
        """It has no place in the stream any more."""
        ...

    def register_agent(self, agent: str, offset: int) -> Checkpoint:
        """An agent that has no checkpoint begins after ``offset``; returns where it is."""
        ...

    def save_resync(self, resync: Resync) -> None:
        """Record progress outside a flip (what was estimated, the snapshot of the beginning). Like a flip it ends a
        resync but never brings one back to ``running``, and a cancelled one stays so."""
        ...

    def move_resync(self, resync_id: int, state: str, *, only: Sequence[str], at: float | None = None) -> bool:
        """Change the state of a resync that is in one of ``only``; False if it is not."""
        ...

    def resync(self, resync_id: int) -> Resync | None: ...

    # The write protocol (docs/ARCHITECTURE.md).
    def checkpoint(self, agent: str) -> Checkpoint: ...
    def manifests(self, collection: str, document_ids: Iterable[str]) -> dict[str, Manifest]: ...
    def documents_of_relation(
        self, collection: str, relation_oid: int | None, *, after: str = "", limit: int = -1
    ) -> list[str]:
        """Ids of live documents, of one physical relation or of all: in order, those after an id, at most ``limit``."""
        ...

    def documents_after(self, collection: str, document_id: str, limit: int) -> list[str]:
        """The next ids of live documents after one (``""``: from the beginning), in order."""
        ...

    def unseen(self, collection: str, epoch: int, *, after: str = "", limit: int = -1) -> list[str]:
        """Ids of live documents that no resync since ``epoch`` has seen: in order, those after an id, at most
        ``limit``."""
        ...

    def generation(self) -> int:
        """The generation number that was taken last; 0 before the first."""
        ...

    def begin_write(
        self,
        new_chunks: Sequence[NewChunks],
        *,
        agent: str,
        touched: Sequence[tuple[str, str]] = (),
        fingerprint: str = "",
        vectors: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> tuple[int, dict[tuple[str, str], list[str]]]:
        """Transaction 1: take a generation number that is never reused, and record what will be written as intents.

        Returns the number, and the new ids ``<document_id>#<g>.<n>`` by ``(collection, document_id)``. ``touched``
        are ids of live chunks whose metadata will be changed in place. ``vectors`` (by text hash) go to the cache in
        the same transaction.
        """
        ...

    def written_at(self, chunk_id: str) -> float | None:
        """When a chunk was written, in seconds of Unix time: to the moment for recent ones, to the minute (never too
        late) for others, None for what was written before ledgers remembered."""
        ...

    def intents(self, agent: str) -> list[tuple[str, str]]:
        """``(collection, chunk_id)`` of an agent's writes that were begun and never flipped, or are ``suspected``."""
        ...

    def flip(self, flip: Flip) -> None:
        """Transaction 2, the commit point. Never moves a checkpoint backward. The same flip may be made again.

        Where several processes write, one that is late (its work was given to another one meanwhile, and it does not
        know) may record what nobody did yet, and does not undo what anybody did:

        * A manifest older than the known one is left out, tombstones count; so is a dead letter that its document is
          past, or of which a newer one is known. What was written for it becomes garbage.
        * A manifest that names a chunk which is neither live nor intended any more was planned on what is gone: nothing
          of the flip happens, ``FlipOutdated`` says so, and the work is to be planned again from the checkpoint.
        * The intents of its agent up to ``generation`` are settled, also those of a successor in the middle of a write:
          that one is refused in its turn, plans again, and nothing is lost.

        What no ledger can prevent is its requests to the store: new ids are swept, metadata written in place over a
        chunk that lives on stays until the document is written again.
        """
        ...

    def garbage(self, limit: int, collections: Sequence[str] | None = None) -> list[tuple[str, str]]:
        """``(collection, chunk_id)`` to delete from the store, of all collections or of some."""
        ...

    def clear_garbage(self, items: Iterable[tuple[str, str]]) -> None: ...
    def live(self, collection: str, chunk_ids: Iterable[str]) -> set[str]:
        """The ids that a manifest names."""
        ...

    def turn(self, collection: str) -> int:
        """A number that is odd while it may be changing which chunks of a collection are live, and another one after
        every such change, whoever made it: between two equal even ones nothing changed. Never waits for a writer."""
        ...

    def known(self, collection: str, chunk_ids: Iterable[str]) -> set[str]:
        """The ids that a manifest, an intent or the garbage list names."""
        ...

    def counts(self, collection: str) -> tuple[int, int]:
        """Live documents and live chunks."""
        ...

    # Vectors by content.
    def remember_vectors(self, fingerprint: str, vectors: Mapping[bytes, bytes]) -> None:
        """Put vectors by text hash into the cache that no write of ours brought (they were found in the store)."""
        ...

    def prune_vectors(self) -> None:
        """Forget vectors that no live document uses and that no deletion of one will reach. Call it when no resync
        is under way that still wants them."""
        ...

    def cached_vectors(self, fingerprint: str, hashes: Iterable[bytes]) -> dict[bytes, bytes]:
        """Vectors by text hash, as far as they are remembered. Losing any costs time, never truth."""
        ...

    def forget_vectors(self, fingerprint: str, hashes: Iterable[bytes]) -> None:
        """Drop vectors from the cache, so that their texts are embedded anew."""
        ...

    def forget_collection(self, name: str, then: Resync) -> Resync:
        """Nothing of the collection is in the store any more: no chunk of it is live, intended or garbage. ``then``
        is begun in the same transaction, or is one that runs already and has read nothing yet.

        Versions stay known, so no older read wins; dead letters and vectors stay.
        """
        ...

    # Dead letters.
    def parked(self, collection: str, document_ids: Iterable[str]) -> set[str]:
        """Those of the documents that have a dead letter."""
        ...

    def dead_letters(
        self, *, collection: str | None = None, reason: str | None = None, after: int = 0, limit: int = -1
    ) -> list[DeadLetter]:
        """Those of one collection or of all, parked for one reason or any: by id, those after an id, at most
        ``limit``."""
        ...

    def dead_letter_counts(self) -> dict[str, int]:
        """How many there are, by collection; without those that have none."""
        ...

    def dead_letter(self, letter_id: int) -> DeadLetter | None: ...
    def discard_dead_letter(self, letter_id: int) -> bool: ...
    def discard_dead_letters(self, *, collection: str | None = None, reason: str | None = None) -> int:
        """Forget all that ``dead_letters`` would list; returns how many they were."""
        ...

    # Resyncs.
    def start_resync(self, resync: Resync) -> Resync: ...
    def resyncs(self, *, running_only: bool = False) -> list[Resync]: ...
    def prune_tombstones(self, collection: str, *, below_xid: int, up_to: Lsn) -> None:
        """Forget deleted documents whose last transaction every future read will see, and whose last change no
        consumer will be given again (it committed before ``up_to``)."""
        ...

    def close(self) -> None: ...
