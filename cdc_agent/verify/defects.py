"""What an audit can find wrong: the kinds of defects, and one defect. Never carries a cell's value."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Defect", "Kind"]


class Kind(enum.StrEnum):
    """How source, manifest and store can disagree."""

    #: A row that belongs to the collection has no document.
    MISSING = "missing"
    #: The manifest holds another text than the row renders to.
    STALE = "stale"
    #: A document that no row stands behind.
    ORPHANED = "orphaned"
    #: A record in the store that no manifest, intent or garbage list names.
    ORPHANED_RECORD = "orphaned_record"
    #: The manifest names a chunk that the store lacks, or that holds another text there.
    TORN = "torn"
    #: The metadata of a chunk is not the row's, or its own keys are wrong.
    WRONG_METADATA = "wrong_metadata"
    #: The collection was built with another model, template or chunking, or by another ledger.
    WRONG_GENERATION = "wrong_generation"
    #: A vector is not that of its text, or its chunk is not found with it.
    VECTOR = "vector"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One thing that is wrong. ``chunk_id`` is empty where the whole document is meant, and ``document_id`` too where
    the whole collection is. ``what`` is a sentence that names columns and keys, not values."""

    kind: Kind
    collection: str
    document_id: str = ""
    chunk_id: str = ""
    key: tuple[str, ...] = ()
    what: str = ""
