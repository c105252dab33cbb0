"""Chroma's server as our child: it starts, dies, hangs, is left behind, and finds its place taken."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from cdc_agent.errors import ConfigError, StoreUnavailable, VectorStoreError
from cdc_agent.vectorstore import chroma_server
from cdc_agent.vectorstore.base import Record
from cdc_agent.vectorstore.chroma import ChromaStore
from cdc_agent.vectorstore.chroma_server import ChromaServer, _serves
from cdc_agent.vectorstore.locks import BLOCKED_S, Locks
from cdc_agent.vectorstore.records import StoreBlocked
from tests.support.ports import free_port
from tests.support.wait import until

EAST = np.array([1, 0], dtype=np.float32)
A_RECORD = Record(id="a", text="text", metadata={"x": 1}, embedding=EAST)

#: A daemon that starts a server, says so, and waits to be killed.
DAEMON = """
import sys, threading
from cdc_agent.vectorstore.chroma_server import ChromaServer
server = ChromaServer(sys.argv[1])
server.start()
print(server.pid, flush=True)
threading.Event().wait()
"""


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(tmp_path: Path, clock: Clock) -> Iterator[ChromaServer]:
    server = ChromaServer(tmp_path / "store", clock=clock)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def connect() -> Iterator[Callable[..., ChromaStore]]:
    """Opens stores behind servers; all are closed after the test."""
    opened: list[ChromaStore] = []

    def connect_one(server: ChromaServer, timeout_s: float = 20) -> ChromaStore:
        opened.append(ChromaStore.http(server.host, server.port, timeout_s=timeout_s))
        return opened[-1]

    yield connect_one
    for store in opened:
        store.close()


def answers(store: ChromaStore) -> bool:
    try:
        store.ping()
    except StoreUnavailable:
        return False
    return True


def kill(server: ChromaServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not server.is_alive, what="the server to be dead")


def freeze(server: ChromaServer) -> int:
    """Stop the process in its tracks, every thread of it."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)

    def states() -> set[str]:
        stats = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
        return {stat.rpartition(")")[2].split()[0] for stat in stats}

    until(lambda: states() == {"T"}, what="every thread to stop")
    return pid


@pytest.mark.fault("store-killed")
def test_a_server_that_was_killed_is_started_again_and_has_everything(
    server: ChromaServer, connect: Callable[..., ChromaStore]
) -> None:
    # Given a server with a record
    store = connect(server)
    store.open_collection("kept", dimensions=2, marker={})
    store.upsert("kept", [A_RECORD])
    assert server.watch()

    # When it is killed and we look
    kill(server)
    with pytest.raises(StoreUnavailable):
        store.ping()
    assert not server.watch()

    # Then it runs again on the same port, and the same store finds the record
    until(lambda: answers(store), what="the server to answer again")
    assert server.watch()
    assert [hit.id for hit in store.query("kept", EAST, k=1)] == ["a"]


@pytest.mark.fault("store-killed")
def test_a_server_that_dies_again_and_again_is_started_after_growing_pauses(server: ChromaServer, clock: Clock) -> None:
    # Given a server that died once and was started at once
    kill(server)
    server.watch()
    assert server.is_alive

    # When it dies again, then it is started after half a second and not before
    kill(server)
    server.watch()
    assert not server.is_alive
    clock.now += 0.5
    server.watch()
    assert server.is_alive

    # And the next pause is twice as long
    kill(server)
    server.watch()
    clock.now += 0.9
    server.watch()
    assert not server.is_alive
    clock.now += 0.1
    server.watch()
    assert server.is_alive

    # But after it has lived for a minute, it is started at once
    clock.now += 60
    kill(server)
    server.watch()
    assert server.is_alive


def tell_of_a_lock(server: ChromaServer) -> None:
    """What a store does whose write was answered with "locked". No full disk leaves a server so each time."""
    with suppress(StoreBlocked), server.locks.writing():
        raise StoreBlocked("locked")


@pytest.fixture
def locked(tmp_path: Path, clock: Clock) -> Iterator[ChromaServer]:
    """A server that has just said that its database is locked."""
    server = ChromaServer(tmp_path / "store", clock=clock, locks=Locks(clock=clock))
    server.start()
    tell_of_a_lock(server)
    yield server
    server.stop()


@pytest.mark.fault("store-locked")
def test_a_server_that_keeps_its_database_locked_is_restarted_after_a_while(
    locked: ChromaServer, clock: Clock, connect: Callable[..., ChromaStore]
) -> None:
    # Given a server with a record, which has answered a write with "locked"
    store = connect(locked)
    store.open_collection("kept", dimensions=2, marker={})
    store.upsert("kept", [A_RECORD])
    before = locked.pid

    # When that is not long ago, then it is let be
    clock.now += BLOCKED_S - 1
    assert locked.watch()
    assert locked.pid == before

    # But after a while it is restarted on the same port, and has everything
    clock.now += 1
    assert not locked.watch()
    assert locked.pid != before
    until(lambda: answers(store), what="the server to answer again")
    assert [hit.id for hit in store.query("kept", EAST, k=1)] == ["a"]
    assert locked.watch()


@pytest.mark.fault("store-locked")
def test_a_lock_that_outlives_restarts_is_met_with_ever_fewer_of_them(locked: ChromaServer, clock: Clock) -> None:
    # Given an hour in which every write is answered with "locked", whatever we do
    pids = {locked.pid}
    for _ in range(360):
        clock.now += 10
        tell_of_a_lock(locked)
        locked.watch()
        pids.add(locked.pid)

    # Then the pauses have doubled: 20, 40, 80 s, …
    assert 5 <= len(pids) - 1 <= 7


