"""Collections of the configuration become ``CollectionSpec``s, the form that ``documents`` and the agents know."""

from __future__ import annotations

from cdc_agent.config.problems import nearest
from cdc_agent.config.tree import CollectionConfig
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.documents.predicate import Predicate
from cdc_agent.documents.rendering import Template
from cdc_agent.errors import ConfigError
from cdc_agent.feeds.columns import COLUMNS

__all__ = ["collection_spec"]


def collection_spec(collection: CollectionConfig) -> CollectionSpec:
    """Raises ``ConfigError`` when the template or the predicate cannot be understood."""
    schema, table = collection.table_name
    spec = CollectionSpec(
        name=collection.name,
        schema=schema,
        table=table,
        template=Template(collection.text),
        metadata=collection.metadata,
        predicate=Predicate(collection.where) if collection.where else None,
        max_tokens=collection.chunking.max_tokens,
        overlap_tokens=collection.chunking.overlap_tokens,
    )
    if collection.feed is not None:
        _check_columns(spec, COLUMNS[collection.feed.kind])
    return spec


def _check_columns(spec: CollectionSpec, known: tuple[str, ...]) -> None:
    """What a feed's documents have is known before the first one comes."""
    for column in sorted(spec.needed_columns - set(known)):
        guess = nearest(column, list(known))
        raise ConfigError(
            f"a document of this feed has no column {column!r}" + (f"; did you mean {guess}?" if guess else ""),
            hint=f"its columns: {', '.join(known)}",
        )
