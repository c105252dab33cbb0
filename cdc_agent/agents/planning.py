"""Decides what one document needs: nothing, a metadata write, some chunks, or removal. Pure.

Text is compared by hash, so a row that was touched, rewritten with the same words or moved in time costs nothing.
When Postgres left out a long value because it did not change, the hashes of the other text columns tell whether the
text can have changed at all; only if they cannot tell must the row be read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from cdc_agent.agents.folding import Pending
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.documents.diff import diff_chunks
from cdc_agent.documents.metadata import reserved_metadata
from cdc_agent.documents.model import MetadataValue, text_hash
from cdc_agent.errors import RenderError
from cdc_agent.events import UNCHANGED, Row
from cdc_agent.ledger.base import ChunkRef, Manifest
from cdc_agent.values import FLOAT_OIDS

__all__ = ["Collection", "Expected", "Plan", "expected", "light_plan", "needs_row", "plan"]

#: Bytes of one text column's hash in a manifest.
_COLUMN_HASH_BYTES = 8
#: Stands in a manifest for a text column whose value was not known when it was written.
_UNKNOWN = b"\x00" * _COLUMN_HASH_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """One configured collection with its chunker. ``table`` is the configured name, part of document ids."""

    spec: CollectionSpec
    chunk: Callable[[str], list[str]]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def table(self) -> str:
        return self.spec.qualified_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the index must hold of one row, apart from the vectors: the hashes of its chunks in order, and metadata."""

    hashes: Sequence[bytes]
    metadata: Mapping[str, MetadataValue]
    metadata_hash: bytes


@dataclass(slots=True, kw_only=True)
class Plan:
    """What will be written for one document.

    ``texts`` are all chunk texts in order, ``kept`` maps positions to ids that stay, ``new`` lists the others. For a
    removal all three are empty. ``metadata`` is what every new chunk carries; ``moved`` are kept chunks that need only
    a metadata write, with the keys to write.
    """

    collection: str
    pending: Pending
    deleted: bool = False
    texts: Sequence[str] = ()
    hashes: Sequence[bytes] = ()
    kept: Mapping[int, str] = field(default_factory=dict)
    new: Sequence[int] = ()
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    moved: Mapping[str, Mapping[str, MetadataValue]] = field(default_factory=dict)
    metadata_hash: bytes = b""
    column_hashes: bytes = b""
    #: The chunks are those that the document has.
    same: bool = False

    def manifest(self, new_ids: Sequence[str]) -> Manifest:
        """The manifest once the new chunks have ids."""
        p = self.pending
        if self.same and p.base is not None:
            chunks = p.base.chunks
        else:
            ids = dict(self.kept)
            ids.update(zip(self.new, new_ids, strict=True))
            chunks = tuple(ChunkRef(ids[i], digest) for i, digest in enumerate(self.hashes))
        return Manifest(
            collection=self.collection,
            document_id=p.document_id,
            version=p.version,
            xid=p.xid,
            relation_oid=p.relation_oid,
            chunks=chunks,
            column_hashes=self.column_hashes,
            metadata_hash=self.metadata_hash,
            snapshot=p.snapshot,
            epoch=p.epoch,
            deleted=self.deleted,
        )


def needs_row(collection: Collection, pending: Pending, *, tainted: bool) -> bool:
    """Whether the row must be read again because the log did not carry a value that the document depends on.

    ``tainted`` forces a whole rendering (see ``writing``).
    """
    row = pending.row
    if pending.rewrite and not pending.touched:
        # The read was older than what the index knows, so it is written anew from a read that is not.
        return pending.was_live
    if row is None or not pending.touched:
        return False
    spec = collection.spec
    if UNCHANGED not in row.raw:
        return False
    missing = {name for name in spec.needed_columns if _raw(row, name) is UNCHANGED}
    if not missing:
        return False
    # A float or numeric that was not sent may be one that the plugin cannot express.
    unsaid = {name for name in missing if row.relation.columns[row.relation.index[name]].type_oid in FLOAT_OIDS}
    beyond_text = missing - set(spec.text_columns) | missing & set(spec.metadata) | missing & _predicate(spec) | unsaid
    return tainted or pending.rewrite or bool(beyond_text) or not _text_unchanged(collection, pending, row)


