"""Signs webhook deliveries as their senders do. Written from the senders' documentation, not from our own code."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import orjson

__all__ = ["STANDARD_SECRET", "github", "notion", "standard", "stripe"]

STANDARD_SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes....").decode()


def _digest(key: bytes, signed: bytes) -> hmac.HMAC:
    return hmac.new(key, signed, hashlib.sha256)


def github(body: Any, secret: str, event: str = "push", delivery: str = "d-1") -> tuple[dict[str, str], bytes]:
    raw = orjson.dumps(body)
    signature = _digest(secret.encode(), raw).hexdigest()
    headers = {"X-GitHub-Event": event, "X-GitHub-Delivery": delivery, "X-Hub-Signature-256": f"sha256={signature}"}
    return headers, raw


def notion(body: Any, secret: str) -> tuple[dict[str, str], bytes]:
    raw = orjson.dumps(body)
    return {"X-Notion-Signature": f"sha256={_digest(secret.encode(), raw).hexdigest()}"}, raw


def stripe(body: Any, secret: str, at_s: float) -> tuple[dict[str, str], bytes]:
    raw = orjson.dumps(body)
    signature = _digest(secret.encode(), f"{int(at_s)}.".encode() + raw).hexdigest()
    return {"Stripe-Signature": f"t={int(at_s)},v1={signature}"}, raw


def standard(body: Any, secret: str, at_s: float, delivery: str = "msg_1") -> tuple[dict[str, str], bytes]:
    raw = b"" if body is None else orjson.dumps(body)
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(_digest(key, f"{delivery}.{int(at_s)}.".encode() + raw).digest()).decode()
    headers = {
        "webhook-id": delivery,
        "webhook-timestamp": str(int(at_s)),
        "webhook-signature": f"v1,{signature}",
    }
    return headers, raw
