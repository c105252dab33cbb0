"""A retriever for LlamaIndex that asks the daemon, not the store: it can wait for a commit.

from cdc_agent.integrations.llama_index import FreshRetriever

retriever = FreshRetriever("http://127.0.0.1:8765", "articles")
connection.commit()
retriever.bind(fresh_as_of=connection).retrieve("how do I reset it?")
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

from cdc_agent.client import Answer, FreshAsOf, Hit
from cdc_agent.integrations.hits import SOURCE_FIELDS, Clients, metadata_of, not_installed, overridden

try:
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
except ImportError as exc:
    raise not_installed("llama-index-core", "llama-index") from exc

__all__ = ["FreshRetriever"]


class FreshRetriever(BaseRetriever):
    """The ``k`` nearest chunks of one collection, best first; a document switches from old to new at once.

    ``k``, ``where``, ``timeout_s`` and ``fresh_as_of`` mean what they mean for ``cdc_agent.client.Index.search``;
    ``bind`` replaces them for some calls. A node's id is the chunk's, its ``ref_doc_id`` the document's, its score is
    cosine similarity, and its metadata are the configured columns and the fields of
    ``cdc_agent.integrations.hits.SOURCE_FIELDS``; those fields stay out of what a language model reads. Raises the
    errors of ``cdc_agent.client``.
    """

    def __init__(
        self,
        url: str,
        collection: str,
        *,
        token: str | None = None,
        k: int = 5,
        where: Mapping[str, Any] | None = None,
        timeout_s: float = 10.0,
        fresh_as_of: FreshAsOf | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(callback_manager=callback_manager, verbose=verbose)
        self._clients = Clients(url, collection, token=token)
        self._options: dict[str, Any] = {"k": k, "where": where, "timeout_s": timeout_s, "fresh_as_of": fresh_as_of}

    def bind(self, **overrides: Any) -> Self:
        """The same retriever, on the same connections, with other options: ``bind(fresh_as_of=connection)``."""
        bound = copy.copy(self)
        bound._options = overridden(self._options, overrides)
        return bound

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _nodes(self._clients.index.search(query_bundle.query_str, **self._options))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _nodes(await self._clients.of_this_loop().search(query_bundle.query_str, **self._options))

    def close(self) -> None:
        """Close the connections to the daemon; ``aclose`` also those of the running event loop."""
        self._clients.close()

    async def aclose(self) -> None:
        await self._clients.aclose()


def _nodes(answer: Answer) -> list[NodeWithScore]:
    return [NodeWithScore(node=_node(hit), score=hit.score) for hit in answer]


def _node(hit: Hit) -> TextNode:
    return TextNode(
        id_=hit.id,
        text=hit.text,
        metadata=metadata_of(hit),
        excluded_embed_metadata_keys=list(SOURCE_FIELDS),
        excluded_llm_metadata_keys=list(SOURCE_FIELDS),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=hit.document_id)},
    )
