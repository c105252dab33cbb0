"""Capture with a scripted connection: what is acknowledged is durable, and nothing is waited for that is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cdc_agent import metrics
from cdc_agent.capture import _QUEUE_BYTES, Capture
from cdc_agent.errors import SourceUnavailable, StreamFull
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
        self.feedbacks = self.asked = self.stopped = 0
        self.answers_at_once = True
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

    def feedback(self) -> None:
        self.feedbacks += 1

    def ask(self) -> None:
        """The server answers with a keepalive, which says where it is."""
        self.asked += 1
        self.keepalives += self.answers_at_once

    def close(self) -> None: ...

    def stop(self) -> None:
        self.stopped += 1


class Traces:
    """Notes what it is told of commits; stands for ``tracing.Traces``."""

    def __init__(self) -> None:
        self.captured_lsns: list[int] = []

    def captured(self, transactions: Sequence[Transaction]) -> None:
        self.captured_lsns += [tx.commit_lsn for tx in transactions]


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
        self.health = Health()
        self.traces = Traces()
        self.heard: list[Transaction] = []
        self.progress: list[int] = []
        #: What an empty transaction of ours becomes.
        self.expansions: dict[int, Transaction] = {}
        self.in_transaction = False
        #: Seconds that the clock is ahead.
        self.later_s = 0.0
        self.capture = Capture(
            feed=self.feed,  # type: ignore[arg-type]
            in_transaction=lambda: self.in_transaction,
            stream=stream,
            verify=lambda _: None,
            expand=lambda tx: self.expansions.get(tx.commit_lsn),
            hear=self.heard.append,
            health=self.health,
            stop=self.stop,
            progressed=self.progress.append,
            traces=self.traces,  # type: ignore[arg-type]
            clock=lambda: time.monotonic() + self.later_s,
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
        assert self.feed.stopped == 1
        assert self.feed.ahead == []


@pytest.fixture
def running(stream: SqliteStream) -> Iterator[Running]:
    made = Running(stream)
    yield made
    made.end()


class Held:
    """A stream that is held in its appends until it is let go."""

    def __init__(self, stream: SqliteStream, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        append = stream.append

        def held(*args: object, **more: object) -> object:
            self.entered.set()
            assert self.leave.wait(30)
            return append(*args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(stream, "append", held)


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
    assert [tx.commit_lsn for tx in running.heard] == [300]


def test_nothing_is_doubled_when_the_connection_breaks_while_the_stream_is_slow(
    running: Running, stream: SqliteStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a stream that is held in its first append
    held = Held(stream, monkeypatch)
    running.feed.send(part(100, 1))
    assert held.entered.wait(10)

    # When more gathers, the connection breaks, and all of it is sent again
    for _ in range(2):
        running.feed.send(part(200, 1, 2, end=False))
        running.feed.break_connection()
    running.feed.send(part(100, 1), part(200, 1, end=False), part(200, 2, 3))
    until(lambda: len(running.feed.started) == 3, what="the connection to be made again")
    held.leave.set()

    # Then each change is in the stream once
    until(lambda: stream.position().captured_lsn == 208, what="the last commit to be captured")
    events = stream.read(0, limit=100, wait_s=0).events
    assert [(int(e.version.commit_lsn), e.version.ordinal) for e in events] == [(100, 1), (200, 1), (200, 2), (200, 3)]


# -- where the server is, without a change of ours ------------------------------------------------------------------


def test_a_position_without_changes_is_made_durable_now_and_then_and_acknowledged(
    running: Running, stream: SqliteStream
) -> None:
    # When the server is further, and it is time
    running.capture._next_idle = 0.0
    running.feed.idle_lsn = Lsn(500)
    until(lambda: stream.position().captured_lsn == 500, what="the position to be captured")
    until(lambda: 500 in running.feed.acknowledged, what="the position to be acknowledged")
    assert stream.head_offset() == 0

    # Then the next one waits for its time
    running.feed.idle_lsn = Lsn(600)
    until(lambda: running.progress.count(600) > 2, what="turns of the reader")
    assert running.capture._queued_lsn == 500, "the next position was handed to the writer"
    assert stream.position().captured_lsn == 500
    running.later_s = 11.0
    until(lambda: stream.position().captured_lsn == 600, what="the next position to be captured")


def test_who_waits_for_a_position_has_it_asked_for_once(running: Running, stream: SqliteStream) -> None:
    running.feed.idle_lsn = Lsn(500)

    running.capture.hurry()

    until(lambda: stream.position().captured_lsn == 500, what="the position to be captured")
    running.feed.idle_lsn = Lsn(600)
    until(lambda: 600 in running.progress, what="a turn of the reader")
    assert (running.feed.asked, stream.position().captured_lsn) == (1, 500)


def test_who_waits_for_a_position_gets_the_one_of_the_answer(running: Running, stream: SqliteStream) -> None:
    # Given a server that takes its time, and an older position of it
    running.feed.answers_at_once = False
    running.feed.idle_lsn = Lsn(500)
    running.capture.hurry()
    until(lambda: running.feed.asked == 1 and 500 in running.progress, what="a turn of the reader")
    turns = len(running.progress)
    until(lambda: len(running.progress) > turns + 2, what="more turns of the reader")
    assert stream.position().captured_lsn == 0

    # When it answers, it is further
    running.feed.idle_lsn = Lsn(600)
    running.feed.keepalives += 1

    until(lambda: stream.position().captured_lsn == 600, what="the position to be captured")


def test_in_the_middle_of_a_commit_no_position_behind_it_is_taken(running: Running, stream: SqliteStream) -> None:
    running.in_transaction = True
    running.feed.idle_lsn = Lsn(500)
    running.capture.hurry()
    until(lambda: 500 in running.progress and running.feed.asked == 1, what="a turn of the reader")
    turns = len(running.progress)
    until(lambda: len(running.progress) > turns + 2, what="more turns of the reader")
    assert stream.position().captured_lsn == 0

    running.in_transaction = False
    until(lambda: stream.position().captured_lsn == 500, what="the position to be captured")


def test_progress_is_how_far_the_log_was_read(running: Running) -> None:
    running.feed.send(part(100, 1))
    until(lambda: 108 in running.progress)

    running.feed.idle_lsn = Lsn(200)
    until(lambda: 200 in running.progress)


# -- what is told -----------------------------------------------------------------------------------------------------


def test_a_connection_that_is_back_is_no_trouble_any_more(running: Running) -> None:
    until(lambda: running.capture.streaming.is_set() and metrics.STREAMING._value.get() == 1)

    running.feed.break_connection()
    until(lambda: len(running.feed.started) == 2, what="the connection to be made again")

    until(lambda: running.health.problems() == [], what="the trouble to be over")
    until(lambda: metrics.STREAMING._value.get() == 1)


def test_a_reader_that_turns_is_alive_whatever_the_clock_says(running: Running) -> None:
    until(lambda: running.capture.alive_within(5))

    running.later_s = 1_000.0

    until(lambda: running.capture.alive_within(5), what="the next turn")


def test_what_was_captured_is_told(running: Running, stream: SqliteStream) -> None:
    before, changes = metrics.TRANSACTIONS._value.get(), metrics.CHANGES_RECEIVED.labels(op="c")._value.get()

    running.feed.send(part(100, 1, 2, end=False), part(100, 3), part(200, 1))
    until(lambda: stream.position().captured_lsn == 208)
    running.feed.idle_lsn = Lsn(500)
    running.capture.hurry()
    until(lambda: stream.position().captured_lsn == 500)

    until(lambda: metrics.CAPTURED_LSN._value.get() == 500)
    until(lambda: metrics.TRANSACTIONS._value.get() == before + 2, what="two commits with changes to be counted")
    assert metrics.CHANGES_RECEIVED.labels(op="c")._value.get() == changes + 4
    assert metrics.STREAM_BYTES._value.get() == stream.size_bytes() > 0
    # The commits are of 1970.
    assert metrics.SOURCE_LAG_SECONDS._value.get() > 1_000_000_000
    assert running.traces.captured_lsns == [100, 100, 200, 500]


def test_of_commits_that_are_captured_together_the_newest_says_how_far_behind_we_are(running: Running) -> None:
    now_us = time.time_ns() // 1000

    running.feed.send(part(100, 1), replace(part(200, 1), commit_ts_us=now_us), part(300, 1))

    until(lambda: running.traces.captured_lsns == [100, 200, 300])
    until(lambda: metrics.SOURCE_LAG_SECONDS._value.get() < 1_000, what="the lag of the newest one")


def test_a_position_without_changes_says_nothing_of_how_old_the_last_change_is(
    running: Running, stream: SqliteStream
) -> None:
    metrics.SOURCE_LAG_SECONDS.set(7)

    running.feed.idle_lsn = Lsn(500)
    running.capture.hurry()

    until(lambda: running.traces.captured_lsns == [500])
    until(lambda: metrics.CAPTURED_LSN._value.get() == 500)
    assert metrics.SOURCE_LAG_SECONDS._value.get() == 7


def test_every_commit_is_heard_and_ours_become_what_they_stand_for(running: Running, stream: SqliteStream) -> None:
    running.expansions[200] = part(200, 1, 2, 3)

    running.feed.send(part(100, 1), part(200, 1))

    until(lambda: stream.position().captured_lsn == 208)
    assert [tx.commit_lsn for tx in running.heard] == [100, 200]
    assert stream.head_offset() == 4


# -- a stream that takes its time ------------------------------------------------------------------------------------


def without_room(running: Running, held: Held) -> Held:
    """One commit fills the queue, and the next one waits for room."""
    large = part(100, 1)
    large.size_bytes = _QUEUE_BYTES
    running.feed.send(large)
    assert held.entered.wait(10)
    running.feed.send(part(200, 1))
    return held


def test_while_there_is_no_room_the_server_is_told_that_we_live(
    running: Running, stream: SqliteStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a queue that is full, before a stream that does not go on
    held = without_room(running, Held(stream, monkeypatch))

    # Then the reader lives, and says so to the server, too
    until(lambda: running.feed.feedbacks >= 1, what="word to the server")
    said = len(running.feed.acknowledged)
    until(lambda: running.feed.feedbacks >= 3, what="more words to the server")
    # What outlives a loss of power by now may be acknowledged meanwhile.
    assert len(running.feed.acknowledged) > said
    running.later_s = 1_000.0
    until(lambda: running.capture.alive_within(5), what="a sign of life")

    held.leave.set()
    until(lambda: stream.position().captured_lsn == 208, what="the next commit to be captured")


def test_who_stops_acknowledges_what_became_durable_last(
    running: Running, stream: SqliteStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a commit that becomes durable while the reader waits for the server
    held = Held(stream, monkeypatch)
    waits, goes_on = threading.Event(), threading.Event()

    def wait_for_the_server() -> Sequence[Transaction]:
        waits.set()
        assert goes_on.wait(30)
        return ()

    running.feed.send(part(100, 1))
    running.feed._push(wait_for_the_server)
    assert waits.wait(10)
    held.leave.set()
    until(lambda: stream.position().captured_lsn == 108, what="the commit to be captured")
    until(lambda: running.traces.captured_lsns == [100], what="the writer to be done with it")
    assert 108 not in running.feed.acknowledged

    # When it is told to stop
    running.stop.set()
    goes_on.set()

    # Then the server hears of that commit before the connection ends
    until(lambda: running.feed.stopped == 1, what="the reader to end")
    assert running.feed.acknowledged[-1] == 108


def test_a_stop_does_not_wait_for_room(running: Running, stream: SqliteStream, monkeypatch: pytest.MonkeyPatch) -> None:
    held = without_room(running, Held(stream, monkeypatch))
    until(lambda: running.feed.feedbacks >= 1, what="the reader to find no room")

    running.stop.set()

    until(lambda: running.feed.stopped == 1, what="the reader to end")
    held.leave.set()


def test_a_full_stream_is_told_until_it_has_room(
    running: Running, stream: SqliteStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, told = stream.append, threading.Event()

    def full(*args: object, **more: object) -> object:
        if not told.is_set():
            raise StreamFull("full", hint="make room")
        return append(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(stream, "append", full)
    running.feed.send(part(100, 1))
    until(lambda: metrics.STREAM_FULL._value.get() == 1)

    told.set()
    until(lambda: metrics.STREAM_FULL._value.get() == 0)
    until(lambda: stream.position().captured_lsn == 108)
