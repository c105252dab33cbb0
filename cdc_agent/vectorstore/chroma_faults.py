"""What the errors of Chroma, of its client and of the network between mean to us. Measured with chromadb 1.5.9."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from cdc_agent.errors import StoreRejected, StoreUnavailable, VectorStoreError
from cdc_agent.vectorstore.records import StoreBlocked, StoreFailing, StoreHungUp

__all__ = ["WHERE", "TooLarge", "not_found", "translated"]

WHERE = "is the Chroma server running? `vectorstore.host` and `vectorstore.port` say where"
#: What it says when it cannot write: nothing is damaged by that. A lock is held by another connection of its own.
_BLOCKED = ("disk is full", "No space left", "readonly database", "disk I/O error", "database is locked")
_SLOW = "it may be overloaded: look at its log; if its disk was full and this stays so, restart the Chroma server"
_RESTART = "if this stays so, restart the Chroma server: after a full disk it may never be able to write again"
#: Statuses that blame what was sent.
_REFUSED = frozenset({400, 409, 413, 422})
_TOO_LARGE = 413
_FAILED = 500


class TooLarge(StoreRejected):
    """One call carries more bytes than the server takes."""


def not_found() -> type[Exception]:
    from chromadb.errors import NotFoundError

    found: type[Exception] = NotFoundError
    return found


@contextmanager
def translated() -> Iterator[None]:
    """Errors of Chroma and of the network as ours."""
    try:
        yield
    except VectorStoreError:
        raise
    except Exception as exc:
        raise _translation(exc) from exc


def _translation(exc: Exception) -> VectorStoreError:
    if isinstance(exc, httpx.TransportError):
        return _of_network(exc)
    # The answer was no JSON: a proxy, or another kind of server.
    if isinstance(exc, (json.JSONDecodeError, KeyError)):
        return StoreUnavailable("the vector store answered with something that Chroma does not say", hint=WHERE)
    status = _status(exc)
    if status == _TOO_LARGE:
        return TooLarge("the vector store takes no record this large", hint="store less metadata with each chunk")
    if status in _REFUSED:
        return StoreRejected(f"the vector store refuses this: {_first_line(exc)}")
    if status == _FAILED and any(words in str(exc) for words in _BLOCKED):
        return StoreBlocked(f"the vector store cannot write: {_first_line(exc)}", hint=_RESTART)
    kind = StoreFailing if status == _FAILED else StoreUnavailable
    return kind(f"the vector store failed: {_first_line(exc)}", hint=_hint(status, exc))


def _of_network(exc: httpx.TransportError) -> StoreUnavailable:
    if isinstance(exc, httpx.TimeoutException):
        return StoreUnavailable("the vector store did not answer in time", hint=_SLOW)
    if isinstance(exc, (httpx.RemoteProtocolError, httpx.ReadError)):
        return StoreHungUp(f"the vector store cannot be reached: {exc}", hint=WHERE)
    return StoreUnavailable(f"the vector store cannot be reached: {exc}", hint=WHERE)


def _status(exc: Exception) -> int | None:
    """The HTTP status behind an error, or the one that it would have."""
    from chromadb.errors import ChromaError

    if isinstance(exc, ChromaError):
        return int(exc.code())
    # Raised by the checks of Chroma's client, before anything was sent.
    if isinstance(exc, (ValueError, TypeError)):
        return 400
    # Chroma raises a bare Exception for an answer that it does not know; the answer is in its context.
    for cause in (exc, exc.__context__):
        if isinstance(cause, httpx.HTTPStatusError):
            return cause.response.status_code
    return None


def _hint(status: int | None, exc: Exception) -> str:
    if status in (401, 403):
        return "check `vectorstore.headers`"
    if "hnsw segment" in str(exc):
        return "check the free disk space; if there is enough, the index is damaged and has to be built again"
    return ""


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().partition("\n")[0] or type(exc).__name__)[:300]