def expected(collection: Collection, row: Row) -> Expected | None:
    """What ``plan`` makes of a whole row; None when the row does not belong to the collection.

    Raises ``RenderError``.
    """
    if not _matches(collection, row):
        return None
    metadata = collection.spec.metadata_of(row)
    texts = collection.chunk(collection.spec.template.render(row))
    return Expected(hashes=[text_hash(text) for text in texts], metadata=metadata, metadata_hash=_hash_of(metadata))


def plan(collection: Collection, pending: Pending, *, tainted: frozenset[str] = frozenset()) -> Plan:
    """Plan one document whose row carries what ``needs_row`` asked for.

    Chunk ids in ``tainted`` are not kept: a write to them may still be under way. Raises ``RenderError``.
    """
    row = pending.row
    if not pending.touched:
        return _untouched(collection, pending)
    if row is None or not _matches(collection, row):
        return Plan(collection=collection.name, pending=pending, deleted=True)
    hashes = _column_hashes(collection, row)
    metadata = collection.spec.metadata_of(row)
    metadata_hash = _hash_of(metadata)
    if UNCHANGED in row.raw and any(_raw(row, name) is UNCHANGED for name in collection.spec.text_columns):
        return _same_text(collection, pending, metadata, metadata_hash)
    if not tainted and _is_indexed(pending, hashes, metadata_hash):
        return _untouched(collection, pending)
    texts = collection.chunk(collection.spec.template.render(row))
    return _new_text(collection, pending, texts, metadata, metadata_hash, hashes, tainted)


def light_plan(collection: Collection, pending: Pending, *, tainted: frozenset[str]) -> Plan | None:
    """The plan of a document that needs no model: its metadata move, or it goes. None for any other."""
    if not pending.was_live or pending.rewrite:
        return None
    try:
        row = pending.row
        if row is not None and needs_row(collection, pending, tainted=bool(tainted)):
            return None
        if row is not None and _matches(collection, row) and not _text_unchanged(collection, pending, row):
            return None
        made = plan(collection, pending, tainted=tainted)
    except RenderError:
        # Its turn will come, and the one who plans it then parks it.
        return None
    return None if made.new else made


def _is_indexed(pending: Pending, column_hashes: bytes, metadata_hash: bytes) -> bool:
    """Whether the index was made of these values: then it need not be made again to be compared."""
    base = pending.base
    if base is None or base.deleted or pending.rewrite:
        return False
    return base.column_hashes == column_hashes and base.metadata_hash == metadata_hash


def _untouched(collection: Collection, pending: Pending) -> Plan:
    """Only the bookkeeping moved."""
    base = pending.base
    if base is None:
        return Plan(collection=collection.name, pending=pending, deleted=True)
    return Plan(
        collection=collection.name,
        pending=pending,
        deleted=base.deleted,
        hashes=[chunk.text_hash for chunk in base.chunks],
        kept={i: chunk.id for i, chunk in enumerate(base.chunks)},
        metadata_hash=base.metadata_hash,
        column_hashes=base.column_hashes,
        same=True,
    )


def _same_text(
    collection: Collection, pending: Pending, metadata: Mapping[str, MetadataValue], metadata_hash: bytes
) -> Plan:
    """The text cannot have changed; at most the metadata did."""
    base = pending.base
    assert base is not None
    moved = {}
    if metadata_hash != base.metadata_hash:
        moved = {c.id: _chunk_metadata(collection, pending, metadata, i) for i, c in enumerate(base.chunks)}
    return Plan(
        collection=collection.name,
        pending=pending,
        hashes=[chunk.text_hash for chunk in base.chunks],
        kept={i: chunk.id for i, chunk in enumerate(base.chunks)},
        metadata=metadata,
        moved=moved,
        metadata_hash=metadata_hash,
        column_hashes=base.column_hashes,
    )