@pytest.mark.fault("store-locked")
def test_a_locked_server_is_let_be_while_its_disk_is_full(
    locked: ChromaServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that cannot write, and no room on its disk
    before = locked.pid
    with monkeypatch.context() as full:
        full.setattr(chroma_server, "ROOM_BYTES", 1 << 60)
        for _ in range(3):
            clock.now += BLOCKED_S
            assert locked.watch()
        assert locked.pid == before

    # When there is room again, then it gets the same time to find that by itself
    clock.now += BLOCKED_S - 1
    assert locked.watch()
    clock.now += 1
    assert not locked.watch()
    assert locked.pid != before


@pytest.mark.fault("store-hangs")
def test_calls_to_a_server_that_hangs_end_in_time(server: ChromaServer, connect: Callable[..., ChromaStore]) -> None:
    # Given a store that has been used, a new one, and a server that is stopped in its tracks
    used, new = connect(server, timeout_s=1), connect(server, timeout_s=1)
    used.open_collection("hangs", dimensions=2, marker={})
    used.upsert("hangs", [A_RECORD])
    freeze(server)

    # When anything is asked of it
    calls: list[Callable[[], object]] = [
        used.ping,
        lambda: used.upsert("hangs", [A_RECORD]),
        lambda: used.update_metadata("hangs", {"a": {"x": 2}}),
        lambda: used.delete("hangs", ["a"]),
        lambda: used.query("hangs", EAST, k=1),
        lambda: used.get("hangs", ["a"]),
        lambda: list(used.ids("hangs")),
        lambda: used.count("hangs"),
        lambda: used.drop_collection("hangs"),
        lambda: new.open_collection("hangs", dimensions=2, marker={}),
    ]

    # Then every call ends with the error that says "try again"
    for call in calls:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="in time"):
            call()
        assert time.monotonic() - begun < 4

    # And it is not killed for hanging, and answers when it goes on
    assert server.watch()
    os.kill(server.pid or 0, signal.SIGCONT)
    until(lambda: answers(used), what="the server to go on")


def test_stopping_a_server_that_hangs_takes_a_bounded_time(tmp_path: Path) -> None:
    # Given a server that is stopped in its tracks
    server = ChromaServer(tmp_path / "store", stop_timeout_s=0.5)
    server.start()
    pid = freeze(server)

    # When it is stopped, twice
    server.stop()
    server.stop()

    # Then it is gone, and looking does not start it again
    assert not server.watch()
    assert not _serves(pid, server.path)


def test_a_port_that_somebody_else_has_is_named(tmp_path: Path) -> None:
    # Given a program that listens
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]

        # When a server shall listen there
        with pytest.raises(ConfigError, match=str(port)) as caught:
            ChromaServer(tmp_path / "store", port=port).start()

    # Then the error names the setting, and the folder is free again
    assert "vectorstore.port" in caught.value.hint
    server = ChromaServer(tmp_path / "store", port=port)
    server.start()
    server.stop()


def test_one_folder_has_one_server(server: ChromaServer) -> None:
    # When a second server shall use the folder of a running one
    with pytest.raises(ConfigError, match="another cdc-agent"):
        ChromaServer(server.path).start()

    # Then the first one is not harmed
    assert server.watch()


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    # Given a file where a folder should be
    (tmp_path / "file").write_text("in the way")

    # When a server shall keep its store there, or below it
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(ConfigError, match="cannot be kept") as caught:
            ChromaServer(path).start()

        # Then the error names the setting
        assert "vectorstore.path" in caught.value.hint


def test_a_server_that_ends_at_once_shows_the_end_of_its_log(tmp_path: Path) -> None:
    # Given a store whose database file is something else
    store = tmp_path / "store"
    store.mkdir()
    (store / "chroma.sqlite3").write_bytes(b"this is no database " * 100)

    # When a server is started on it
    with pytest.raises(VectorStoreError) as caught:
        ChromaServer(store).start()

    # Then the reason is shown
    assert "file is not a database" in str(caught.value)


def test_a_server_does_not_outlive_a_daemon_that_was_killed(tmp_path: Path) -> None:
    # Given a daemon in its own process, with a server
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
    )
    assert daemon.stdout is not None
    with daemon.stdout:
        pid = int(daemon.stdout.readline())
    assert _serves(pid, tmp_path / "store")

    # When the daemon is killed
    daemon.kill()
    daemon.wait()

    # Then its server ends by itself
    until(lambda: not _serves(pid, tmp_path / "store"), what="the server to end with its daemon")


def test_a_leftover_server_on_the_same_folder_is_ended_first(tmp_path: Path) -> None:
    # Given a server that nobody watches any more, and that the pid file names
    store = tmp_path / "store"
    store.mkdir()
    command = "import sys; sys.argv[0] = 'chroma'; from chromadb.cli.cli import app; app()"
    port = free_port()
    leftover = subprocess.Popen(
        [sys.executable, "-c", command, "run", "--path", str(store), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: connects(port), what="the leftover to listen")
    (tmp_path / "store.pid").write_text(str(leftover.pid))

    # When a server is started on the same folder and the same port
    server = ChromaServer(store, port=port)
    server.start()

    # Then the leftover is gone, and the port is ours
    assert leftover.wait(10) is not None
    assert server.pid != leftover.pid
    server.stop()


def test_a_process_that_only_has_the_number_of_a_leftover_is_let_be(tmp_path: Path) -> None:
    # Given a pid file from before a reboot, whose number belongs to somebody else now
    (tmp_path / "store.pid").write_text(str(os.getpid()))

    # When a server is started, then we are still here
    server = ChromaServer(tmp_path / "store")
    server.start()
    server.stop()


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
