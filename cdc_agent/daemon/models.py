"""Opens the configured model, and makes of a collection's words what is cut and counted with it."""

from __future__ import annotations

from cdc_agent.agents.planning import Collection
from cdc_agent.config import EmbeddingConfig
from cdc_agent.documents.chunking import Chunker
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.embedding.base import Embedder
from cdc_agent.errors import ConfigError, EmbeddingError

__all__ = ["build_embedder", "collection_of"]


def build_embedder(config: EmbeddingConfig) -> Embedder:
    """The configured model, loaded."""
    if config.backend == "openai":
        from cdc_agent.embedding.openai import OpenAIEmbedder

        assert config.url is not None
        extra = {} if config.max_tokens is None else {"max_tokens": config.max_tokens}
        embedder = OpenAIEmbedder(
            config.url,
            config.model,
            api_key=lambda: config.api_key.get_secret_value() if config.api_key else None,
            dimensions=config.dimensions,
            timeout_s=config.timeout_s,
            **extra,
        )
        _ = embedder.dimensions
        return embedder
    if config.backend == "hashing":
        from cdc_agent.embedding.hashing import HashingEmbedder

        return HashingEmbedder(dimensions=config.dimensions or 64, max_tokens=config.max_tokens or 256)
    from cdc_agent.embedding.sentence_transformers import SentenceTransformersEmbedder

    return SentenceTransformersEmbedder(config.model, device=config.device, batch_tokens=config.batch_tokens)


def collection_of(spec: CollectionSpec, embedder: Embedder) -> Collection:
    limit = min(spec.max_tokens, embedder.max_tokens)
    if spec.overlap_tokens >= limit:
        raise ConfigError(
            f"collection {spec.name}: overlap_tokens {spec.overlap_tokens} leaves no room in chunks of {limit} tokens",
            hint=f"the model reads {embedder.max_tokens} tokens; lower chunking.overlap_tokens",
        )
    if limit < 1:
        raise EmbeddingError(f"the model {embedder.model} reads no tokens", hint="choose another embedding.model")
    return Collection(spec=spec, chunk=Chunker(limit, spec.overlap_tokens, embedder.count_tokens).chunk)
