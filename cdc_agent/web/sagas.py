"""Routes of sagas: which are under way, what became of one, and answers to those that wait for somebody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cdc_agent.web.access import Door, grant_of
from cdc_agent.web.answers import ApiError
from cdc_agent.web.requests import parse, read_body

__all__ = ["SagaService", "saga_doors"]

T = TypeVar("T")

#: Most sagas in one answer.
_MAX_SAGAS = 1_000
_ACTIONS = ("approve", "reject", "cancel")


class SagasRequest(BaseModel):
    """``state`` may be one of a saga, ``open``, ``orphaned``, or ``all``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: str = "open"
    saga: str = ""
    after: int = Field(0, ge=0, lt=2**63)
    limit: int = Field(100, ge=1, le=_MAX_SAGAS)


class AnswerRequest(BaseModel):
    """``step``: only if the saga waits at this one; ``by`` and ``note`` are kept with the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str = ""
    by: str = Field("", max_length=200)
    note: str = Field("", max_length=2_000)


class SagaService(Protocol):
    """What the daemon offers of its sagas. Safe to call from several threads; answers are JSON-ready."""

    def find(self, *, state: str, name: str, after: int, limit: int) -> Sequence[Mapping[str, Any]]:
        """Raises ``UsageError`` for a state that there is not."""
        ...

    def counts(self) -> Mapping[str, int]:
        """How many are under way, by state."""
        ...

    def show(self, saga_id: str) -> Mapping[str, Any] | None: ...

    def act(self, saga_id: str, action: str, *, step: str, by: str, note: str, token: str) -> Mapping[str, Any] | None:
        """Raises ``UsageError`` when the saga is not where this can be done."""
        ...


class Operate(Protocol):
    """Runs something that may wait on a thread of its own."""

    async def __call__(self, call: Callable[[], T], /) -> T: ...


def saga_doors(service: Callable[[], SagaService], operate: Operate) -> list[Door]:
    """``service`` raises ``UsageError`` where there are no sagas."""
    routes = _SagaRoutes(service, operate)
    return [
        Door("/sagas", routes.sagas, methods=["GET"], scopes={"admin"}),
        Door("/sagas/{saga_id}", routes.saga, methods=["GET"], scopes={"admin"}),
        Door("/sagas/{saga_id}/{action}", routes.answer, methods=["POST"], scopes={"admin"}),
    ]


class _SagaRoutes:
    def __init__(self, service: Callable[[], SagaService], operate: Operate) -> None:
        self._service = service
        self._operate = operate

    async def sagas(self, request: Request) -> Response:
        asked = parse(SagasRequest, dict(request.query_params))
        state = "" if asked.state == "all" else asked.state
        found, counts = await self._operate(lambda: self._found(asked, state))
        next_after = found[-1]["number"] if len(found) == asked.limit else None
        return JSONResponse({"sagas": list(found), "counts": counts, "next_after": next_after})

    def _found(self, asked: SagasRequest, state: str) -> tuple[Sequence[Mapping[str, Any]], dict[str, int]]:
        service = self._service()
        return service.find(state=state, name=asked.saga, after=asked.after, limit=asked.limit), dict(service.counts())

    async def saga(self, request: Request) -> Response:
        saga_id: str = request.path_params["saga_id"]
        found = await self._operate(lambda: self._service().show(saga_id))
        return JSONResponse(_there(saga_id, found))

    async def answer(self, request: Request) -> Response:
        saga_id, action = request.path_params["saga_id"], request.path_params["action"]
        if action not in _ACTIONS:
            raise ApiError(404, f"a saga cannot {action}", "there are " + ", ".join(_ACTIONS))
        asked = parse(AnswerRequest, await read_body(request))
        # Anybody can say who they are; by which token they came in is not theirs to say.
        token = grant_of(request).name
        found = await self._operate(
            lambda: self._service().act(saga_id, action, step=asked.step, by=asked.by, note=asked.note, token=token)
        )
        return JSONResponse(_there(saga_id, found))


def _there(saga_id: str, found: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if found is None:
        raise ApiError(404, f"there is no saga {saga_id}", "GET /sagas lists them")
    return found
