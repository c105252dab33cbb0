"""uvicorn on a thread of ours, with a start that fails loudly and a stop that ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from cdc_agent.errors import CdcAgentError, ConfigError

__all__ = ["HttpServer"]

log = logging.getLogger(__name__)

#: Connections at once; uvicorn answers 503 beyond. Five hundred that say nothing keep nobody out until they are closed,
#: and files are left for the rest of us where a process may have 1,024.
MAX_CONNECTIONS = 700
MAX_HEADER_BYTES = 16 * 1024
#: Seconds for the first request line and headers of a connection.
HEADER_TIMEOUT_S = 10.0
#: Seconds that an idle connection is kept.
IDLE_TIMEOUT_S = 30
#: Seconds that requests in hand may take once we stop.
GRACE_S = 5
_START_S = 10.0


class HttpServer:
    """Serves an application from its own thread. ``start`` returns once it answers."""

    def __init__(self, app: ASGIApp, *, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._server = _Server(_uvicorn_config(app))
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port in use, also when 0 asked for any."""
        return self._port

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Raises ``ConfigError`` when the address cannot be had."""
        listener = _listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="http", daemon=True)
        self._thread.start()
        if not self._server.ready.wait(_START_S):
            raise CdcAgentError("the HTTP server did not start", hint="its log says why")
        log.info("http listening host=%s port=%d", self._host, self._port)

    def stop(self) -> None:
        """Finish requests in hand, within a bound. May be called twice."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(GRACE_S + 2)


class _Server(uvicorn.Server):
    """Tells when it is listening."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready.set()


class _Protocol(H11Protocol):
    """Closes a connection that opens and then does not ask for anything; uvicorn has no limit for that."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADER_TIMEOUT_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if getattr(self, "cycle", None) is None and not self.transport.is_closing():
            self.transport.close()


def _uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    options: dict[str, Any] = {"http": _Protocol, "ws": "none", "lifespan": "off", "loop": "asyncio"}
    return uvicorn.Config(
        app,
        **options,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=IDLE_TIMEOUT_S,
        timeout_graceful_shutdown=GRACE_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise ConfigError(f"http.host: {host} is not an address: {exc}", hint="use an address of this machine") from exc
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as exc:
        listener.close()
        raise _cannot_listen(host, port, exc) from exc
    return listener


def _cannot_listen(host: str, port: int, exc: OSError) -> ConfigError:
    if exc.errno == errno.EADDRINUSE:
        return ConfigError(
            f"http.port: {port} on {host} is taken by another process",
            hint="is another cdc-agent running? stop it, or set http.port to a free port",
        )
    return ConfigError(
        f"http.host, http.port: cannot listen on {host}:{port}: {exc.strerror}",
        hint="use an address of this machine and a port above 1023",
    )
