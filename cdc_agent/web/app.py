"""The routes. Each handler reads the request, calls the ``Service`` on a thread, and answers JSON.

Threads come from lanes with a bound, so that a store that hangs or a hundred waiting clients leave health, metrics
and status answerable. ``/healthz`` needs no thread at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cdc_agent import __version__, metrics
from cdc_agent.errors import CdcAgentError, NotPermitted, UsageError, WebhookMalformed, WebhookRefused
from cdc_agent.grants import SCOPES
from cdc_agent.health import Problem
from cdc_agent.journal.base import Query
from cdc_agent.ledger.base import Resync
from cdc_agent.lsn import Lsn
from cdc_agent.mcp.mounted import MountedTools
from cdc_agent.resync_order import ResyncOrder
from cdc_agent.verify.report import Wanted
from cdc_agent.web.access import ANYBODY, OPEN, AccessControl, Door, grant_of, only_doors
from cdc_agent.web.agents import agent_doors
from cdc_agent.web.answers import (
    ApiError,
    error_response,
    json_dead_letter,
    json_explanation,
    json_fact,
    json_hit,
    json_resync,
)
from cdc_agent.web.live import LiveSource
from cdc_agent.web.live_page import live_doors
from cdc_agent.web.requests import (
    FactsRequest,
    LetterListRequest,
    LettersRequest,
    MigrationRequest,
    Moment,
    ResyncRequest,
    SearchRequest,
    VerifyRequest,
    WaitRequest,
    parse,
    read_body,
)
from cdc_agent.web.sagas import saga_doors
from cdc_agent.web.service import LetterQuery, Service
from cdc_agent.web.tokens import Tokens

__all__ = ["create_app"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Longest single call of ``Service.wait``, in seconds.
_SLICE_S = 1.0


class Lane:
    """Some threads, and a queue in front of them that is refused when it is long."""

    def __init__(self, *, threads: int, queue: int) -> None:
        self._threads = threads
        self._queue = queue
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, call: Callable[[], T]) -> T:
        if self._limiter is None:  # Made here because it belongs to the running event loop.
            self._limiter = anyio.CapacityLimiter(self._threads)
        if self._limiter.statistics().tasks_waiting >= self._queue:
            raise ApiError(503, "too many requests at once", "try again in a second")
        return await to_thread.run_sync(call, limiter=self._limiter)


def create_app(service: Service, *, tokens: Tokens | None = None, live: LiveSource | None = None) -> Starlette:
    """The application over a service. Without ``tokens`` only this machine may call it; ``live`` feeds the page."""
    tokens = tokens or Tokens()
    routes = _Routes(service, tokens)
    doors = only_doors(
        [
            *routes.table(),
            *agent_doors(service.agents, routes.operate),
            *saga_doors(lambda: service.sagas(), routes.operate),
            *(live_doors(live, routes.operate) if live is not None else ()),
        ]
    )
    open_doors = [door for door in doors if door.scopes == OPEN]
    return Starlette(
        routes=doors,
        middleware=[Middleware(AccessControl, tokens=tokens, open_doors=open_doors)],
        exception_handlers={
            ApiError: _on_api_error,
            CdcAgentError: _on_our_error,
            HTTPException: _on_http_error,
            Exception: _on_bug,
        },
    )


class _Routes:
    def __init__(self, service: Service, tokens: Tokens) -> None:
        self._service = service
        self._tokens = tokens
        self._tools = MountedTools()
        self._searches = Lane(threads=16, queue=64)
        self._waits = Lane(threads=64, queue=64)
        self._operations = Lane(threads=8, queue=64)
        self._webhooks = Lane(threads=4, queue=128)

    def table(self) -> list[Door]:
        return [
            Door("/search", self.search, methods=["POST"], scopes={"search"}),
            Door("/collections", self.collections, methods=["GET"], scopes={"search"}),
            Door("/documents/{collection}/{document:path}", self.document, methods=["GET"], scopes={"search"}),
            Door("/mcp", self._tools, methods=["POST"], scopes={"search"}),
            Door("/wait", self.wait, methods=["GET"], scopes={"search", "admin"}),
            Door("/healthz", self.healthz, methods=["GET"], scopes=OPEN),
            Door("/readyz", self.readyz, methods=["GET"], scopes=ANYBODY),
            Door("/whoami", self.whoami, methods=["GET"], scopes=ANYBODY),
            Door("/metrics", self.metrics, methods=["GET"], scopes={"metrics"}),
            Door("/status", self.status, methods=["GET"], scopes={"metrics", "admin"}),
            Door("/dead-letters", self.dead_letters, methods=["GET"], scopes={"admin"}),
            Door("/dead-letters/replay", self.replay_dead_letters, methods=["POST"], scopes={"admin"}),
            Door("/dead-letters/discard", self.discard_dead_letters, methods=["POST"], scopes={"admin"}),
            Door("/dead-letters/{letter_id:int}", self.dead_letter, methods=["GET"], scopes={"admin"}),
            Door("/dead-letters/{letter_id:int}/replay", self.replay_dead_letter, methods=["POST"], scopes={"admin"}),
            Door("/dead-letters/{letter_id:int}/discard", self.discard_dead_letter, methods=["POST"], scopes={"admin"}),
            Door("/facts", self.facts, methods=["GET"], scopes={"admin"}),
            # Whoever sends carries no token of ours: the signature is the proof.
            Door("/webhooks/{source}", self.webhook, methods=["POST"], scopes=OPEN),
            Door("/migrations", self.migrations, methods=["GET"], scopes={"admin"}),
            Door("/migrations", self.start_migration, methods=["POST"], scopes={"admin"}),
            Door("/migrations/{collection}/{action}", self.move_migration, methods=["POST"], scopes={"admin"}),
            Door("/resyncs", self.resyncs, methods=["GET"], scopes={"admin"}),
            Door("/resyncs", self.start_resync, methods=["POST"], scopes={"admin"}),
            Door("/resyncs/{resync_id:int}/{action}", self.move_resync, methods=["POST"], scopes={"admin"}),
            Door("/verifies", self.verifies, methods=["GET"], scopes={"admin"}),
            Door("/verifies", self.start_verify, methods=["POST"], scopes={"admin"}),
            Door("/verifies/{number:int}", self.verify, methods=["GET"], scopes={"admin"}),
        ]

    async def operate(self, call: Callable[[], T]) -> T:
        """Run something that is neither a search nor a wait."""
        return await self._operations.run(call)

    async def search(self, request: Request) -> Response:
        wanted = parse(SearchRequest, await read_body(request))
        if wanted.min_lsn is not None:
            await self._reach(request, wanted.min_lsn, wanted.timeout_s)
        within = grant_of(request).where
        return JSONResponse(await self._searches.run(lambda: self._found(wanted, within)))

    def _found(self, wanted: SearchRequest, within: Mapping[str, Any] | None) -> dict[str, Any]:
        # Read before the search: the hits are at least as fresh as the answer says.
        fresh = self._freshness(self._service.applied_lsn())
        where = wanted.where or None
        hits = self._service.search(wanted.collection, wanted.query, k=wanted.k, where=where, within=within)
        return {**fresh, "hits": [json_hit(hit) for hit in hits]}

    async def collections(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse({"collections": list(await self._operations.run(self._service.collections))})

    async def document(self, request: Request) -> Response:
        collection: str = request.path_params["collection"]
        document: str = request.path_params["document"]
        within = grant_of(request).where
        explanation = await self._operations.run(lambda: self._service.explain(collection, document, within=within))
        if explanation is None:
            raise ApiError(404, f"there is no document {document!r} that this token may see", "hits carry their ids")
        return JSONResponse(json_explanation(explanation))

    def _freshness(self, applied_lsn: Lsn) -> dict[str, Any]:
        return {"applied_lsn": str(applied_lsn), "lag_s": self._service.lag_s()}

    async def wait(self, request: Request) -> Response:
        wanted = parse(WaitRequest, dict(request.query_params))
        applied_lsn = await self._reach(request, wanted.lsn, wanted.timeout_s)
        return JSONResponse(await self._operations.run(lambda: self._freshness(applied_lsn)))

    async def _reach(self, request: Request, moment: Moment, timeout_s: float) -> Lsn:
        """Wait in slices: a client that hung up or a server that stops frees its thread within a second."""
        deadline = time.monotonic() + timeout_s
        lsn = moment if isinstance(moment, Lsn) else await self._operations.run(self._service.source_lsn)
        while True:
            slice_s = min(_SLICE_S, max(0.0, deadline - time.monotonic()))
            reached = await self._waits.run(lambda slice_s=slice_s: self._wait_once(lsn, slice_s))  # type: ignore[misc]
            if reached is not None:
                return reached
            if time.monotonic() >= deadline or await request.is_disconnected():
                raise self._not_reached(lsn, timeout_s)

    def _wait_once(self, lsn: Lsn, timeout_s: float) -> Lsn | None:
        try:
            return self._service.wait(lsn, timeout_s)
        except TimeoutError:
            return None

    def _not_reached(self, lsn: Lsn, timeout_s: float) -> ApiError:
        applied_lsn = self._service.applied_lsn()
        return ApiError(
            504,
            f"the index did not reach {lsn} within {timeout_s:g} s; it is at {applied_lsn}",
            "ask again with a longer timeout_s; /readyz says whether something is wrong",
            {"applied_lsn": str(applied_lsn)},
        )

    async def healthz(self, request: Request) -> Response:  # noqa: ARG002 (Starlette passes it)
        if not self._service.alive():
            hint = "start the daemon anew, and keep its log: it must never hang"
            return error_response(503, "the replication loop stands still", hint, status="hung")
        return JSONResponse({"status": "ok", "version": __version__})

    async def readyz(self, request: Request) -> Response:
        problems = await self._operations.run(self._service.readiness)
        if not any(problem.serious for problem in problems):
            told = [] if grant_of(request).where is not None else [_listed(problem) for problem in problems]
            return JSONResponse({"status": "ready", "problems": told})
        names = ", ".join(p.name for p in problems)
        if grant_of(request).where is not None:
            # What is wrong may name other tenants' tables and keys.
            return error_response(503, f"not ready: {names}", "the operator's token says more", status="not ready")
        listed = [_listed(problem) for problem in problems]
        return error_response(503, f"not ready: {names}", problems[0].hint, status="not ready", problems=listed)

    async def whoami(self, request: Request) -> Response:
        """For pages and people: whether the token is good, and what for."""
        grant = grant_of(request)
        scopes = [scope for scope in SCOPES if grant.allows(scope)]
        return JSONResponse({"name": grant.name, "scopes": scopes, "where": grant.where, "tokens": bool(self._tokens)})

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        text = await self._operations.run(self._service.metrics)
        return Response(text, headers={"content-type": metrics.CONTENT_TYPE})

    async def status(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse(await self._operations.run(self._service.status))

    async def dead_letters(self, request: Request) -> Response:
        asked = parse(LetterListRequest, dict(request.query_params))
        wanted = LetterQuery(collection=asked.collection, reason=asked.reason, after=asked.after, limit=asked.limit)
        page = await self._operations.run(lambda: self._service.dead_letters(wanted))
        letters = [json_dead_letter(letter) for letter in page.letters]
        return JSONResponse({"dead_letters": letters, "next_after": page.next_after, "total": page.total})

    async def replay_dead_letters(self, request: Request) -> Response:
        wanted = await _letters_wanted(request)
        count = await self._operations.run(lambda: self._service.replay_dead_letters(wanted))
        return JSONResponse({"replayed": count}, 202)

    async def discard_dead_letters(self, request: Request) -> Response:
        wanted = await _letters_wanted(request)
        count = await self._operations.run(lambda: self._service.discard_dead_letters(wanted))
        return JSONResponse({"discarded": count})

    async def dead_letter(self, request: Request) -> Response:
        letter_id = _letter_id(request)
        letter = await self._operations.run(lambda: self._service.dead_letter(letter_id))
        if letter is None:
            raise _no_letter(letter_id)
        return JSONResponse(json_dead_letter(letter))

    async def replay_dead_letter(self, request: Request) -> Response:
        letter_id = _letter_id(request)
        if not await self._operations.run(lambda: self._service.replay_dead_letter(letter_id)):
            raise _no_letter(letter_id)
        return JSONResponse({"id": letter_id, "replayed": True}, 202)

    async def discard_dead_letter(self, request: Request) -> Response:
        letter_id = _letter_id(request)
        if not await self._operations.run(lambda: self._service.discard_dead_letter(letter_id)):
            raise _no_letter(letter_id)
        return JSONResponse({"id": letter_id, "discarded": True})

    async def resyncs(self, request: Request) -> Response:  # noqa: ARG002
        resyncs = await self._operations.run(self._service.resyncs)
        return JSONResponse({"resyncs": [self._json_resync(resync) for resync in resyncs]})

    async def start_resync(self, request: Request) -> Response:
        wanted = parse(ResyncRequest, await read_body(request))
        order = ResyncOrder(
            collection=wanted.collection,
            table=wanted.table,
            keys=tuple(tuple(key) for key in wanted.keys),
            where=wanted.where,
            rewrite=wanted.rewrite,
            reason=wanted.reason,
        )
        begun = await self._operations.run(lambda: self._service.start_resync(order))
        return JSONResponse({"resyncs": [self._json_resync(resync) for resync in begun]}, 202)

    async def move_resync(self, request: Request) -> Response:
        number: int = request.path_params["resync_id"]
        action: str = request.path_params["action"]
        if action not in ("pause", "resume", "cancel"):
            raise ApiError(404, f"a resync cannot {action}", "it can be paused, resumed and cancelled")
        moved = None
        if number < 2**63:
            moved = await self._operations.run(lambda: self._service.move_resync(number, action))
        if moved is None:
            raise ApiError(404, f"there is no resync {number}", "GET /resyncs lists them")
        return JSONResponse(self._json_resync(moved))

    async def facts(self, request: Request) -> Response:
        wanted = Query(**parse(FactsRequest, dict(request.query_params)).model_dump())
        found = await self._operations.run(lambda: self._service.facts(wanted))
        next_after = found[-1].number if len(found) == wanted.limit else None
        return JSONResponse({"facts": [json_fact(entry) for entry in found], "next_after": next_after})

    async def webhook(self, request: Request) -> Response:
        source: str = request.path_params["source"]
        most = self._service.webhook_limit(source)
        if most is None:
            raise ApiError(404, "there is no such webhook", "webhooks in the configuration names who may deliver")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "the body is compressed", "send it as it is: that is what is signed")
        body = await read_body(request, most)
        headers = dict(request.headers)
        receipt = await self._webhooks.run(lambda: self._service.take_webhook(source, headers, body))
        return JSONResponse({"events": receipt.events, "new": receipt.new}, 202)

    async def migrations(self, request: Request) -> Response:  # noqa: ARG002
        found = await self._operations.run(self._service.migrations)
        return JSONResponse({"generations": list(found)})

    async def start_migration(self, request: Request) -> Response:
        wanted = parse(MigrationRequest, await read_body(request))
        begun = await self._operations.run(lambda: self._service.start_migration(wanted.collection))
        return JSONResponse({"generations": list(begun)}, 202)

    async def move_migration(self, request: Request) -> Response:
        collection: str = request.path_params["collection"]
        action: str = request.path_params["action"]
        if action not in ("switch", "rollback", "finish", "abort"):
            raise ApiError(404, f"there is no step {action}", "steps: switch, rollback, finish, abort")
        moved = await self._operations.run(lambda: self._service.move_migration(collection, action))
        return JSONResponse({"generations": list(moved)})

    def _json_resync(self, resync: Resync) -> dict[str, Any]:
        return json_resync(resync, self._service.resync_rate(resync.id))

    async def verifies(self, request: Request) -> Response:  # noqa: ARG002
        reports = await self._operations.run(self._service.verifies)
        return JSONResponse({"verifies": [report.as_json(listed=False) for report in reports]})

    async def verify(self, request: Request) -> Response:
        number: int = request.path_params["number"]
        report = await self._operations.run(lambda: self._service.verify(number))
        if report is None:
            raise ApiError(404, f"there is no audit {number}", "GET /verifies lists those since the daemon's start")
        return JSONResponse(report.as_json())

    async def start_verify(self, request: Request) -> Response:
        asked = parse(VerifyRequest, await read_body(request))
        wanted = Wanted(collection=asked.collection, table=asked.table, sample=asked.sample, repair=asked.repair)
        report = await self._operations.run(lambda: self._service.start_verify(wanted))
        return JSONResponse(report.as_json(), 202)


async def _letters_wanted(request: Request) -> LetterQuery:
    asked = parse(LettersRequest, await read_body(request))
    if not (asked.all or asked.collection or asked.reason):
        raise ApiError(400, "which dead letters?", "give collection, reason, or all: true")
    return LetterQuery(collection=asked.collection, reason=asked.reason)


def _letter_id(request: Request) -> int:
    letter_id: int = request.path_params["letter_id"]
    if letter_id >= 2**63:
        raise _no_letter(letter_id)
    return letter_id


def _no_letter(letter_id: int) -> ApiError:
    return ApiError(404, f"there is no dead letter {letter_id}", "GET /dead-letters lists them")


# Failures.

#: After 408 and 413 the rest of the body is not wanted, so the connection ends.
_HEADERS = {503: {"Retry-After": "1"}, 408: {"Connection": "close"}, 413: {"Connection": "close"}}


async def _on_api_error(request: Request, exc: Exception) -> Response:  # noqa: ARG001
    assert isinstance(exc, ApiError)
    return error_response(exc.status, exc.error, exc.hint, headers=_HEADERS.get(exc.status), **exc.more)


async def _on_our_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, CdcAgentError)
    if isinstance(exc, WebhookRefused):
        return error_response(401, exc.message, exc.hint)
    if isinstance(exc, UsageError | WebhookMalformed):
        return error_response(400, exc.message, exc.hint)
    if isinstance(exc, NotPermitted):
        return error_response(403, exc.message, exc.hint)
    log.warning("request failed path=%s error=%s: %s", request.url.path, type(exc).__name__, exc.message)
    if exc.retryable:
        return error_response(503, exc.message, exc.hint, headers={"Retry-After": "1"})
    return error_response(500, exc.message, exc.hint)


async def _on_http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    routes = ", ".join(sorted(route.path for route in request.app.routes))
    hints = {404: f"routes: {routes}", 405: f"{request.url.path} does not take {request.method}"}
    return error_response(exc.status_code, exc.detail, hints.get(exc.status_code, ""), headers=exc.headers)


async def _on_bug(request: Request, exc: Exception) -> Response:  # noqa: ARG001 (the server logs it)
    return error_response(500, "the daemon failed on this request", "its log says why")


def _listed(problem: Problem) -> dict[str, str]:
    return {"name": problem.name, "message": problem.message, "hint": problem.hint}
