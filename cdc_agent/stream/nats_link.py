"""One connection to NATS: its event loop on a thread of ours, behind calls that wait.

nats-py is asyncio only, and everything else here is threads. Everything that goes wrong becomes an error of ours.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import ssl
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nats
import nats.errors
import nats.js.errors

from cdc_agent.errors import StreamError, StreamFull, StreamUnavailable
from cdc_agent.stream.nats_server import refuse_old

__all__ = ["NatsLink", "NatsPlace"]

T = TypeVar("T")
log = logging.getLogger(__name__)

#: JetStream's numbers for "there is no room": of the server, of the account, of the stream, of the disk.
_FULL = frozenset({10002, 10023, 10028, 10047, 10077})
_RECONNECT_S = 0.5
_PING_S = 5
_HINT = "look whether it runs and has JetStream; reading from Postgres goes on by itself when it is back"


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsPlace:
    """Where a server is and who we are to it. ``urls``: ``nats://`` or ``tls://``, any of a cluster."""

    urls: tuple[str, ...]
    timeout_s: float = 5.0
    ca_file: Path | None = None
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials_file: Path | None = None

    def __str__(self) -> str:
        return ", ".join(self.urls)


class NatsLink:
    """Connected from its making until ``close``; while the connection is lost, it is made again behind our back.

    Raises ``StreamUnavailable`` when nobody answers, ``StreamError`` for a server that is refused.
    """

    def __init__(self, place: NatsPlace) -> None:
        self.place = place
        self._trouble: BaseException | None = None
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nats", daemon=True)
        self._thread.start()
        self.client: Any = nats.NATS()
        try:
            self.call(self._connect)
            refuse_old(self.version)
        except BaseException:
            self.close()
            raise
        self.js: Any = self.client.jetstream(timeout=place.timeout_s)

    @property
    def version(self) -> str:
        version = self.client.connected_server_version
        return f"{version.major}.{version.minor}.{version.patch}"

    @property
    def max_payload_bytes(self) -> int:
        return int(self.client.max_payload)

    def call(self, work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any, **more: Any) -> T:
        """What ``work`` returns, which runs on the loop and must come to an end by itself."""
        if self._loop.is_closed():
            raise StreamError("the stream is closed", hint="the daemon is stopping")
        try:
            return asyncio.run_coroutine_threadsafe(work(*arguments, **more), self._loop).result()
        except (nats.errors.Error, OSError, TimeoutError, concurrent.futures.CancelledError) as exc:
            raise self.explained(exc) from exc

    def explained(self, exc: BaseException) -> StreamError:
        """What went wrong as an error of ours."""
        if getattr(exc, "err_code", None) in _FULL:
            return StreamFull(
                f"JetStream has no room left: {getattr(exc, 'description', '')}",
                hint="free space on its server, raise the limits of stream and account, or lower stream.max_bytes",
            )
        if isinstance(exc, nats.js.errors.APIError) and getattr(exc, "code", 0) in (400, 403):
            return StreamError(f"JetStream refuses: {exc.description}", hint="see `nats stream info` and the account")
        if isinstance(exc, nats.js.errors.NoStreamResponseError):
            return StreamUnavailable("JetStream does not answer: the stream is gone, or has no leader", hint=_HINT)
        why = str(self._trouble or "") if not self.client.is_connected else str(exc) or type(exc).__name__
        return StreamUnavailable(f"NATS at {self.place} does not answer: {why or 'not connected'}", hint=_HINT)

    def check_connected(self) -> None:
        """Raise rather than let the client keep for later what should be known now."""
        if not self.client.is_connected:
            raise self.explained(nats.errors.ConnectionClosedError())

    def check_jetstream(self) -> None:
        """Raise ``StreamUnavailable`` when the server, or the account, has no JetStream."""
        self.call(self.js.account_info)

    def close(self) -> None:
        """Drop the connection at once."""
        if self._loop.is_closed():
            return
        self._closing = True
        try:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(self.place.timeout_s)
        except (nats.errors.Error, OSError, TimeoutError):
            log.debug("the connection to NATS did not end in order")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(self.place.timeout_s)
        if not self._thread.is_alive():
            self._loop.close()

    async def _connect(self) -> None:
        place = self.place
        try:
            await asyncio.wait_for(
                self.client.connect(
                    servers=list(place.urls),
                    name="cdc-agent",
                    connect_timeout=place.timeout_s,
                    # For ever: an outage is waited for, and told of meanwhile.
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=_RECONNECT_S,
                    ping_interval=_PING_S,
                    user=place.user,
                    password=place.password,
                    token=place.token,
                    user_credentials=str(place.credentials_file) if place.credentials_file else None,
                    tls=_tls(place),
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_reconnected,
                ),
                place.timeout_s,
            )
        except TimeoutError:
            raise self._trouble or TimeoutError("no answer in time") from None

    async def _on_error(self, exc: BaseException) -> None:
        self._trouble = exc

    async def _on_disconnected(self) -> None:
        if not self._closing:
            log.warning("lost the connection to NATS")

    async def _on_reconnected(self) -> None:
        log.info("connected to NATS again version=%s", self.version)
        self._trouble = None

    async def _close(self) -> None:
        if not self.client.is_closed:
            await self.client.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _tls(place: NatsPlace) -> ssl.SSLContext | None:
    if not any(url.startswith("tls://") for url in place.urls):
        return None
    return ssl.create_default_context(cafile=str(place.ca_file) if place.ca_file else None)
