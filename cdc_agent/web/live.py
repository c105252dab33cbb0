"""``/live``: the daemon's state as server-sent events, read once for all who watch and not at all when nobody does.

Each watcher is sent the newest state whenever it can take one, so a slow one misses states and holds nobody up; changes
come from a ring of their own, from where that watcher is. The number of watchers is bounded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cdc_agent.web.answers import ApiError

__all__ = ["LiveHub", "LiveSource", "Part"]

log = logging.getLogger(__name__)

#: Who may watch at once.
MAX_WATCHERS = 32
#: Changes of the past that a watcher is told of at first; a resync's rows among them show as one line.
_PAST_CHANGES = 200
#: A watcher that takes nothing for so long is let go.
_SEND_TIMEOUT_S = 30.0
#: How soon a watcher notices that the daemon stops, at the latest.
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the state, and how often it is read while somebody watches. ``read`` may block."""

    name: str
    every_s: float
    read: Callable[[], Any]


class LiveSource(Protocol):
    """What the daemon offers to watchers. JSON-ready, without the value of any cell."""

    @property
    def stopping(self) -> bool: ...
    @property
    def newest_change(self) -> int: ...
    def parts(self) -> Sequence[Part]:
        """The first of them is what watchers are told of as soon as it is read; the others come with it."""
        ...

    def hello(self) -> dict[str, Any]:
        """What a watcher is told once, at the beginning. Does not block."""
        ...

    def changes(self, after: int) -> Sequence[dict[str, Any]]:
        """What was indexed after change ``after``, oldest first, each with its ``number``. Does not block."""
        ...


#: Runs something that blocks on a thread.
RunBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]


class LiveHub:
    """Lives on the event loop of the server."""

    def __init__(self, source: LiveSource, run: RunBlocking) -> None:
        self._source = source
        self._run = run
        self._state: dict[str, Any] = {}
        self._readers: list[asyncio.Task[None]] = []
        self._watchers = 0
        self._version = 0
        self._news = asyncio.Event()

    def watch(self, *, with_keys: bool = True) -> Response:
        """Keys can be personal: only who administers gets them. Raises ``ApiError`` 503 when too many watch."""
        if self._watchers >= MAX_WATCHERS:
            raise ApiError(503, f"{MAX_WATCHERS} watch already", "close a page; /status says the same once")
        return _EventStream(self.events(with_keys=with_keys))

    async def events(self, *, with_keys: bool) -> AsyncGenerator[bytes]:
        """The events of one watcher, until the daemon stops."""
        with self._watched():
            number = max(0, self._source.newest_change - _PAST_CHANGES)
            yield _event("hello", self._source.hello())
            version = 0
            while not self._source.stopping:
                if not await self._newer_than(version):
                    continue
                version = self._version
                if changes := self._source.changes(number):
                    number = changes[-1]["number"]
                    yield _event("changes", changes if with_keys else [{**one, "key": None} for one in changes])
                yield _event("state", self._state if with_keys else _without_keys(self._state))
            yield _event("bye", {})

    async def _newer_than(self, version: int) -> bool:
        if self._version <= version:
            try:
                await asyncio.wait_for(self._news.wait(), _LOOK_S)
            except TimeoutError:
                return False
        return self._version > version

    @contextmanager
    def _watched(self) -> Iterator[None]:
        self._watchers += 1
        if self._watchers == 1:
            parts = self._source.parts()
            self._readers = [asyncio.create_task(self._keep(part, is_first=part is parts[0])) for part in parts]
        try:
            yield
        finally:
            self._watchers -= 1
            if self._watchers == 0:
                for reader in self._readers:
                    reader.cancel()
                self._state = {}

    async def _keep(self, part: Part, *, is_first: bool) -> None:
        """Read one part again and again. A part that cannot be read is null, and the others go on."""
        while True:
            try:
                self._state[part.name] = await self._run(part.read)
            except Exception as exc:
                if self._state.get(part.name, ()) is not None:
                    log.warning("live part cannot be read name=%s error=%s: %s", part.name, type(exc).__name__, exc)
                self._state[part.name] = None
            if is_first:
                self._version += 1
                self._news.set()
                self._news.clear()
            await asyncio.sleep(part.every_s)


def _without_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Numbers stay; what names rows, or may quote one, goes."""
    if state.get("sagas") is not None:
        state = {**state, "sagas": {**state["sagas"], "waiting": []}}
    work = state.get("work")
    if work is None:
        return state
    resyncs = [{**resync, "keys": [], "where": "", "error": ""} for resync in work["resyncs"]]
    return {**state, "work": {**work, "resyncs": resyncs, "dead_letters": {**work["dead_letters"], "first": []}}}


def _event(name: str, body: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(body))


class _EventStream(Response):
    """Sends events until they end or the client is gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (ASGI's signature)
        async with anyio.create_task_group() as group:
            group.start_soon(self._until_gone, receive, group.cancel_scope)
            await self._send_all(send)
            group.cancel_scope.cancel()

    async def _until_gone(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for event in events:
                with anyio.move_on_after(_SEND_TIMEOUT_S) as patience:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                if patience.cancelled_caught:
                    log.info("a watcher took nothing for seconds=%g and is let go", _SEND_TIMEOUT_S)
                    return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
