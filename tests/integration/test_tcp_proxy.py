"""The chaos proxy does to a connection what its words say, and no more."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.support.postgres import Database
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import until


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    def answer(client: socket.socket) -> None:
        with client:
            try:
                while piece := client.recv(65536):
                    client.sendall(piece)
            except OSError:
                pass  # Reset by the proxy, as some test wants it.

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[TcpProxy]:
    with TcpProxy(echo) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    with dial(proxy) as connection:
        assert say(connection, b"hello") == b"hello"
        yield connection


def dial(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def say(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    heard = b""
    while len(heard) < len(text) and (piece := connection.recv(65536)):
        heard += piece
    return heard


def test_a_blackhole_is_silent_and_loses_nothing(proxy: TcpProxy, client: socket.socket) -> None:
    # Given a hole in the network
    proxy.blackhole()

    # When something is sent into it
    client.sendall(b"are you there?")
    client.settimeout(0.3)

    # Then there is no answer, and no error either
    with pytest.raises(TimeoutError):
        client.recv(1)

    # And when it closes, what was under way arrives
    proxy.let_through()
    client.settimeout(5)
    assert client.recv(100) == b"are you there?"


def test_a_reset_hits_open_and_new_connections(proxy: TcpProxy, client: socket.socket) -> None:
    # When everything is reset
    proxy.reset()

    # Then the open connection ends with a reset
    with pytest.raises(ConnectionResetError):
        client.recv(1)

    # And so does a new one, be it while it is opened or at its first words
    with pytest.raises((ConnectionResetError, BrokenPipeError)), dial(proxy) as late:
        say(late, b"x")
        say(late, b"y")


def test_dropped_connections_may_come_back_at_once(proxy: TcpProxy, client: socket.socket) -> None:
    # When what is open is dropped
    proxy.drop_connections()

    # Then it is reset, and the next one passes
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with dial(proxy) as next_one:
        assert say(next_one, b"again") == b"again"


def test_a_refusing_port_is_the_same_port_when_it_opens_again(proxy: TcpProxy, client: socket.socket) -> None:
    # When the port closes
    proxy.refuse()

    # Then nobody comes in
    with pytest.raises(ConnectionRefusedError):
        dial(proxy)

    # And when it opens, it is where it was
    proxy.let_through()
    with dial(proxy) as next_one:
        assert say(next_one, b"back") == b"back"


def test_a_cut_comes_after_that_many_bytes_and_only_once(proxy: TcpProxy, client: socket.socket) -> None:
    # Given a cut after three bytes
    proxy.cut_after(3)

    # When more than that is under way
    client.sendall(b"abcdef")

    # Then at most three arrive, before the reset
    heard = b""
    with pytest.raises(ConnectionResetError):
        while True:
            heard += client.recv(100)
    assert b"abc".startswith(heard)

    # And the next connection carries as much as it likes
    with dial(proxy) as next_one:
        assert say(next_one, b"x" * 300_000) == b"x" * 300_000


def test_latency_delays_both_directions(proxy: TcpProxy, client: socket.socket) -> None:
    # Given a tenth of a second in each direction
    proxy.latency(0.1)

    # When something is asked
    begin = time.monotonic()
    say(client, b"x")

    # Then the answer takes both
    assert time.monotonic() - begin >= 0.2


def test_an_orderly_end_passes_through(proxy: TcpProxy, client: socket.socket) -> None:
    # When the client says that it is done
    client.shutdown(socket.SHUT_WR)

    # Then the server hears it and ends, and the proxy forgets the connection
    assert client.recv(1) == b""
    until(lambda: proxy.open_connections == 0, what="the proxy to close both ends")


def test_postgres_is_reached_through_the_proxy(pg: Database, pg_proxy: TcpProxy) -> None:
    # Given a client that came through the proxy
    with psycopg.connect(pg_proxy.dsn(pg.name), autocommit=True) as connection:
        assert connection.execute("select current_database()").fetchone() == (pg.name,)

        # When the network drops it
        pg_proxy.drop_connections()

        # Then it finds out
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert pg_proxy.connections == 1
