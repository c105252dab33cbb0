"""Collections of the configuration become ``CollectionSpec``s, the form that ``documents`` and the agents know."""

from __future__ import annotations

from cdc_agent.config.tree import CollectionConfig
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.documents.predicate import Predicate
from cdc_agent.documents.rendering import Template

__all__ = ["collection_spec"]


def collection_spec(collection: CollectionConfig) -> CollectionSpec:
    """Raises ``ConfigError`` when the template or the predicate cannot be understood."""
    schema, table = collection.table_name
    return CollectionSpec(
        name=collection.name,
        schema=schema,
        table=table,
        template=Template(collection.text),
        metadata=collection.metadata,
        predicate=Predicate(collection.where) if collection.where else None,
        max_tokens=collection.chunking.max_tokens,
        overlap_tokens=collection.chunking.overlap_tokens,
    )
