"""What systemd hears: that the daemon is ready, and a sign of life for as long as its replication loop turns."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.daemon import DaemonProcess
from tests.support.postgres import Database

NewDaemon = Callable[..., DaemonProcess]

NOTES = {"name": "notes", "table": "public.notes", "text": "{body}"}
WATCHDOG_S = 3.0


class Systemd:
    """The socket at which systemd listens."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": f"{WATCHDOG_S * 1_000_000:.0f}"}

    def hears(self, word: str, within_s: float) -> bool:
        """Whether it is told that in time."""
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                lines = self._socket.recv(4096).decode().splitlines()
            except TimeoutError:
                break
            if word in lines:
                return True
        return False

    def would_kill(self, within_s: float) -> bool:
        """Whether so much silence comes that the unit's ``WatchdogSec`` runs out."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if not self.hears("WATCHDOG=1", WATCHDOG_S):
                return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def notes(pg: Database) -> Database:
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        connection.execute("create table notes (id int primary key, body text not null)")
    return pg


@pytest.mark.postgres(versions=[16])
@pytest.mark.fault("hung-loop")
def test_a_replication_loop_that_stands_still_trips_the_watchdog(
    notes: Database, new_daemon: NewDaemon, systemd: Systemd
) -> None:
    # Given a daemon under systemd whose loop will hang in the middle of the first large transaction
    daemon = new_daemon(notes, collections=[NOTES])
    daemon.start(env=systemd.environment, failpoint="mid_tx:hang")
    assert systemd.hears("READY=1", 30)
    # And which gives signs of life for longer than the watchdog waits, while nothing is to be done
    assert not systemd.would_kill(2 * WATCHDOG_S)

    # When one comes
    with psycopg.connect(notes.dsn, autocommit=True) as connection:
        connection.execute("insert into notes select n, repeat(md5(n::text), 100) from generate_series(1, 20000) as n")

    # Then systemd hears nothing any more and probes are told why, although the process lives and answers
    assert systemd.would_kill(4 * WATCHDOG_S)
    assert daemon.get("/healthz").json()["status"] == "hung"
    assert daemon.problems() == []
    os.kill(daemon.pid, 0)
