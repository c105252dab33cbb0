"""Facts of the ledger to and from the rows of its tables. Pure; shared by the SQL backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from cdc_agent.ledger.base import ChunkRef, DeadLetter, Manifest, Resync, SourceIdentity
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


def manifest(collection: str, document_id: str, row: Sequence[Any]) -> Manifest:
    commit_lsn, ordinal, xid, relation_oid, chunks, column_hashes, metadata_hash, snapshot, epoch, deleted = row
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
    return (
        m.collection,
        m.document_id,
        int(m.version.commit_lsn),
        m.version.ordinal,
        m.xid,
        m.relation_oid,
        _pack([(chunk.id, chunk.text_hash) for chunk in m.chunks]),
        len(m.chunks),
        m.column_hashes,
        m.metadata_hash,
        m.snapshot,
        m.epoch,
        int(m.deleted),
    )


def settled(agent: str, m: Manifest) -> tuple[Any, ...]:
    return (agent, m.collection, m.document_id, int(m.version.commit_lsn), m.version.ordinal)


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
    snapshot, last_key, done, estimated, started, finished = rest
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
    )


def resync_progress(r: Resync) -> tuple[Any, ...]:
    return (r.state, r.snapshot, _key(r.last_key), r.rows_done, r.rows_estimated, r.finished_at, r.id)


def _key(key: tuple[str, ...] | None) -> str | None:
    return None if key is None else orjson.dumps(key).decode()
