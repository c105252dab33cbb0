"""What endpoints of OpenAI's kind have in common, for vectors as for chats: when to try again, what is wrong, and
answers that never end."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

__all__ = ["TRY_AGAIN", "error_code", "retry_after_seconds", "whole"]

#: Statuses that another try may mend, besides every 5xx.
TRY_AGAIN = frozenset({402, 408, 409, 425, 429})
#: Longest wait that an endpoint may ask for; a wrong clock there must not stop us for days.
LONGEST_RETRY_AFTER_S = 3600.0


def whole(parts: Iterable[bytes], deadline: float, largest: int) -> bytes:
    """The answer, of at most ``largest`` bytes, by ``deadline`` (monotonic). The client's own timeout starts anew with
    every part, this one does not. Raises ``httpx.ReadTimeout`` or ``httpx.DecodingError``."""
    found = bytearray()
    for part in parts:
        found += part
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout("the answer trickles")
        if len(found) > largest:
            raise httpx.DecodingError(f"the answer is larger than {largest} bytes")
    return bytes(found)


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """What a Retry-After header asks for, in seconds; None if it is absent or means nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now)
    if seconds != seconds:
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def _seconds_until(http_date: str, now: datetime) -> float:
    try:
        moment = parsedate_to_datetime(http_date)
    except ValueError:
        return float("nan")
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()


def error_code(content: bytes) -> str:
    """The endpoint's own code for an error. Never its sentence, which may quote the text or the key."""
    try:
        error = json.loads(content)["error"]
        code = error.get("code") or error.get("type")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f" ({code})" if isinstance(code, str) and re.fullmatch(r"[\w.-]{1,60}", code) else ""