def _new_text(
    collection: Collection,
    pending: Pending,
    texts: Sequence[str],
    metadata: Mapping[str, MetadataValue],
    metadata_hash: bytes,
    column_hashes: bytes,
    tainted: frozenset[str],
) -> Plan:
    base = pending.base if pending.was_live else None
    kept = base.chunks if base is not None and not pending.rewrite else ()
    old = [(c.id, c.text_hash) for c in kept if c.id not in tainted]
    diff = diff_chunks(old, texts)
    same_metadata = base is not None and base.metadata_hash == metadata_hash
    if not (same_metadata or diff.is_empty):
        # A write in place shows before the flip, and would stand beside chunks that change with it. So everything that
        # the document consists of changes with it; the vectors are known.
        diff = diff_chunks((), texts)
    places = {c.id: i for i, c in enumerate(base.chunks)} if base else {}
    moved = {}
    for position, chunk_id in diff.kept.items():
        if not same_metadata:
            moved[chunk_id] = _chunk_metadata(collection, pending, metadata, position)
        elif places[chunk_id] != position:
            moved[chunk_id] = _reserved(collection, pending, position)
    return Plan(
        collection=collection.name,
        pending=pending,
        texts=texts,
        hashes=[text_hash(text) for text in texts],
        kept=diff.kept,
        new=diff.new,
        metadata=metadata,
        moved=moved,
        metadata_hash=metadata_hash,
        column_hashes=column_hashes,
    )


def chunk_metadata(collection: Collection, made: Plan, position: int) -> dict[str, MetadataValue]:
    """Everything that a new chunk at ``position`` carries."""
    return _chunk_metadata(collection, made.pending, made.metadata, position)


def _chunk_metadata(
    collection: Collection, pending: Pending, metadata: Mapping[str, MetadataValue], position: int
) -> dict[str, MetadataValue]:
    return {**metadata, **_reserved(collection, pending, position)}


def _reserved(collection: Collection, pending: Pending, position: int) -> dict[str, MetadataValue]:
    return dict(
        reserved_metadata(
            document_id=pending.document_id,
            table=collection.table,
            position=position,
            commit_lsn=pending.version.commit_lsn,
            commit_ts_us=pending.commit_ts_us,
        )
    )


def _hash_of(metadata: Mapping[str, MetadataValue]) -> bytes:
    return hashlib.blake2b(orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def _matches(collection: Collection, row: Row) -> bool:
    predicate = collection.spec.predicate
    if predicate is None:
        return True
    gone = predicate.columns - row.relation.index.keys()
    if gone:
        raise RenderError(
            f"column {', '.join(sorted(gone))} of {collection.table} is gone", hint="correct `collections[].where`"
        )
    return predicate.matches(row)


def _predicate(spec: CollectionSpec) -> frozenset[str]:
    return frozenset(spec.predicate.columns) if spec.predicate is not None else frozenset()


def _column_hashes(collection: Collection, row: Row) -> bytes:
    return b"".join(_column_hash(_raw(row, name)) for name in sorted(collection.spec.text_columns))


def _column_hash(raw: object) -> bytes:
    if raw is UNCHANGED:
        return _UNKNOWN
    value = b"\x01" if raw is None else b"\x02" + bytes(raw)  # type: ignore[call-overload]
    return hashlib.blake2b(value, digest_size=_COLUMN_HASH_BYTES).digest()


def _text_unchanged(collection: Collection, pending: Pending, row: Row) -> bool:
    """Whether the text columns that were sent are the ones that the index was made of."""
    if not pending.was_live or pending.created or pending.base is None:
        return False
    known = pending.base.column_hashes
    names = sorted(collection.spec.text_columns)
    if len(known) != len(names) * _COLUMN_HASH_BYTES:
        return False
    for i, name in enumerate(names):
        then = known[i * _COLUMN_HASH_BYTES : (i + 1) * _COLUMN_HASH_BYTES]
        now = _column_hash(_raw(row, name))
        if then == _UNKNOWN or now not in (_UNKNOWN, then):
            return False
    return True


def _raw(row: Row, name: str) -> object:
    place = row.relation.index.get(name)
    return None if place is None else row.raw[place]
