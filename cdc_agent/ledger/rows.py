"""Facts of the ledger to and from the rows of its tables. Pure; shared by the SQL backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import msgspec
import orjson

from cdc_agent.ledger.base import ChunkRef, DeadLetter, Generation, Manifest, Resync, SourceIdentity
from cdc_agent.lsn import Lsn, Version

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode


def identity(row: Sequence[Any]) -> SourceIdentity:
    system_id, timeline, database_oid, slot_name, plugin, slot_ready, publication_oid = row
    return SourceIdentity(
        system_id=system_id,
        timeline=timeline,
        database_oid=database_oid,
        slot_name=slot_name,
        plugin=plugin,
        slot_ready=bool(slot_ready),
        publication_oid=publication_oid,
    )


def identity_row(i: SourceIdentity) -> tuple[Any, ...]:
    return (i.system_id, i.timeline, i.database_oid, i.slot_name, i.plugin, int(i.slot_ready), i.publication_oid)


class Damaged(Exception):
    """A row does not have the checksum that it was written with."""


def seal(*values: Any) -> int:
    """The checksum of a row."""
    return crc32(_pack(values))


def check_seal(collection: str, document_id: str, row: Sequence[Any]) -> None:
    """Raise ``Damaged`` unless the last value of a manifest's row is the checksum of all the others."""
    if seal(collection, document_id, *row[:-1]) != row[-1]:
        raise Damaged(f"the manifest of {document_id} is not as it was written")


def manifest(collection: str, document_id: str, row: Sequence[Any]) -> Manifest:
    check_seal(collection, document_id, row)
    commit_lsn, ordinal, xid, relation_oid, chunks, column_hashes, metadata_hash, snapshot, epoch, deleted, _ = row
    return Manifest(
        collection=collection,
        document_id=document_id,
        version=Version(Lsn(commit_lsn), ordinal),
        xid=xid,
        relation_oid=relation_oid,
        chunks=tuple(ChunkRef(chunk_id, text_hash) for chunk_id, text_hash in _unpack(chunks)),
        column_hashes=column_hashes,
        metadata_hash=metadata_hash,
        snapshot=snapshot,
        epoch=epoch,
        deleted=bool(deleted),
    )


def manifest_row(m: Manifest) -> tuple[Any, ...]:
    place = (m.collection, m.document_id)
    version = (int(m.version.commit_lsn), m.version.ordinal, m.xid, m.relation_oid)
    chunks = _pack([(chunk.id, chunk.text_hash) for chunk in m.chunks])
    rest = (m.column_hashes, m.metadata_hash, m.snapshot, m.epoch, int(m.deleted))
    return (*place, *version, chunks, len(m.chunks), *rest, seal(*place, *version, chunks, *rest))


NO_CHUNKS = _pack([])


def sealed_vector(data: bytes) -> bytes:
    return data + crc32(data).to_bytes(4, "big")


def vector(sealed: object) -> bytes | None:
    """The vector inside, None if a byte of it is not as it was written."""
    if not isinstance(sealed, bytes):
        return None
    data = sealed[:-4]
    return data if crc32(data) == int.from_bytes(sealed[-4:], "big") else None


def settled(agent: str, m: Manifest) -> tuple[Any, ...]:
    return (agent, m.collection, m.document_id, int(m.version.commit_lsn), m.version.ordinal)


def generation(row: Sequence[Any]) -> Generation:
    collection, number, physical, agent, fingerprint, spec, state, created_at, switched_at = row
    return Generation(
        collection=collection,
        number=number,
        physical=physical,
        agent=agent,
        fingerprint=fingerprint,
        spec=spec,
        state=state,
        created_at=created_at,
        switched_at=switched_at,
    )


def generation_row(g: Generation) -> tuple[Any, ...]:
    known = (g.collection, g.number, g.physical, g.agent, g.fingerprint, g.spec)
    return (*known, g.state, g.created_at, g.switched_at)


def dead_letter(row: Sequence[Any]) -> DeadLetter:
    number, agent, collection, document_id, table, key, lsn, ordinal, reason, error, attempts, parked_at = row
    return DeadLetter(
        id=number,
        agent=agent,
        collection=collection,
        document_id=document_id,
        table=table,
        key=tuple(orjson.loads(key)),
        version=Version(Lsn(lsn), ordinal),
        reason=reason,
        error=error,
        attempts=attempts,
        parked_at=parked_at,
    )


def dead_letter_row(d: DeadLetter) -> tuple[Any, ...]:
    return (
        d.agent,
        d.collection,
        d.document_id,
        d.table,
        orjson.dumps(d.key).decode(),
        int(d.version.commit_lsn),
        d.version.ordinal,
        d.reason,
        d.error,
        d.attempts,
        d.parked_at,
    )


def resync(row: Sequence[Any]) -> Resync:
    number, table, collections, keys, predicate, rewrite, reason, state, *rest = row
    snapshot, last_key, done, estimated, started, finished, error = rest
    return Resync(
        id=number,
        table=table,
        collections=tuple(orjson.loads(collections)),
        keys=tuple(tuple(key) for key in orjson.loads(keys)),
        predicate=predicate,
        rewrite=bool(rewrite),
        reason=reason,
        state=state,
        snapshot=snapshot,
        last_key=tuple(orjson.loads(last_key)) if last_key is not None else None,
        rows_done=done,
        rows_estimated=estimated,
        started_at=started,
        finished_at=finished,
        error=error,
    )


def resync_row(r: Resync) -> tuple[Any, ...]:
    return (
        r.table,
        orjson.dumps(r.collections).decode(),
        orjson.dumps(r.keys).decode(),
        r.predicate,
        int(r.rewrite),
        r.reason,
        r.state,
        r.snapshot,
        _key(r.last_key),
        r.rows_done,
        r.rows_estimated,
        r.started_at,
        r.finished_at,
        r.error,
    )


def resync_progress(r: Resync) -> tuple[Any, ...]:
    return (r.state, r.snapshot, _key(r.last_key), r.rows_done, r.rows_estimated, r.finished_at, r.error, r.id)


def names(collections: Sequence[str]) -> str:
    """Names of collections as a resync's row carries them."""
    return orjson.dumps(collections).decode()


def _key(key: tuple[str, ...] | None) -> str | None:
    return None if key is None else orjson.dumps(key).decode()
