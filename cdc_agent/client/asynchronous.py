"""``AsyncIndex``: one collection of a running daemon, for programs with an event loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from cdc_agent.client import protocol
from cdc_agent.client.answers import Answer, Document, Explanation, Freshness, SearchableCollection
from cdc_agent.client.freshness import FreshAsOf, position_of_async

__all__ = ["AsyncIndex"]


class AsyncIndex:
    """As ``Index``, awaited. Belongs to one event loop.

    ``transport`` (httpx's) says how requests travel, if not over the network.
    """

    def __init__(
        self,
        url: str,
        collection: str,
        *,
        token: str | None = None,
        timeout_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.collection = collection
        self._timeout_s = timeout_s
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False, transport=transport
        )

    async def search(
        self,
        query: str,
        k: int = 5,
        where: Mapping[str, Any] | None = None,
        *,
        fresh_as_of: FreshAsOf | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """See ``Index.search``; ``fresh_as_of`` may also be an asynchronous connection."""
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        position = None if fresh_as_of is None else await position_of_async(fresh_as_of)
        body = protocol.search_body(self.collection, query, k, where, position, wait_s)
        return protocol.read_answer(await self._ask("POST", "/search", wait_s, json=body))

    async def wait(self, fresh_as_of: FreshAsOf, timeout_s: float | None = None) -> Freshness:
        """See ``Index.wait``."""
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        params = {"lsn": await position_of_async(fresh_as_of), "timeout_s": wait_s}
        return protocol.read_freshness(await self._ask("GET", "/wait", wait_s, params=params))

    async def freshness(self) -> Freshness:
        """See ``Index.freshness``."""
        params = {"lsn": protocol.REACHED, "timeout_s": 0}
        return protocol.read_freshness(await self._ask("GET", "/wait", self._timeout_s, params=params))

    async def document(self, document: str | int | Sequence[str | int]) -> Document | None:
        """See ``Index.document``."""
        path = protocol.document_path(self.collection, document)
        return protocol.read_document(await self._ask("GET", path, self._timeout_s))

    async def explain(self, document: str | int | Sequence[str | int]) -> Explanation:
        """See ``Index.explain``."""
        path = protocol.document_path(self.collection, document)
        return protocol.read_explanation(await self._ask("GET", path, self._timeout_s))

    async def collections(self) -> list[SearchableCollection]:
        """See ``Index.collections``."""
        return protocol.read_collections(await self._ask("GET", "/collections", self._timeout_s))

    async def _ask(self, method: str, path: str, wait_s: float, **content: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, timeout=wait_s + protocol.MARGIN_S, **content)
        except httpx.HTTPError as exc:
            raise protocol.unreachable(self.url, exc) from exc

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()
