"""A retriever for LangChain that asks the daemon, not the store: it can wait for a commit.

from cdc_agent.integrations.langchain import FreshRetriever

retriever = FreshRetriever(url="http://127.0.0.1:8765", collection="articles")
connection.commit()
retriever.invoke("how do I reset it?", fresh_as_of=connection)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, PrivateAttr

from cdc_agent.client import Answer, FreshAsOf, Hit
from cdc_agent.integrations.hits import Clients, metadata_of, not_installed, overridden

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
except ImportError as exc:
    raise not_installed("langchain-core", "langchain") from exc

__all__ = ["FreshRetriever"]


class FreshRetriever(BaseRetriever):
    """The ``k`` nearest chunks of one collection, best first; a document switches from old to new at once.

    ``k``, ``where``, ``timeout_s`` and ``fresh_as_of`` mean what they mean for ``cdc_agent.client.Index.search``. Given
    to one call of ``invoke``, ``ainvoke``, ``batch`` or ``abatch``, they replace those of the retriever there; ``bind``
    gives them to a step of a chain. A document's id is the chunk's, and its metadata are the configured columns, the
    fields of ``cdc_agent.integrations.hits.SOURCE_FIELDS``, and ``cdc_score``, cosine similarity. Raises the errors of
    ``cdc_agent.client``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    url: str
    collection: str
    token: str | None = Field(default=None, repr=False, exclude=True)
    k: int = 5
    where: Mapping[str, Any] | None = None
    timeout_s: float = 10.0
    fresh_as_of: FreshAsOf = Field(default=None, repr=False, exclude=True)

    _clients: Clients = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._clients = Clients(self.url, self.collection, token=self.token)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002  LangChain gives it
        **overrides: Any,
    ) -> list[Document]:
        return _documents(self._clients.index.search(query, **self._options(overrides)))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002  LangChain gives it
        **overrides: Any,
    ) -> list[Document]:
        return _documents(await self._clients.of_this_loop().search(query, **self._options(overrides)))

    def _options(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        options = {"k": self.k, "where": self.where, "timeout_s": self.timeout_s, "fresh_as_of": self.fresh_as_of}
        return overridden(options, overrides)

    def close(self) -> None:
        """Close the connections to the daemon; ``aclose`` also those of the running event loop."""
        self._clients.close()

    async def aclose(self) -> None:
        await self._clients.aclose()


def _documents(answer: Answer) -> list[Document]:
    return [_document(hit) for hit in answer]


def _document(hit: Hit) -> Document:
    return Document(id=hit.id, page_content=hit.text, metadata={**metadata_of(hit), "cdc_score": hit.score})
