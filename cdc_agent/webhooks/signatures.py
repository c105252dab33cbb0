"""How senders sign a delivery, and what it takes to believe one. Pure; every comparison takes the same time.

All of them are an HMAC-SHA256 over the raw body; they differ in what else is signed and in how it is written. Whatever
is wrong with a header is a ``WebhookRefused``: a sender who is not proven learns no more than that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence

from cdc_agent.errors import ConfigError, WebhookRefused

__all__ = ["TOLERANCE_S", "check_standard_secret", "verify_hex", "verify_standard", "verify_stripe"]

#: Seconds that the signed time of a delivery may be away from ours.
TOLERANCE_S = 300.0
#: More signatures than anybody who rotates keys sends.
_MOST_SIGNATURES = 10
_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)


def verify_hex(header: str | None, body: bytes, secrets: Sequence[str]) -> None:
    """``sha256=<hex>`` over the body: GitHub's ``X-Hub-Signature-256`` and Notion's ``X-Notion-Signature``.

    https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries
    """
    scheme, _, given = (header or "").partition("=")
    if scheme != "sha256":
        raise _refused("there is no sha256 signature")
    _one_matches([given], [_hex(secret.encode(), body) for secret in secrets])


def verify_stripe(header: str | None, body: bytes, secrets: Sequence[str], now_s: float) -> None:
    """``t=<seconds>,v1=<hex>,v1=<hex>`` over ``<seconds>.<body>``. https://docs.stripe.com/webhooks/signature"""
    parts = [part.partition("=") for part in (header or "").split(",", 3 * _MOST_SIGNATURES)]
    times = [value for name, _, value in parts if name.strip() == "t"]
    given = [value for name, _, value in parts if name.strip() == "v1"]
    if len(times) != 1:
        raise _refused("the signature has no time")
    _check_time(times[0], now_s)
    signed = times[0].encode() + b"." + body
    _one_matches(given, [_hex(secret.encode(), signed) for secret in secrets])


def verify_standard(headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now_s: float) -> str:
    """Standard Webhooks: base64 over ``<id>.<seconds>.<body>``; returns the id, which is signed.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    delivery, seconds = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not delivery:
        raise _refused("there is no webhook-id")
    _check_time(seconds, now_s)
    signed = b".".join([_bytes(delivery), seconds.encode(), body])
    versions = [part.partition(",") for part in headers.get("webhook-signature", "").split(" ")]
    given = [value for version, _, value in versions if version == "v1"]
    _one_matches(given, [_base64(_standard_key(secret), signed) for secret in secrets])
    return delivery


def check_standard_secret(secret: str) -> None:
    """Raises ``ConfigError`` when a secret is no key of Standard Webhooks."""
    try:
        size = len(_standard_key(secret))
    except (ValueError, binascii.Error):
        size = 0
    if size not in _KEY_BYTES:
        raise ConfigError(
            "the secret is not whsec_ and base64 of 24 to 64 bytes",
            hint="copy it from the sender, or make one: echo whsec_$(openssl rand -base64 32)",
        )


def _standard_key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)


def _check_time(seconds: str, now_s: float) -> None:
    """Digits only: what ``float`` or ``int`` would take besides is not what was signed by anybody we know."""
    if not (seconds.isascii() and seconds.isdigit() and len(seconds) <= 12):
        raise _refused("its time is not in seconds")
    if abs(int(seconds) - now_s) > TOLERANCE_S:
        raise _refused(f"its time is more than {TOLERANCE_S:g} s away from ours")


def _one_matches(given: Sequence[str], wanted: Sequence[str]) -> None:
    if not wanted:
        raise _refused("we have no secret of its sender")
    if len(given) > _MOST_SIGNATURES:
        raise _refused("it has too many signatures")
    if not _any(hmac.compare_digest(_bytes(one), other.encode()) for one in given for other in wanted):
        raise _refused("no signature is right")


def _any(matches: Iterable[bool]) -> bool:
    """Without stopping at the first."""
    return sum(matches) > 0


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _hmac(encode: Callable[[bytes], str]) -> Callable[[bytes, bytes], str]:
    return lambda key, signed: encode(hmac.new(key, signed, hashlib.sha256).digest())


_hex = _hmac(bytes.hex)
_base64 = _hmac(lambda digest: base64.b64encode(digest).decode())


def _refused(why: str) -> WebhookRefused:
    return WebhookRefused(f"the delivery is not proven: {why}", hint="compare the secret here with the sender's")
