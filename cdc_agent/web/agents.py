"""Routes of the user's agents: who they are, what they could not handle, and events from outside."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cdc_agent.cloudevents import from_cloudevent, published
from cdc_agent.events import Event
from cdc_agent.journal.base import Letter
from cdc_agent.web.access import Door
from cdc_agent.web.answers import ApiError
from cdc_agent.web.requests import MAX_LETTERS, parse, read_body

__all__ = ["AgentService", "agent_doors"]

T = TypeVar("T")

#: Most events in one request.
_MAX_EVENTS = 1_000


class LettersRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: str = ""
    limit: int = Field(100, ge=1, le=MAX_LETTERS)


class AgentService(Protocol):
    """What the daemon offers of its agents. Safe to call from several threads."""

    def states(self) -> Sequence[Any]:
        """Every agent, by name: dataclasses of JSON-ready facts."""
        ...

    def letters(self, agent: str, limit: int) -> list[Letter]:
        """Dead letters of one agent, or of all (empty)."""
        ...

    def letter(self, agent: str, number: int) -> Letter | None: ...

    def move_letter(self, agent: str, number: int, action: str) -> bool:
        """``replay`` or ``discard``; False when there is no such letter that is parked."""
        ...

    def chain(self, event: Event) -> list[Event]:
        """What led to an event, the oldest first, as far as it is still known."""
        ...

    def emit(self, events: Sequence[Event]) -> int:
        """Record events from outside; how many were new. Raises ``UsageError`` for what nobody may or can do."""
        ...


class Operate(Protocol):
    """Runs something that may wait on a thread of its own."""

    async def __call__(self, call: Callable[[], T], /) -> T: ...


def agent_doors(service: Callable[[], AgentService], operate: Operate) -> list[Door]:
    """``service`` raises ``UsageError`` where no agents are configured."""
    routes = _AgentRoutes(service, operate)
    letter = "/agents/{agent}/letters/{number:int}"
    return [
        Door("/agents", routes.agents, methods=["GET"], scopes={"metrics", "admin"}),
        Door("/agents/letters", routes.letters, methods=["GET"], scopes={"admin"}),
        Door(letter, routes.letter, methods=["GET"], scopes={"admin"}),
        Door(letter + "/{action}", routes.move_letter, methods=["POST"], scopes={"admin"}),
        Door("/events", routes.events, methods=["POST"], scopes={"events", "admin"}),
    ]


class _AgentRoutes:
    def __init__(self, service: Callable[[], AgentService], operate: Operate) -> None:
        self._service = service
        self._operate = operate

    async def agents(self, request: Request) -> Response:  # noqa: ARG002 (Starlette passes it)
        states = await self._operate(lambda: self._service().states())
        return JSONResponse({"agents": [asdict(state) for state in states]})

    async def letters(self, request: Request) -> Response:
        asked = parse(LettersRequest, dict(request.query_params))
        found = await self._operate(lambda: self._service().letters(asked.agent, asked.limit))
        return JSONResponse({"letters": [_json_letter(letter) for letter in found]})

    async def letter(self, request: Request) -> Response:
        agent, number = _place(request)
        letter, chain = await self._operate(lambda: self._letter(agent, number))
        if letter is None:
            raise _no_letter(agent, number)
        event = published(letter.event)
        return JSONResponse({**_json_letter(letter), "event": event, "chain": [published(one) for one in chain]})

    def _letter(self, agent: str, number: int) -> tuple[Letter | None, list[Event]]:
        service = self._service()
        letter = service.letter(agent, number)
        return letter, service.chain(letter.event) if letter else []

    async def move_letter(self, request: Request) -> Response:
        agent, number = _place(request)
        action: str = request.path_params["action"]
        if action not in ("replay", "discard"):
            raise ApiError(404, f"a dead letter cannot {action}", "it can be replayed and discarded")
        if not await self._operate(lambda: self._service().move_letter(agent, number, action)):
            raise _no_letter(agent, number)
        return JSONResponse({"agent": agent, "number": number, "state": action}, 202)

    async def events(self, request: Request) -> Response:
        events = _told(await read_body(request), dt.datetime.now(dt.UTC))
        new = await self._operate(lambda: self._service().emit(events))
        return JSONResponse({"events": len(events), "new": new}, 202)


def _told(body: bytes, received_at: dt.datetime) -> list[Event]:
    """A structured CloudEvent, or a list of them."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise ApiError(
            400, f"the body is no JSON: {exc}", "a CloudEvent in structured JSON, or a list of them"
        ) from exc
    many = content if isinstance(content, list) else [content]
    if len(many) > _MAX_EVENTS:
        raise ApiError(413, f"{len(many)} events at once", f"at most {_MAX_EVENTS}")
    events = []
    for place, one in enumerate(many):
        if not isinstance(one, dict):
            raise ApiError(400, f"event {place} is no JSON object", "a CloudEvent in structured JSON")
        try:
            events.append(from_cloudevent(one, received_at=received_at))
        except ValueError as exc:
            raise ApiError(400, f"event {place} is no CloudEvent: {exc}", "see docs/AGENTS.md") from exc
    return events


def _json_letter(letter: Letter) -> dict[str, Any]:
    return {
        "agent": letter.agent,
        "number": letter.number,
        "state": letter.state,
        "reason": letter.reason,
        "error": letter.error,
        "attempts": letter.attempts,
        "parked_at": letter.parked_at.isoformat(timespec="milliseconds"),
        "type": letter.event.type,
        "key": letter.event.key,
        "event_id": letter.event.id,
        "trail": [step.partition(":")[0] for step in letter.event.trail],
    }


def _place(request: Request) -> tuple[str, int]:
    agent, number = request.path_params["agent"], request.path_params["number"]
    if number >= 2**63:
        raise _no_letter(agent, number)
    return agent, number


def _no_letter(agent: str, number: int) -> ApiError:
    return ApiError(404, f"agent {agent} has no dead letter {number} there", "GET /agents/letters lists them")
