"""Everything that strangers can throw at the HTTP port, all at once, and whoever asks whether it lives is answered."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

ITEMS = {"name": "items", "table": "public.items", "text": "{body}", "metadata": ["lang"]}
MEGABYTE = 1024 * 1024
#: More than what a request and its answer cost; less than any of the bodies would, were they taken.
ROOM_BYTES = 60 * MEGABYTE

DEEP = b'{"collection": "items", "query": "x", "where": ' + b'{"$and": [' * 60_000 + b"]}" * 60_000 + b"}"
DEEP_LISTS = b"[" * 900_000


@pytest.fixture
def daemon(pg: Database, new_daemon: NewDaemon) -> DaemonProcess:
    pg.execute("create table items (id int primary key, body text, lang text)")
    pg.execute("insert into items values (1, 'the cat sleeps', 'en')")
    daemon = new_daemon(pg, collections=[ITEMS], log={"level": "info"})
    daemon.start()
    return daemon


def memory_of(daemon: DaemonProcess) -> int:
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def raw(daemon: DaemonProcess, text: bytes) -> socket.socket:
    """A connection on which that was sent, and nothing more."""
    connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=30)
    connection.sendall(text)
    return connection


def beginning(path: bytes, length: int) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path, length)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


class Pulse:
    """Asks whether the daemon lives, again and again; ``seconds`` are how long each answer took."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self._port = daemon.port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat)
        self.seconds: list[float] = []

    def _beat(self) -> None:
        # A plain connection each time, so that what is measured is theirs and not our client's.
        while not self._stop.wait(0.05):
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200
            connection.close()
            self.seconds.append(time.monotonic() - began)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)


@contextlib.contextmanager
def idlers(daemon: DaemonProcess, count: int) -> Iterator[Sequence[socket.socket]]:
    """Half of them say nothing, half of them have begun a header."""
    with contextlib.ExitStack() as held:
        yield [held.enter_context(raw(daemon, b"GET /status HT" if n % 2 else b"")) for n in range(count)]


@pytest.mark.fault("silent-clients", "hostile-bodies")
@pytest.mark.timeout(180)
def test_whatever_is_thrown_at_the_port_whoever_asks_whether_it_lives_is_answered_at_once(
    pg: Database, daemon: DaemonProcess
) -> None:
    # Half a gigabyte of zeros, which packed is small enough to be taken
    packed = gzip.compress(bytes(500 * MEGABYTE), 6)
    assert len(packed) < MEGABYTE
    before = memory_of(daemon)
    with contextlib.ExitStack() as held, httpx.Client(base_url=daemon.url, trust_env=False, timeout=30) as client:
        # Given five hundred connections that say nothing or half a header, and thirty bodies that never end
        sockets = held.enter_context(idlers(daemon, 500))
        slow = [held.enter_context(raw(daemon, beginning(b"/search", 1000) + b'{"collection"')) for _ in range(30)]
        pulse = held.enter_context(Pulse(daemon))

        # When bodies come that are not what they seem, then each is refused with a reason
        for _ in range(5):
            bomb = client.post("/search", content=packed, headers={"Content-Encoding": "gzip"})
            assert (bomb.status_code, "JSON" in bomb.json()["error"]) == (400, True)
            for nested in (DEEP, DEEP_LISTS):
                assert client.post("/search", content=nested).status_code in (400, 413)
        huge = raw(daemon, beginning(b"/search", 100 * MEGABYTE))
        assert status_of(huge.recv(1024)) == 413
        huge.close()

        # And whoever searches meanwhile finds what there is
        found = client.post("/search", json={"collection": "items", "query": "a sleeping cat"})
        assert [hit["document_id"] for hit in found.json()["hits"]] == ["public.items:1"]

        # And all the others are sent away in the end
        assert {status_of(one.recv(1024)) for one in slow} == {408}
        assert {one.recv(1024)[:12] for one in sockets} <= {b"", b"HTTP/1.1 400", b"HTTP/1.1 408"}

    # Then it has answered at once all the time, and kept nothing of it
    assert len(pulse.seconds) > 50
    assert statistics.quantiles(pulse.seconds, n=10)[-1] < 0.1
    until(lambda: memory_of(daemon) < before + ROOM_BYTES, 20.0, "the memory to be given back")
    assert_index_equals_table(daemon, pg)
    assert "Traceback" not in daemon.log


@pytest.mark.fault("hostile-bodies")
def test_a_body_without_end_is_cut_off(daemon: DaemonProcess) -> None:
    # Given a client that sends without saying how much
    before = memory_of(daemon)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 * MEGABYTE:
            sent += MEGABYTE
            yield b"x" * MEGABYTE

    # When that is a hundred megabytes, then they are refused before they are read
    with contextlib.suppress(httpx.TransportError):
        answer = httpx.post(daemon.url + "/search", content=endless(), timeout=30, trust_env=False)
        assert answer.status_code == 413
    assert sent < 50 * MEGABYTE
    assert memory_of(daemon) < before + ROOM_BYTES
    assert httpx.get(daemon.url + "/healthz", timeout=5, trust_env=False).status_code == 200
