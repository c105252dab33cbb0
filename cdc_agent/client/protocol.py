"""Requests and failures of the HTTP interface. Pure; shared by both clients."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from cdc_agent.client import answers
from cdc_agent.client.answers import Answer, Document, Explanation, Freshness, SearchableCollection
from cdc_agent.errors import CdcAgentError
from cdc_agent.lsn import Lsn

__all__ = ["ClientError", "IndexUnavailable", "NotFreshYet", "RequestRefused"]

T = TypeVar("T")

#: The position that every index has reached: whoever waits for it is answered at once.
REACHED = "0/0"
#: Seconds that an answer may take beyond the time that the daemon was told to wait.
MARGIN_S = 5.0


class ClientError(CdcAgentError):
    """The daemon did not answer, or answered that it will not."""


class IndexUnavailable(ClientError):
    """The daemon cannot be reached, is overloaded or stopping, or its store is away."""

    retryable = True


class NotFreshYet(ClientError):
    """The index did not reach the wanted commit in time; ``applied_lsn`` is how far it is."""

    retryable = True

    def __init__(self, message: str, *, hint: str = "", applied_lsn: Lsn = Lsn(0)) -> None:
        super().__init__(message, hint=hint)
        self.applied_lsn = applied_lsn


class RequestRefused(ClientError):
    """The request can never be answered: no such collection, a condition that is none, no token."""


def search_body(
    collection: str, query: str, k: int, where: Mapping[str, Any] | None, min_lsn: str | None, timeout_s: float
) -> dict[str, Any]:
    body: dict[str, Any] = {"collection": collection, "query": query, "k": k}
    if where:
        body["where"] = dict(where)
    if min_lsn is not None:
        body |= {"min_lsn": min_lsn, "timeout_s": timeout_s}
    return body


def document_path(collection: str, document: str | int | Sequence[str | int]) -> str:
    """Where a document is: by the id that hits carry, or by the key of its row, several columns as a sequence."""
    if not isinstance(document, str | int):
        document = ",".join(str(part).replace("%", "%25").replace(",", "%2C") for part in document)
    return f"/documents/{quote(collection, safe='')}/{quote(str(document), safe='')}"


def read_answer(response: httpx.Response) -> Answer:
    return _read(response, lambda body: answers.answer(body, now=dt.datetime.now(dt.UTC)))


def read_freshness(response: httpx.Response) -> Freshness:
    return _read(response, answers.freshness)


def read_explanation(response: httpx.Response) -> Explanation:
    return _read(response, answers.explanation)


def read_document(response: httpx.Response) -> Document | None:
    return _read(response, answers.document)


def read_collections(response: httpx.Response) -> list[SearchableCollection]:
    return _read(response, answers.collections)


def _read(response: httpx.Response, read: Callable[[dict[str, Any]], T]) -> T:
    body = _checked(response)
    try:
        return read(body)
    except (KeyError, TypeError, ValueError) as exc:
        raise _not_ours(response) from exc


def unreachable(url: str, exc: httpx.HTTPError) -> IndexUnavailable:
    if isinstance(exc, httpx.TimeoutException):
        return IndexUnavailable(f"{url} did not answer in time", hint="raise timeout_s, or look at its /readyz")
    return IndexUnavailable(
        f"nothing answers at {url}: {exc}", hint="is `cdc-agent run` running, and is this its address?"
    )


def _checked(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise _not_ours(response)
    if response.is_success:
        return body
    message = str(body.get("error") or f"HTTP {response.status_code}")
    hint = str(body.get("hint") or "")
    if response.status_code == 504:
        raise NotFreshYet(message, hint=hint, applied_lsn=Lsn.parse(str(body.get("applied_lsn", "0/0"))))
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise IndexUnavailable(message, hint=hint)
    raise RequestRefused(message, hint=hint)


def _not_ours(response: httpx.Response) -> RequestRefused:
    return RequestRefused(
        f"what answers at {response.request.url} is not cdc-agent (HTTP {response.status_code})",
        hint="correct the address; the daemon logs its own at the start",
    )
