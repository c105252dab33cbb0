"""``Index``: one collection of a running daemon, for programs that wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from cdc_agent.client import protocol
from cdc_agent.client.answers import Answer, Document, Explanation, Freshness, SearchableCollection
from cdc_agent.client.freshness import FreshAsOf, position_of

__all__ = ["Index"]


class Index:
    """Searches one collection. Safe to call from several threads; keeps connections open until ``close``.

    ``token`` is one of the daemon's bearer tokens. Proxies of the environment are not used. Raises ``RequestRefused``,
    ``NotFreshYet`` or ``IndexUnavailable``; each says what to do.
    """

    def __init__(self, url: str, collection: str, *, token: str | None = None, timeout_s: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self.collection = collection
        self._timeout_s = timeout_s
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)

    def search(
        self,
        query: str,
        k: int = 5,
        where: Mapping[str, Any] | None = None,
        *,
        fresh_as_of: FreshAsOf | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """The ``k`` nearest chunks, best first.

        ``where`` is a condition on metadata with Chroma's operators. With ``fresh_as_of`` the answer holds every
        commit before that moment: an LSN, ``"now"``, or the connection that committed; ``NotFreshYet`` when the index
        does not get there within ``timeout_s``.
        """
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        position = None if fresh_as_of is None else position_of(fresh_as_of)
        body = protocol.search_body(self.collection, query, k, where, position, wait_s)
        return protocol.read_answer(self._ask("POST", "/search", wait_s, json=body))

    def wait(self, fresh_as_of: FreshAsOf, timeout_s: float | None = None) -> Freshness:
        """Return once the index holds every commit before ``fresh_as_of``."""
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        params = {"lsn": position_of(fresh_as_of), "timeout_s": wait_s}
        return protocol.read_freshness(self._ask("GET", "/wait", wait_s, params=params))

    def freshness(self) -> Freshness:
        """How fresh the index is now; waits for nothing."""
        params = {"lsn": protocol.REACHED, "timeout_s": 0}
        return protocol.read_freshness(self._ask("GET", "/wait", self._timeout_s, params=params))

    def document(self, document: str | int | Sequence[str | int]) -> Document | None:
        """What the index holds of one row: by its key (several columns as a sequence), or by the id that hits carry.

        None when it holds nothing; ``explain`` says why.
        """
        path = protocol.document_path(self.collection, document)
        return protocol.read_document(self._ask("GET", path, self._timeout_s))

    def explain(self, document: str | int | Sequence[str | int]) -> Explanation:
        """Why a row is, or is not, in the index; takes what ``document`` takes. May look twice, some seconds apart."""
        path = protocol.document_path(self.collection, document)
        return protocol.read_explanation(self._ask("GET", path, self._timeout_s))

    def collections(self) -> list[SearchableCollection]:
        """What can be searched here, this collection among others."""
        return protocol.read_collections(self._ask("GET", "/collections", self._timeout_s))

    def _ask(self, method: str, path: str, wait_s: float, **content: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, timeout=wait_s + protocol.MARGIN_S, **content)
        except httpx.HTTPError as exc:
            raise protocol.unreachable(self.url, exc) from exc

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
