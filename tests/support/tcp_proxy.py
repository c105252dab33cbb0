"""A TCP proxy on loopback that breaks on request, in the ways in which networks break.

    let_through()     bytes pass (the state it starts in)
    blackhole()       connections stay open and silent; what was under way arrives when the hole closes
    latency(s)        every piece of data arrives that much later
    cut_after(n)      n more bytes reach the client, then every connection is reset once and the next ones pass
    reset()           every connection, also a new one, is reset
    refuse()          the port is closed: what is open is reset, what is new is refused

Each holds until another one is called. ``drop_connections()`` resets what is open now and changes nothing else.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

__all__ = ["TcpProxy"]

Mode = Literal["pass", "blackhole", "reset", "refuse"]

_PIECE_BYTES = 65_536
#: How long a thread may take to notice that its connection was closed while it waits to write.
_TIMEOUT_S = 0.1
#: close() with this set sends RST, not FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


#: Is shown what reaches a client.
Listener = Callable[[bytes], object]


def _deaf(_: bytes) -> None:
    """Nobody listens."""


class _Link:
    """One client's connection and the one that was opened to the target for it."""

    def __init__(self, client: socket.socket, target: socket.socket, listener: Listener) -> None:
        self.listener = listener
        self.client = client
        self.target = target
        self.is_open = True
        self.directions = 2

    def reset(self) -> None:
        self.is_open = False
        for end in (self.client, self.target):
            _reset(end)


class TcpProxy:
    """Listens on a port of its own and carries bytes to ``target_port``. Use it in a ``with`` block.

    ``tap`` is called for every connection; what it returns is shown each piece of data that reaches the client.
    """

    def __init__(
        self, target_port: int, target_host: str = "127.0.0.1", *, tap: Callable[[], Listener] = lambda: _deaf
    ) -> None:
        self._target = (target_host, target_port)
        self._tap = tap
        self._mode: Mode = "pass"
        self._latency_s = 0.0
        self._budget_bytes: int | None = None
        self._links: list[_Link] = []
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._closing = False
        self._listener: socket.socket | None = None
        self.port = 0
        #: Connections accepted so far, and bytes that reached clients.
        self.connections = 0
        self.bytes_to_client = 0
        #: What reached a hole so far, in both directions, and how often ``cut_after`` has cut.
        self.swallowed = bytearray()
        self.cuts = 0
        #: Set it, and the target does not hear that a client has gone: what it sent is carried out all the same.
        self.hides_departures = False

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self._closing = True
        self._enter("refuse")
        for thread in self._threads:
            thread.join(10)

    def dsn(self, dbname: str = "postgres") -> str:
        """Where a Postgres client connects to come through here."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    @property
    def open_connections(self) -> int:
        with self._changed:
            return len(self._links)

    def let_through(self) -> None:
        self._enter("pass")

    def blackhole(self) -> None:
        self._enter("blackhole")

    def latency(self, seconds: float) -> None:
        self._enter("pass", latency_s=seconds)

    def cut_after(self, count: int) -> None:
        self._enter("pass", budget_bytes=count)

    def reset(self) -> None:
        self._enter("reset")

    def refuse(self) -> None:
        self._enter("refuse")

    def drop_connections(self) -> None:
        with self._changed:
            links, self._links = self._links, []
            for link in links:
                link.is_open = False
            self._changed.notify_all()
        for link in links:
            link.reset()

    def _enter(self, mode: Mode, *, latency_s: float = 0.0, budget_bytes: int | None = None) -> None:
        with self._changed:
            self._mode, self._latency_s, self._budget_bytes = mode, latency_s, budget_bytes
            self._changed.notify_all()
        if mode == "refuse":
            self._stop_listening()
        elif self._listener is None:
            self._listen()
        if mode in ("refuse", "reset"):
            self.drop_connections()

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._run(self._accept, listener)

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # Wakes the thread that waits in accept().
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            target = socket.create_connection(self._target, timeout=5)
        except OSError:
            _reset(client)
            return
        link = _Link(client, target, self._tap())
        for end in (client, target):
            end.settimeout(_TIMEOUT_S)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._changed:
            welcome = self._mode in ("pass", "blackhole") and not self._closing
            if welcome:
                self._links.append(link)
        if not welcome:
            link.reset()
            return
        self._run(self._pump, link, client, target)
        self._run(self._pump, link, target, client)

    def _pump(self, link: _Link, origin: socket.socket, destination: socket.socket) -> None:
        try:
            while self._may_carry(link):
                piece = _receive(link, origin)
                if not piece:
                    self._may_carry(link)  # A hole swallows the end of a connection, too.
                    break
                if self._mode == "blackhole":
                    self.swallowed += piece
                self._carry(link, piece, destination)
            if not (self.hides_departures and origin is link.client):
                self._finish(link, destination)
        except OSError:
            self._forget(link)
            link.reset()

    def _finish(self, link: _Link, destination: socket.socket) -> None:
        """Pass an orderly end on; the second direction to end closes both sockets."""
        with self._changed:
            link.directions -= 1
            is_last = link.directions == 0 and link.is_open
        if is_last:
            self._forget(link)
            link.client.close()
            link.target.close()
        elif link.is_open:
            destination.shutdown(socket.SHUT_WR)

    def _forget(self, link: _Link) -> None:
        with self._changed:
            link.is_open = False
            if link in self._links:
                self._links.remove(link)

    def _may_carry(self, link: _Link) -> bool:
        """Wait until the hole closes; False when the connection was reset meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._mode != "blackhole" or not link.is_open or self._closing)
        return link.is_open

    def _carry(self, link: _Link, piece: bytes, destination: socket.socket) -> None:
        if self._latency_s:
            time.sleep(self._latency_s)  # The network's, not a wait for something to happen.
        if not self._may_carry(link):
            return
        if destination is not link.client:
            _send(link, piece, destination)
            return
        allowed, is_last = self._spend(len(piece))
        _send(link, piece[:allowed], destination)
        link.listener(piece[:allowed])
        self.bytes_to_client += allowed
        if is_last:
            self.drop_connections()
            self.cuts += 1

    def _spend(self, wanted: int) -> tuple[int, bool]:
        """How many of these bytes may pass, and whether the cut comes after them."""
        with self._changed:
            if self._budget_bytes is None:
                return wanted, False
            allowed = min(wanted, self._budget_bytes)
            self._budget_bytes -= allowed
            is_last = self._budget_bytes == 0
            if is_last:
                self._budget_bytes = None
            return allowed, is_last

    def _run(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name="tcp-proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()


def _receive(link: _Link, origin: socket.socket) -> bytes:
    while link.is_open:
        try:
            return origin.recv(_PIECE_BYTES)
        except TimeoutError:
            continue
    return b""


def _send(link: _Link, piece: bytes, destination: socket.socket) -> None:
    rest = memoryview(piece)
    while rest and link.is_open:
        try:
            rest = rest[destination.send(rest) :]
        except TimeoutError:
            continue


def _reset(end: socket.socket) -> None:
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        end.shutdown(socket.SHUT_RD)  # Wakes a thread that waits in recv(), and sends nothing.
    except OSError:
        pass  # The other end was quicker.
    end.close()
