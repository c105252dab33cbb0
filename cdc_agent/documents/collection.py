"""One configured collection: which table, how its rows become text and metadata, and the fingerprint of that shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cdc_agent.documents.chunking import CHUNKER_VERSION, check_limits
from cdc_agent.documents.metadata import RESERVED_PREFIX, metadata_value
from cdc_agent.documents.model import Document, MetadataValue
from cdc_agent.documents.predicate import Predicate
from cdc_agent.documents.rendering import Template
from cdc_agent.errors import ConfigError, RenderError

__all__ = ["CollectionSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionSpec:
    """What the configuration says about one collection. ``schema`` and ``table`` are names without quotes."""

    name: str
    schema: str
    table: str
    template: Template
    metadata: tuple[str, ...] = ()
    predicate: Predicate | None = None
    max_tokens: int = 256
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        check_limits(self.max_tokens, self.overlap_tokens)
        for column in self.metadata:
            self._check_metadata_column(column)

    def _check_metadata_column(self, column: str) -> None:
        if column.startswith(RESERVED_PREFIX):
            raise ConfigError(
                f"collection {self.name!r}: metadata column {column!r} starts with {RESERVED_PREFIX!r}",
                hint="these names are ours in the vector store; rename the column, or select it through a view",
            )
        if self.metadata.count(column) > 1:
            raise ConfigError(f"collection {self.name!r}: metadata names {column!r} twice", hint="name it once")

    @property
    def qualified_table(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def text_columns(self) -> frozenset[str]:
        """Columns that the text is made of: only their changes can cost an embedding."""
        return self.template.columns

    @property
    def needed_columns(self) -> frozenset[str]:
        """Every column that must be known before a row can be judged and rendered."""
        predicate_columns = self.predicate.columns if self.predicate else frozenset()
        return self.text_columns | frozenset(self.metadata) | predicate_columns

    def render(self, row: Mapping[str, Any], document_id: str) -> Document:
        """The row as a document. Raises ``RenderError``; asking ``predicate`` first is the caller's business."""
        return Document(
            document_id=document_id,
            text=self.template.render(row),
            metadata=self.metadata_of(row),
        )

    def metadata_of(self, row: Mapping[str, Any]) -> dict[str, MetadataValue]:
        """The configured columns as a vector store takes them. Raises ``RenderError``."""
        return {column: _metadata(row, column) for column in self.metadata}

    def shape_fingerprint(self) -> str:
        """Changes exactly when the same row could render to other chunks or metadata. Equal in every process."""
        return _fingerprint(
            self.template.text,
            list(self.metadata),
            self.predicate.sql if self.predicate else None,
            self.max_tokens,
            self.overlap_tokens,
            CHUNKER_VERSION,
        )

    def fingerprint(self, model: str, dimensions: int) -> str:
        """Names one generation: the shape, and the model that embeds it."""
        return _fingerprint(self.shape_fingerprint(), model, dimensions)


def _metadata(row: Mapping[str, Any], column: str) -> MetadataValue:
    try:
        return metadata_value(row[column])
    except KeyError as exc:
        raise RenderError(
            f"the row has no column {column!r}, which the metadata names",
            hint=f"does the table still have {column!r}, and does the publication's column list include it?",
        ) from exc
    except UnicodeDecodeError as exc:
        raise RenderError(
            f"metadata column {column!r} holds bytes that are no UTF-8",
            hint="the database's encoding lets them in (SQL_ASCII?); mend the row or leave the column out",
        ) from exc


def _fingerprint(*parts: Any) -> str:
    """Parts are JSON, so that ``["ab", "c"]`` and ``["a", "bc"]`` differ."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
