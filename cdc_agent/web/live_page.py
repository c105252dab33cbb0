"""The live page at ``/``: one document that needs nothing else, and what it may do, which is close to nothing.

The parts lie in ``page/`` and are put together once. The policy names the hashes of the one style and the one script,
so neither an attribute nor a value that comes from a row can become code.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from cdc_agent.web.access import OPEN, Door, grant_of
from cdc_agent.web.live import LiveHub, LiveSource, RunBlocking

__all__ = ["live_doors", "page"]

#: The script's parts, in order.
_SCRIPTS = ("format.js", "chart.js", "panels.js", "live.js")


class Page(NamedTuple):
    body: bytes
    headers: dict[str, str]


@functools.cache
def page() -> Page:
    """The document, and the headers that it comes with."""
    style = _part("page.css")
    script = "".join(["'use strict';\n", *(_part(name) for name in _SCRIPTS)])
    body = _part("index.html").replace("/*style*/", style).replace("/*script*/", script)
    policy = [
        "default-src 'none'",
        f"style-src {_hash(style)}",
        f"script-src {_hash(script)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": "; ".join(policy),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Page(body.encode(), headers)


def live_doors(source: LiveSource, run: RunBlocking) -> list[Door]:
    """``/`` for everybody, because it holds nothing, and ``/live``, with keys of rows for administrators alone."""
    hub = LiveHub(source, run)

    async def show(request: Request) -> Response:  # noqa: ARG001 (Starlette passes it)
        return Response(page().body, headers=page().headers)

    async def live(request: Request) -> Response:
        return hub.watch(with_keys=grant_of(request).allows("admin"))

    return [
        Door("/", show, methods=["GET"], scopes=OPEN),
        Door("/live", live, methods=["GET"], scopes={"metrics", "admin"}),
    ]


def _part(name: str) -> str:
    return resources.files("cdc_agent.web").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
