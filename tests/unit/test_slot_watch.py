"""Who wants to know of the slot gets an answer, and a server whose log stands still is left alone."""

from __future__ import annotations

import pytest

from cdc_agent import metrics
from cdc_agent.daemon import slot_watch
from cdc_agent.daemon.slot_watch import SlotWatch
from cdc_agent.errors import SourceUnavailable
from cdc_agent.lsn import Lsn
from cdc_agent.source.slot import SlotStatus


class Server:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.heard = Lsn(100)
        self.now = 0.0
        self.away = False

    def describe(self, dsn: str, slot_name: str) -> SlotStatus:
        self.asked += 1
        if self.away:
            raise SourceUnavailable("the server is away")
        return SlotStatus(
            name=slot_name,
            plugin="pgoutput",
            database="db",
            active_pid=1,
            wal_status="reserved",
            confirmed_flush_lsn=self.heard,
            restart_lsn=self.heard,
            retained_bytes=int(self.heard),
            lag_bytes=0,
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(slot_watch.slot, "describe", server.describe)
    return server


@pytest.fixture
def watch(server: Server) -> SlotWatch:
    return SlotWatch("", "mine", heard=lambda: server.heard, clock=lambda: server.now)


def test_an_idle_server_is_asked_once(server: Server, watch: SlotWatch) -> None:
    for server.now in range(0, 1_000, 5):
        assert watch.look(10.0) is not None

    assert server.asked == 1


def test_a_server_whose_log_moves_is_asked_as_often_as_wanted(server: Server, watch: SlotWatch) -> None:
    for server.now in range(0, 100, 5):
        server.heard = Lsn(server.heard + 8)
        watch.look(10.0)

    assert server.asked == 10


def test_the_gauge_says_what_was_heard_last(server: Server, watch: SlotWatch) -> None:
    server.heard = Lsn(4_096)

    assert watch.look(0.0) == watch.last

    assert metrics.SLOT_RETAINED_BYTES._value.get() == 4_096


def test_a_server_that_was_away_is_asked_again(server: Server, watch: SlotWatch) -> None:
    # Given a server that does not answer
    server.away = True
    assert watch.look(10.0) is None

    # When it is back, though its log has not moved
    server.away, server.now = False, 10.0

    assert watch.look(10.0) is not None
