"""One document, three ways: what its row renders to, what the manifest says, what the store holds. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cdc_agent.agents.planning import Collection, Expected, expected
from cdc_agent.documents.metadata import RESERVED_PREFIX
from cdc_agent.documents.model import MetadataValue, text_hash
from cdc_agent.errors import RenderError
from cdc_agent.events import Row
from cdc_agent.ledger.base import Manifest
from cdc_agent.vectorstore.base import Record
from cdc_agent.verify.defects import Defect, Kind

__all__ = ["Place", "compare"]

#: Say which commit wrote a chunk: it must carry them, with whatever value.
_COMMIT_KEYS = frozenset({"cdc_lsn", "cdc_commit_ts"})


@dataclass(frozen=True, slots=True)
class Place:
    """One document of one collection, and the key of its row."""

    collection: str
    document_id: str
    key: tuple[str, ...]

    def defect(self, kind: Kind, what: str, chunk_id: str = "") -> Defect:
        return Defect(
            kind=kind,
            collection=self.collection,
            document_id=self.document_id,
            chunk_id=chunk_id,
            key=self.key,
            what=what,
        )


def compare(
    collection: Collection, place: Place, row: Row | None, manifest: Manifest | None, held: Mapping[str, Record]
) -> list[Defect]:
    """Everything that is wrong with one document. ``held`` are the store's records of its chunks, by id."""
    is_live = manifest is not None and not manifest.deleted
    try:
        wanted = expected(collection, row) if row is not None else None
    except RenderError as exc:
        kind = Kind.STALE if is_live else Kind.MISSING
        return [place.defect(kind, f"the row cannot be rendered: {exc.message}")]
    if wanted is None:
        gone = "there is no such row" if row is None else "the row does not satisfy `where`"
        return [place.defect(Kind.ORPHANED, gone)] if is_live else []
    if manifest is None or not is_live:
        return [place.defect(Kind.MISSING, "the row has no document")]
    return [*_against_row(place, wanted, manifest), *_against_store(collection, place, wanted, manifest, held)]


def _against_row(place: Place, wanted: Expected, manifest: Manifest) -> Iterator[Defect]:
    if not _same_text(wanted, manifest):
        yield place.defect(Kind.STALE, "the row renders to another text")
    elif wanted.metadata_hash != manifest.metadata_hash:
        yield place.defect(Kind.WRONG_METADATA, "the manifest was made of other metadata than the row's")


def _against_store(
    collection: Collection, place: Place, wanted: Expected, manifest: Manifest, held: Mapping[str, Record]
) -> Iterator[Defect]:
    # What the manifest has wrong already is not said once more for every chunk.
    follows_row = _same_text(wanted, manifest) and wanted.metadata_hash == manifest.metadata_hash
    for position, chunk in enumerate(manifest.chunks):
        record = held.get(chunk.id)
        if record is None:
            yield place.defect(Kind.TORN, "the store lacks this chunk", chunk.id)
        elif text_hash(record.text) != chunk.text_hash:
            yield place.defect(Kind.TORN, "the store holds another text under this id", chunk.id)
        elif follows_row and (keys := _wrong_keys(record.metadata, _metadata(collection, place, wanted, position))):
            yield place.defect(Kind.WRONG_METADATA, f"metadata differs in {', '.join(keys)}", chunk.id)


def _same_text(wanted: Expected, manifest: Manifest) -> bool:
    return list(wanted.hashes) == [chunk.text_hash for chunk in manifest.chunks]


def _metadata(collection: Collection, place: Place, wanted: Expected, position: int) -> dict[str, MetadataValue]:
    own: dict[str, MetadataValue] = {
        f"{RESERVED_PREFIX}doc": place.document_id,
        f"{RESERVED_PREFIX}table": collection.table,
        f"{RESERVED_PREFIX}chunk": position,
    }
    return {key: value for key, value in wanted.metadata.items() if value is not None} | own


def _wrong_keys(held: Mapping[str, Any], wanted: Mapping[str, MetadataValue]) -> list[str]:
    """Keys that are missing, too many, or of another value or type (1, 1.0 and True are three)."""
    missing = _COMMIT_KEYS - held.keys()
    others = {key: value for key, value in held.items() if key not in _COMMIT_KEYS and value is not None}
    differing = {key for key in others.keys() | wanted.keys() if not _same(others.get(key), wanted.get(key))}
    return sorted(missing | differing)


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b
