"""Capture with a scripted connection: what is acknowledged is durable, and nothing is waited for that is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cdc_agent.capture import Capture
from cdc_agent.errors import SourceUnavailable
from cdc_agent.events import Change, Column, Relation, Transaction
from cdc_agent.health import Health
from cdc_agent.lsn import Lsn
from cdc_agent.retry import Backoff
from cdc_agent.source.replication import Alarm, ServerIdentity
from cdc_agent.stream.sqlite import SqliteStream
from tests.support.wait import until

RELATION = Relation(
    oid=1, root_oid=1, schema="public", name="t", columns=(Column(name="id", type_oid=23),), key=("id",)
)


def part(lsn: int, *ordinals: int, end: bool = True) -> Transaction:
    return Transaction(
        xid=lsn,
        commit_lsn=Lsn(lsn),
        commit_ts_us=1,
        changes=[Change("c", RELATION, n, None, (b"1",)) for n in ordinals],
        end_lsn=Lsn(lsn + 8) if end else None,
        size_bytes=10,
    )


class Feed:
    """Sends what ``send`` says; notes what was acknowledged. Stands for ``ReplicationFeed``."""

    def __init__(self, stream: SqliteStream) -> None:
        self.alarm = Alarm()
        self.idle_lsn = Lsn(0)
        self.keepalives = 0
        self.acknowledged: list[int] = []
        self.started: list[int] = []
        self.ahead: list[tuple[int, int]] = []
        self._stream = stream
        self._sent: list[Callable[[], Sequence[Transaction]]] = []
        self._changed = threading.Condition()

    def send(self, *transactions: Transaction) -> None:
        self._push(lambda: transactions)

    def break_connection(self) -> None:
        def fail() -> Sequence[Transaction]:
            raise SourceUnavailable("cut")

        self._push(fail)

    def _push(self, act: Callable[[], Sequence[Transaction]]) -> None:
        with self._changed:
            self._sent.append(act)
            self._changed.notify_all()

    def open(self) -> ServerIdentity:
        return ServerIdentity(system_id="7", timeline=1, flush_lsn=Lsn(10**9))

    def start(self, lsn: Lsn, *, acknowledged: Lsn) -> None:
        self.started.append(lsn)

    def poll(self, timeout_s: float) -> Sequence[Transaction]:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._sent), 0.02)
            act = self._sent.pop(0) if self._sent else None
        return list(act()) if act else []

    def acknowledge(self, lsn: Lsn) -> None:
        self.acknowledged.append(lsn)
        durable = self._stream.position().captured_lsn
        if lsn > durable:
            self.ahead.append((lsn, durable))

    def feedback(self) -> None: ...

    def ask(self) -> None: ...

    def close(self) -> None: ...

    def stop(self) -> None: ...


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[SqliteStream]:
    made = SqliteStream(tmp_path / "stream.db")
    yield made
    made.close()


class Running:
    def __init__(self, stream: SqliteStream) -> None:
        self.feed = Feed(stream)
        self.stop = threading.Event()
        self.failures: list[BaseException] = []
        self.capture = Capture(
            feed=self.feed,  # type: ignore[arg-type]
            in_transaction=lambda: False,
            stream=stream,
            verify=lambda _: None,
            expand=lambda _: None,
            health=Health(),
            stop=self.stop,
            backoff=Backoff(initial_s=0.001, maximum_s=0.001),
        )
        # No idle position by the clock in these tests.
        self.capture._next_idle = float("inf")
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), daemon=True)
            for body in (self.capture.run_reader, self.capture.run_writer)
        ]
        for thread in self._threads:
            thread.start()

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as exc:
            self.failures.append(exc)

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        assert self.failures == []
        assert self.feed.ahead == []


@pytest.fixture
def running(stream: SqliteStream) -> Iterator[Running]:
    made = Running(stream)
    yield made
    made.end()


def test_a_commit_whose_last_part_is_empty_ends_all_the_same(running: Running, stream: SqliteStream) -> None:
    # When a commit fills its parts to the last change, so that only its end is left, and nothing follows
    running.feed.send(part(100, 1, 2, end=False))
    running.feed.send(part(100))

    # Then it is complete, and acknowledged, without waiting for anything else
    until(lambda: stream.position().captured_lsn == 108, what="the commit to be captured")
    until(lambda: 108 in running.feed.acknowledged, what="the commit to be acknowledged")


def test_commits_without_a_change_of_ours_are_not_written_one_by_one(running: Running, stream: SqliteStream) -> None:
    for lsn in range(100, 200, 10):
        running.feed.send(part(lsn))
    running.feed.send(part(300, 1))

    until(lambda: stream.position().captured_lsn == 308, what="the last commit to be captured")
    assert stream.head_offset() == 1


def test_nothing_is_doubled_when_the_connection_breaks_while_the_stream_is_slow(
    running: Running, stream: SqliteStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a stream that is held in its first append
    entered, leave = threading.Event(), threading.Event()
    append = stream.append

    def held(*args: object, **more: object) -> object:
        entered.set()
        assert leave.wait(10)
        return append(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(stream, "append", held)
    running.feed.send(part(100, 1))
    assert entered.wait(10)

    # When more gathers, the connection breaks, and all of it is sent again
    for _ in range(2):
        running.feed.send(part(200, 1, 2, end=False))
        running.feed.break_connection()
    running.feed.send(part(100, 1), part(200, 1, end=False), part(200, 2, 3))
    until(lambda: len(running.feed.started) == 3, what="the connection to be made again")
    leave.set()

    # Then each change is in the stream once
    until(lambda: stream.position().captured_lsn == 208, what="the last commit to be captured")
    events = stream.read(0, limit=100, wait_s=0).events
    assert [(int(e.version.commit_lsn), e.version.ordinal) for e in events] == [(100, 1), (200, 1), (200, 2), (200, 3)]
