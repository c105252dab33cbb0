"""Requests: their shapes, and how a body is read without trusting its length, its speed or its content."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from cdc_agent.config.problems import key_path
from cdc_agent.events import Kind
from cdc_agent.lsn import Lsn
from cdc_agent.search import MAX_K
from cdc_agent.web.answers import ApiError

__all__ = [
    "MAX_BODY_BYTES",
    "MAX_FACTS",
    "MAX_LETTERS",
    "MAX_SAMPLE",
    "MAX_WAIT_S",
    "FactsRequest",
    "LetterListRequest",
    "LettersRequest",
    "Moment",
    "MigrationRequest",
    "ResyncRequest",
    "SearchRequest",
    "VerifyRequest",
    "WaitRequest",
    "parse",
    "read_body",
]

MAX_BODY_BYTES = 1024 * 1024
#: Seconds within which a whole body must arrive.
BODY_TIMEOUT_S = 15.0
#: Most seconds that one request may wait for a position.
MAX_WAIT_S = 300.0
#: Most facts in one answer.
MAX_FACTS = 1_000
#: Most dead letters in one answer.
MAX_LETTERS = 1_000
#: Most chunks that one audit embeds again.
MAX_SAMPLE = 100_000

Shape = TypeVar("Shape", bound=BaseModel)


#: The moment at which the request arrives.
NOW: Final = "now"


def _moment(value: Any) -> Any:
    """Read text; an LSN is also an int in Python, and JSON numbers would pass for positions."""
    if not isinstance(value, str):
        raise ValueError(f'should be text like 16/B374D848, or "{NOW}"')
    return value if value == NOW else Lsn.parse(value)


Moment = Annotated[Lsn | Literal["now"], BeforeValidator(_moment, json_schema_input_type=str)]
Timeout = Annotated[float, Field(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class SearchRequest(_Shape):
    collection: str
    query: str
    k: int = Field(5, ge=1, le=MAX_K, strict=True)
    where: dict[str, Any] | None = None
    min_lsn: Moment | None = None
    timeout_s: Timeout = 10.0


class WaitRequest(_Shape):
    lsn: Moment
    timeout_s: Timeout = 10.0


class MigrationRequest(_Shape):
    collection: str | None = None


class ResyncRequest(_Shape):
    collection: str | None = None
    table: str | None = None
    keys: list[Annotated[list[str], Field(min_length=1)]] = Field(default=[], max_length=10_000)
    where: str = Field("", max_length=10_000)
    rewrite: bool = Field(False, strict=True)
    reason: str = Field("", max_length=200)


class LetterListRequest(_Shape):
    collection: str | None = None
    reason: str | None = None
    after: int = Field(0, ge=0, lt=2**63)
    limit: int = Field(100, ge=1, le=MAX_LETTERS)


class LettersRequest(_Shape):
    """Which dead letters; ``all`` has to be said when it is every one of them."""

    collection: str | None = None
    reason: str | None = None
    all: bool = Field(False, strict=True)


class VerifyRequest(_Shape):
    collection: str | None = None
    table: str | None = None
    sample: int = Field(100, ge=0, le=MAX_SAMPLE, strict=True)
    repair: bool = False


class FactsRequest(_Shape):
    kind: Kind | None = None
    correlation_id: str = ""
    type: str = ""
    key: str = ""
    source: str = ""
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    after: int = Field(0, ge=0, lt=2**63)
    limit: int = Field(100, ge=1, le=MAX_FACTS)


async def read_body(request: Request, most: int = MAX_BODY_BYTES) -> bytes:
    """The body, refused as soon as it is known to be too large, given up when it does not come."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            _check_size(int(request.headers.get("content-length") or 0), most)
            async for part in request.stream():
                body += part
                _check_size(len(body), most)
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", f"send it within {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise ApiError(400, "the client went away", "") from None
    return bytes(body)


def parse(shape: type[Shape], content: bytes | dict[str, str]) -> Shape:
    """Raises ``ApiError`` 400 that names the field."""
    try:
        if isinstance(content, dict):
            return shape.model_validate(content)
        return shape.model_validate_json(content or b"{}")
    except ValidationError as exc:
        raise _bad_request(exc, shape) from None


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ApiError(413, "the body is too large", f"the most is {most} bytes")


def _bad_request(exc: ValidationError, shape: type[BaseModel]) -> ApiError:
    first = exc.errors(include_url=False, include_input=False)[0]
    field = key_path(first["loc"])
    known = ", ".join(shape.model_fields)
    match first["type"]:
        case "json_invalid":
            return ApiError(400, f"the body is not JSON: {first['msg']}", f"send an object with {known}")
        case "model_type" | "model_attributes_type":
            return ApiError(400, "the body is not a JSON object", f"send an object with {known}")
        case "missing":
            return ApiError(400, f"{field} is missing", f"fields: {known}")
        case "extra_forbidden":
            return ApiError(400, f"{field} is not a known field", f"fields: {known}")
        case _:
            fault = first["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
            fault = fault.replace("a valid dictionary", "an object").replace("a valid string", "text")
            return ApiError(400, f"{field}: {fault}", f"fields: {known}")
