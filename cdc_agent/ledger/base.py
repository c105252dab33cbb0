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
    "Ledger",
    "Manifest",
    "NewChunks",
    "Resync",
    "SourceIdentity",
    "SourceTable",
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
    changed. ``state``: ``running`` or ``done``. ``last_key`` is the key of the last row applied to the index.
    ``snapshot`` is that of its beginning: documents that are visible in it and never seen are gone from the source.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """One commit point: everything in it becomes true at once.

    ``manifests`` replace what was there; chunk ids that no manifest names any more become garbage, and so do intents of
    the agent up to ``generation`` that none names. A dead letter of a document whose manifest moves past it is settled.
    ``resyncs`` carry progress. ``suspected`` are chunks that a request which failed may still change: like those of
    writes in place that were never flipped they stay intents while they live.
    """

    agent: str
    checkpoint: Checkpoint
    generation: int
    manifests: Sequence[Manifest] = ()
    dead_letters: Sequence[DeadLetter] = ()
    resyncs: Sequence[Resync] = ()
    suspected: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChunks:
    """Chunks that one document needs new ids for."""

    collection: str
    document_id: str
    count: int


class Ledger(Protocol):
    """Durable on return, one writer at a time, safe to call from several threads."""

    @property
    def uuid(self) -> str:
        """Names this ledger; the store carries it as its marker."""
        ...

    # Identity and configuration.
    def identity(self) -> SourceIdentity | None: ...
    def save_identity(self, identity: SourceIdentity) -> None: ...
    def source_tables(self) -> dict[str, SourceTable]:
        """What is remembered of the watched tables, by configured name."""
        ...

    def save_source_table(self, table: SourceTable) -> None: ...
    def collection_fingerprint(self, name: str) -> str | None: ...
    def save_collection(self, name: str, fingerprint: str) -> None: ...
    def save_resync(self, resync: Resync) -> None:
        """Record progress outside a flip (what was estimated, the snapshot of the beginning)."""
        ...

    # The write protocol (docs/ARCHITECTURE.md).
    def checkpoint(self, agent: str) -> Checkpoint: ...
    def manifests(self, collection: str, document_ids: Iterable[str]) -> dict[str, Manifest]: ...
    def documents_of_relation(self, collection: str, relation_oid: int | None) -> list[str]:
        """Ids of live documents, of one physical relation or of all."""
        ...

    def unseen(self, collection: str, epoch: int) -> list[Manifest]:
        """Live documents that no resync since ``epoch`` has seen."""
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

    def intents(self, agent: str) -> list[tuple[str, str]]:
        """``(collection, chunk_id)`` of an agent's writes that were begun and never flipped, or are ``suspected``."""
        ...

    def flip(self, flip: Flip) -> None:
        """Transaction 2, the commit point. Never moves a checkpoint backward."""
        ...

    def garbage(self, limit: int) -> list[tuple[str, str]]:
        """``(collection, chunk_id)`` to delete from the store."""
        ...

    def clear_garbage(self, items: Iterable[tuple[str, str]]) -> None: ...
    def live(self, collection: str, chunk_ids: Iterable[str]) -> set[str]:
        """The ids that a manifest names."""
        ...

    def known(self, collection: str, chunk_ids: Iterable[str]) -> set[str]:
        """The ids that a manifest, an intent or the garbage list names."""
        ...

    def counts(self, collection: str) -> tuple[int, int]:
        """Live documents and live chunks."""
        ...

    # Vectors by content.
    def cached_vectors(self, fingerprint: str, hashes: Iterable[bytes]) -> dict[bytes, bytes]:
        """Vectors by text hash, as far as they are remembered. Losing any costs time, never truth."""
        ...

    # Dead letters.
    def dead_letters(self) -> list[DeadLetter]: ...
    def dead_letter(self, letter_id: int) -> DeadLetter | None: ...
    def discard_dead_letter(self, letter_id: int) -> bool: ...

    # Resyncs.
    def start_resync(self, resync: Resync) -> Resync: ...
    def resyncs(self, *, running_only: bool = False) -> list[Resync]: ...
    def prune_tombstones(self, collection: str, *, below_xid: int, up_to: Lsn) -> None:
        """Forget deleted documents whose last transaction every future read will see, and whose last change no
        consumer will be given again (it committed before ``up_to``)."""
        ...

    def close(self) -> None: ...
