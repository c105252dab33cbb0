"""The contract of every kind of sender: a delivery comes in, it is proven or refused, and becomes events."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from cdc_agent.cloudevents import parse_time
from cdc_agent.errors import WebhookMalformed
from cdc_agent.events import Event

__all__ = ["Delivery", "Receiver", "digest", "json_object", "parsed", "text_at", "time_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A request as it came. Names of ``headers`` are in lower case; ``source`` is our name of who sends."""

    source: str
    headers: Mapping[str, str]
    body: bytes
    received_at: dt.datetime


class Receiver(Protocol):
    """Takes what one kind of sender delivers. Pure."""

    def check_secret(self, secret: str) -> None:
        """Raises ``ConfigError`` when no sender of this kind could have such a secret."""
        ...

    def receive(self, delivery: Delivery, secrets: Sequence[str]) -> list[Event]:
        """What the delivery says: usually one event, none when it is only a sign of life.

        A delivery that is sent again gives events with the same ids. Raises ``WebhookRefused`` before it looks into the
        body, and ``WebhookMalformed`` when that is not what the sender documents.
        """
        ...


def parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise WebhookMalformed("the body is not JSON", hint="let the sender use application/json") from None


def json_object(body: bytes) -> dict[str, Any]:
    found = parsed(body)
    if not isinstance(found, dict):
        raise WebhookMalformed("the body is not a JSON object")
    return found


def text_at(body: Mapping[str, Any], *path: str) -> str:
    """The text at a path of keys. Raises ``WebhookMalformed`` when it is missing or no text."""
    found: Any = body
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    if not isinstance(found, str) or not found:
        raise WebhookMalformed(f"{'.'.join(path)} is missing or not text")
    return found


def time_of(text: str, name: str) -> dt.datetime:
    try:
        return parse_time(text)
    except ValueError:
        raise WebhookMalformed(f"{name} is not a time with its zone") from None


def digest(body: bytes) -> str:
    """Names a delivery whose sender signs nothing but the body: sent again it is the same, whatever its headers."""
    return hashlib.sha256(body).hexdigest()[:32]
