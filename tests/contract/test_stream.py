"""Every stream keeps the same contract: durable, exactly once by position, in order, and never ahead of itself."""

from __future__ import annotations

import atexit
import functools
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_agent.errors import IdentityMismatch, StreamError, StreamFull
from cdc_agent.events import UNCHANGED, Change, ChangeEvent, Column, Op, Relation, Transaction
from cdc_agent.lsn import Lsn, Version
from cdc_agent.stream import sqlite as sqlite_backend
from cdc_agent.stream.base import Position, Stream
from cdc_agent.stream.jetstream import JetStream
from cdc_agent.stream.nats_link import NatsPlace
from cdc_agent.stream.sqlite import SqliteStream
from tests.support.nats import NatsServer
from tests.support.wait import until

RELATION = Relation(
    oid=1,
    root_oid=1,
    schema="public",
    name="t",
    columns=(Column(name="id", type_oid=23), Column(name="body", type_oid=25)),
    key=("id",),
)


def jetstream(folder: Path, **settings: Any) -> Stream:
    name = f"t{crc32(str(folder).encode()):08x}"
    return JetStream(NatsPlace(urls=(nats_server().url,)), name, **{"hold_s": 0.0, **settings})


@functools.cache
def nats_server() -> NatsServer:
    """One for the whole session; its streams differ by name."""
    folder = Path(tempfile.mkdtemp(prefix="cdc-agent-test-nats-"))
    server = NatsServer(folder, jetstream="max_file_store: 100TB")
    server.start()
    atexit.register(lambda: (server.kill(), shutil.rmtree(folder, ignore_errors=True)))
    return server


#: How each backend is opened on a folder: to add one, name it here.
BACKENDS: dict[str, Callable[..., Stream]] = {
    "sqlite": lambda folder, **settings: SqliteStream(folder / "stream.db", **settings),
    "jetstream": jetstream,
}


@dataclass
class Opener:
    """Opens one stream again and again, as a daemon does that is started again."""

    backend: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    opened: list[Stream] = field(default_factory=list)

    def __call__(self, **settings: Any) -> Stream:
        self.close()
        self.settings.update(settings)
        self.opened.append(BACKENDS[self.backend](self.folder, **self.settings))
        return self.opened[-1]

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_stream(backend: str, tmp_path: Path) -> Iterator[Opener]:
    opener = Opener(backend, tmp_path)
    yield opener
    opener.close()


@pytest.fixture
def stream(open_stream: Opener) -> Stream:
    return open_stream()


# -- transactions -------------------------------------------------------------------------------------------------


def transaction(commit_lsn: int, *ordinals: int, end: bool = True, size: int = 10, **more: Any) -> Transaction:
    """Changes with these ordinals of the commit at ``commit_lsn``; its end is eight bytes further."""
    changes = [Change("c", RELATION, n, None, (str(n).encode(), b"x" * size)) for n in ordinals]
    return Transaction(
        xid=commit_lsn,
        commit_lsn=Lsn(commit_lsn),
        commit_ts_us=commit_lsn * 1000,
        changes=changes,
        end_lsn=Lsn(commit_lsn + 8) if end else None,
        size_bytes=size * len(ordinals),
        **more,
    )


def sized(*commits: tuple[int, int]) -> list[Transaction]:
    """Commits of so many changes, and of so many bytes for each of them."""
    return [transaction(n * 100, *range(1, count + 1), size=size) for n, (count, size) in enumerate(commits, 1)]


def versions(events: Sequence[ChangeEvent]) -> list[tuple[int, int]]:
    return [(int(e.version.commit_lsn), e.version.ordinal) for e in events]


def everything(stream: Stream, *, limit: int = 100_000) -> list[ChangeEvent]:
    """All events, read in batches of ``limit`` from the first one that is still there."""
    offset, events = stream.first_offset() - 1, []
    while True:
        batch = stream.read(offset, limit=limit, wait_s=0)
        events += batch.events
        if batch.next_offset == offset:
            return events
        offset = batch.next_offset


# -- appending ----------------------------------------------------------------------------------------------------


class TestAppending:
    def test_an_empty_stream_is_at_the_beginning(self, stream: Stream) -> None:
        assert stream.position() == Position()
        assert (stream.head_offset(), stream.first_offset(), stream.size_bytes()) == (0, 1, 0)
        assert stream.read(0, limit=10, wait_s=0).events == []

    def test_what_was_appended_is_there_when_it_is_opened_again(self, open_stream: Opener) -> None:
        # Given a stream with two commits, a part of a third, and no orderly end
        stream = open_stream()
        stream.append([transaction(100, 1, 2), transaction(200, 1)])
        stream.append([transaction(300, 1, 2, end=False)])
        position, size = stream.position(), stream.size_bytes()

        # When it is opened again
        stream = open_stream()

        # Then everything is as it was
        assert stream.position() == position == Position(captured_lsn=Lsn(208), partial=Version(Lsn(300), 2))
        assert stream.size_bytes() == size > 0
        assert versions(everything(stream)) == [(100, 1), (100, 2), (200, 1), (300, 1), (300, 2)]

    def test_offsets_are_contiguous_from_one_on(self, stream: Stream) -> None:
        for lsn in range(100, 300, 20):
            stream.append([transaction(lsn, 1, 2), transaction(lsn + 10, 5)])

        assert [e.offset for e in everything(stream)] == list(range(1, 31))
        assert stream.head_offset() == 30

    def test_an_event_comes_back_as_it_was_appended(self, stream: Stream) -> None:
        # Given an update with an old row and a value that was not sent, bytes that are no text, a message and a page
        update = Change("u", RELATION, 2, (b"1", None), (b"2", UNCHANGED))
        strange = Change("c", RELATION, 3, None, (b"\xff", b""))
        message = Change("m", None, 4, (b"cdc_agent.x", b"\x00\xff"), None)
        read = Change("r", RELATION, 1, None, (b"1", None))
        first = transaction(100)
        first.changes = [update, strange, message]
        page = transaction(200, snapshot="5:9:7", resync_id=3)
        page.changes = [read]

        # When they travel
        stream.append([first, page])
        got = everything(stream)

        # Then nothing is lost
        assert [(e.op, e.before.raw if e.before else None, e.after.raw if e.after else None) for e in got] == [
            (Op.UPDATE, (b"1", None), (b"2", UNCHANGED)),
            (Op.CREATE, None, (b"\xff", b"")),
            (Op.MESSAGE, None, None),
            (Op.READ, None, (b"1", None)),
        ]
        assert got[2].message == ("cdc_agent.x", b"\x00\xff")
        assert got[0].relation == RELATION
        assert (got[0].xid, got[0].commit_ts_us, got[0].version) == (100, 100_000, Version(Lsn(100), 2))
        assert (got[3].snapshot, got[3].resync_id) == ("5:9:7", 3)
        assert (got[0].snapshot, got[0].resync_id) == (None, 0)

    def test_a_commit_that_is_here_is_not_taken_again(self, stream: Stream) -> None:
        stream.append([transaction(100, 1), transaction(200, 1)])

        position = stream.append([transaction(100, 1), transaction(200, 1), transaction(300, 1)])

        assert versions(everything(stream)) == [(100, 1), (200, 1), (300, 1)]
        assert position.captured_lsn == 308

    @pytest.mark.fault("positions-that-repeat")
    def test_a_commit_that_begins_where_the_last_one_ended_is_a_new_one(self, stream: Stream) -> None:
        stream.append([transaction(100, 1)])

        stream.append([transaction(108, 1)])

        assert versions(everything(stream)) == [(100, 1), (108, 1)]

    def test_a_commit_that_comes_twice_in_one_append_is_taken_once(self, stream: Stream) -> None:
        # When the source reconnected while what it had sent before still waited to be appended
        stream.append(
            [
                transaction(100, 1),
                transaction(200, 1, 2, end=False),
                transaction(100, 1),
                transaction(200, 1, end=False),
                transaction(200, 2, 3),
            ]
        )

        assert versions(everything(stream)) == [(100, 1), (200, 1), (200, 2), (200, 3)]
        assert stream.position() == Position(captured_lsn=Lsn(208))

    def test_of_a_commit_that_is_partly_here_only_the_rest_is_taken(self, open_stream: Opener) -> None:
        stream = open_stream()
        stream.append([transaction(100, 1, 2, 4, end=False)])

        stream = open_stream()
        stream.append([transaction(100, 1, end=False), transaction(100, 2, 4, 6, end=False), transaction(100, 7)])

        assert versions(everything(stream)) == [(100, 1), (100, 2), (100, 4), (100, 6), (100, 7)]

    def test_the_end_of_a_commit_counts_even_when_all_its_changes_are_here(self, stream: Stream) -> None:
        stream.append([transaction(100, 1, end=False)])

        position = stream.append([transaction(100)])

        assert position == Position(captured_lsn=Lsn(108))

    def test_an_idle_server_moves_the_position_without_an_entry(self, stream: Stream) -> None:
        stream.append([transaction(100, 1)])

        stream.append([transaction(500)])
        position = stream.append([], captured_lsn=Lsn(600))

        assert position.captured_lsn == stream.position().captured_lsn == 600
        assert stream.head_offset() == 1

    def test_the_position_never_moves_backward(self, stream: Stream) -> None:
        stream.append([], captured_lsn=Lsn(600))

        assert stream.append([], captured_lsn=Lsn(5)).captured_lsn == 600
        assert stream.append([transaction(100, 1)]).captured_lsn == 600
        assert stream.head_offset() == 0

    @pytest.mark.parametrize("idle", [[transaction(250)], []], ids=["as a transaction", "as a position"])
    def test_an_idle_position_before_the_end_of_a_partial_commit_does_not_forget_its_part(
        self, stream: Stream, idle: list[Transaction]
    ) -> None:
        # Given a part of the commit at 300; then the connection broke, and the new one first says "I am at 250"
        stream.append([transaction(300, 1, 2, end=False)])
        position = stream.append(idle, captured_lsn=Lsn(250))

        # When the commit is sent from its beginning
        stream.append([transaction(300, 1, 2, 3)])

        # Then nothing is doubled
        assert position == Position(captured_lsn=Lsn(258 if idle else 250), partial=Version(Lsn(300), 2))
        assert versions(everything(stream)) == [(300, 1), (300, 2), (300, 3)]

    def test_a_position_behind_a_partial_commit_gives_it_up(self, stream: Stream) -> None:
        # Given a part of a commit whose slot was lost: its end will never come
        stream.append([transaction(300, 1, end=False)])

        # When a new slot begins at 500
        position = stream.append([], captured_lsn=Lsn(500))

        # Then that is where we are
        assert position == Position(captured_lsn=Lsn(500))


# -- exactly once, by every crash ---------------------------------------------------------------------------------


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Ordinals of some commits, and for each connection how it cuts them into parts before it breaks."""
    commits = draw(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6, unique=True).map(sorted), max_size=5))
    cuts = [[draw(st.lists(st.booleans(), min_size=len(c), max_size=len(c))) for c in commits] for _ in range(4)]
    return commits, cuts


def parts(number: int, ordinals: list[int], cuts: list[bool]) -> list[Transaction]:
    """One commit in parts, cut after the marked changes; the last part may have no change."""
    lsn, made, group = 100 * (number + 1), [], []
    for ordinal, cut in zip(ordinals, cuts, strict=True):
        group.append(ordinal)
        if cut:
            made.append(transaction(lsn, *group, end=False))
            group = []
    return [*made, transaction(lsn, *group)]


@settings(max_examples=40, deadline=None)
@given(given_=deliveries(), data=st.data())
@pytest.mark.fault("positions-that-repeat", "killed-in-a-large-transaction")
def test_any_parts_any_crash_any_redelivery_come_to_the_same_sequence(
    given_: tuple[list[list[int]], list[list[list[bool]]]], data: st.DataObject
) -> None:
    commits, connections = given_
    backend = data.draw(st.sampled_from(sorted(BACKENDS)))
    wanted = [(100 * (n + 1), ordinal) for n, ordinals in enumerate(commits) for ordinal in ordinals]
    with tempfile.TemporaryDirectory() as folder, closing(Opener(backend, Path(folder))) as opener:
        stream = opener()
        for connection, cuts in enumerate(connections):
            # Given a connection that starts at the stream's position, or earlier: a server may have rewound
            captured = stream.position().captured_lsn
            first = next((n for n in range(len(commits)) if 100 * (n + 1) >= captured), len(commits))
            first = data.draw(st.integers(0, first))
            sent = [part for n in range(first, len(commits)) for part in parts(n, commits[n], cuts[n])]

            # When it breaks after any number of parts, which were gathered into any groups, and we are killed or not
            if connection < len(connections) - 1:
                sent = sent[: data.draw(st.integers(0, len(sent)))]
            while sent:
                size = data.draw(st.integers(1, len(sent)))
                idle = data.draw(st.booleans())
                stream.append(sent[:size])
                if idle:
                    stream.append([transaction(int(stream.position().captured_lsn))])
                sent = sent[size:]
                assert_watermark_is_never_ahead(stream, commits)
            if data.draw(st.booleans()):
                stream = opener()

        # Then the stream holds every change once and in order, whatever the limit of a read
        found = everything(stream, limit=data.draw(st.integers(1, 7)))
    assert versions(found) == wanted
    assert [e.offset for e in found] == list(range(1, len(wanted) + 1))


def assert_watermark_is_never_ahead(stream: Stream, commits: list[list[int]]) -> None:
    """Who has read up to an offset has every change of every commit up to the watermark that came with it."""
    offset, seen = 0, set()
    while True:
        batch = stream.read(offset, limit=2, wait_s=0)
        seen |= set(versions(batch.events))
        for number, ordinals in enumerate(commits):
            lsn = 100 * (number + 1)
            if lsn + 8 <= batch.applied_lsn:
                assert {(lsn, ordinal) for ordinal in ordinals} <= seen
        if batch.next_offset == offset:
            assert batch.applied_lsn == stream.position().captured_lsn
            return
        offset = batch.next_offset


# -- reading ------------------------------------------------------------------------------------------------------


class TestReading:
    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
    def test_reads_cross_blocks_with_any_limit(
        self, stream: Stream, monkeypatch: pytest.MonkeyPatch, limit: int
    ) -> None:
        # Given commits that lie in many small blocks
        monkeypatch.setattr(sqlite_backend, "_BLOCK_CHANGES", 3)
        for lsn in range(100, 1000, 100):
            stream.append([transaction(lsn, 1, 2), transaction(lsn + 10, 1, 2, 3, 4)])

        # When they are read
        batch = stream.read(4, limit=limit, wait_s=0)

        # Then a batch is as long as asked, and a reader that goes on sees each once
        assert len(batch.events) == min(limit, 50)
        assert batch.next_offset == 4 + len(batch.events)
        assert batch.head_offset == 54
        assert [e.offset for e in everything(stream, limit=limit)] == list(range(1, 55))

    def test_the_watermark_moves_with_the_ends_of_commits(self, stream: Stream) -> None:
        stream.append([transaction(100, 1, 2), transaction(200, 1), transaction(300, 1, 2, end=False)])

        marks = [int(stream.read(0, limit=n, wait_s=0).applied_lsn) for n in range(1, 6)]

        assert marks == [0, 108, 208, 208, 208]

    def test_an_idle_position_counts_only_for_who_has_read_everything(self, stream: Stream) -> None:
        stream.append([transaction(100, 1), transaction(200, 1)])
        stream.append([], captured_lsn=Lsn(900))

        assert stream.read(0, limit=1, wait_s=0).applied_lsn == 108
        assert stream.read(0, limit=2, wait_s=0).applied_lsn == 900
        assert stream.read(2, limit=2, wait_s=0).applied_lsn == 900

    def test_a_reader_may_go_back_by_one(self, stream: Stream) -> None:
        stream.append([transaction(100, 1)])
        stream.append([transaction(200, 1)])

        for after, found in ((1, [(200, 1)]), (0, [(100, 1)]), (1, [(200, 1)])):
            assert versions(stream.read(after, limit=1, wait_s=0).events) == found

    def test_many_readers_at_many_places_do_not_disturb_each_other(self, stream: Stream) -> None:
        # Given a stream that is still written
        seen: dict[int, list[int]] = {n: [] for n in range(4)}

        def follow(number: int) -> None:
            offset = 0
            while offset < 200:
                batch = stream.read(offset, limit=number + 1, wait_s=5)
                seen[number] += [e.offset for e in batch.events]
                offset = batch.next_offset

        threads = [threading.Thread(target=follow, args=(n,)) for n in seen]
        for thread in threads:
            thread.start()

        # When two hundred entries are appended
        for lsn in range(100, 200):
            stream.append([transaction(lsn * 10, 1, 2)])
        for thread in threads:
            thread.join(20)

        # Then each reader has seen each of them once
        assert all(offsets == list(range(1, 201)) for offsets in seen.values())


class TestWaiting:
    def reader(self, stream: Stream, offset: int, got: list[Any]) -> threading.Thread:
        """A thread that reads with a long wait, and is known to wait when this returns."""
        before = len(waiters(stream))
        thread = threading.Thread(target=lambda: got.append(stream.read(offset, limit=10, wait_s=60)))
        thread.start()
        until(lambda: len(waiters(stream)) > before, what="the reader to wait")
        return thread

    def test_a_reader_wakes_for_an_entry(self, stream: Stream) -> None:
        got: list[Any] = []
        thread = self.reader(stream, 0, got)

        stream.append([transaction(100, 1)])
        thread.join(10)

        assert versions(got[0].events) == [(100, 1)]

    def test_a_reader_wakes_for_a_move_of_the_position(self, stream: Stream) -> None:
        got: list[Any] = []
        thread = self.reader(stream, 0, got)

        stream.append([], captured_lsn=Lsn(700))
        thread.join(10)

        assert (got[0].events, got[0].applied_lsn) == ([], 700)

    def test_every_waiting_reader_wakes_when_asked_to(self, stream: Stream) -> None:
        got: list[Any] = []
        threads = [self.reader(stream, 0, got) for _ in range(3)]

        stream.wake()
        for thread in threads:
            thread.join(10)

        assert [batch.events for batch in got] == [[], [], []]

    def test_a_wake_is_not_lost_on_who_is_about_to_wait_nor_taken_by_who_does_not(self, stream: Stream) -> None:
        # Given a wake, and a reader that looks without waiting
        stream.wake()
        stream.read(0, limit=1, wait_s=0)

        # When a reader comes to wait
        thread = threading.Thread(target=lambda: stream.read(0, limit=1, wait_s=60), daemon=True)
        thread.start()
        thread.join(10)

        # Then it does not wait
        assert not thread.is_alive()

    def test_a_wait_ends_by_itself(self, stream: Stream) -> None:
        assert stream.read(0, limit=1, wait_s=0.01).events == []

    def test_nobody_waits_for_what_is_there(self, stream: Stream) -> None:
        stream.append([transaction(100, 1)])

        assert len(stream.read(0, limit=1, wait_s=60).events) == 1


def waiters(stream: Stream) -> Sequence[object]:
    """Threads that wait inside of the stream."""
    return list(stream._news._moved._waiters)  # type: ignore[attr-defined]


# -- retention ----------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class TestRetention:
    def fill(self, stream: Stream, lsns: range, size: int = 1000) -> None:
        for lsn in lsns:
            stream.append([transaction(lsn * 10, 1, size=size)])

    def test_what_is_old_and_released_goes(self, open_stream: Opener) -> None:
        # Given ten entries that everybody has read up to the sixth
        clock = Clock()
        stream = open_stream(retention_s=100.0, wall_clock=clock)
        self.fill(stream, range(10, 20))
        stream.release("one", 6)
        stream.release("two", 9)

        # When they are old
        clock.now += 101
        stream.append([transaction(900, 1)])

        # Then what the slower one still needs is here, and reading before it is an error and not a gap
        assert stream.first_offset() == 7
        assert [e.offset for e in stream.read(6, limit=100, wait_s=0).events] == [7, 8, 9, 10, 11]
        with pytest.raises(StreamError, match="not in the stream any more") as gone:
            stream.read(5, limit=100, wait_s=0)
        assert gone.value.hint

    def test_what_is_young_stays(self, open_stream: Opener) -> None:
        clock = Clock()
        stream = open_stream(retention_s=100.0, wall_clock=clock)
        self.fill(stream, range(10, 20))
        stream.release("one", 10)

        clock.now += 99
        stream.append([transaction(900, 1)])

        assert stream.first_offset() == 1

    def test_nothing_goes_that_nobody_has_asked_for_yet(self, open_stream: Opener) -> None:
        clock = Clock()
        stream = open_stream(retention_s=0.0, wall_clock=clock)
        self.fill(stream, range(10, 20))

        clock.now += 1_000
        stream.append([transaction(900, 1)])

        assert stream.first_offset() == 1

    def test_a_release_never_moves_backward_and_outlives_a_restart(self, open_stream: Opener) -> None:
        clock = Clock()
        stream = open_stream(retention_s=1.0, wall_clock=clock)
        self.fill(stream, range(10, 20))
        stream.release("one", 5)
        stream.release("one", 2)

        stream = open_stream()
        clock.now += 1_000
        stream.append([transaction(900, 1)])

        assert stream.first_offset() == 6

    def test_offsets_go_on_after_everything_is_gone(self, open_stream: Opener) -> None:
        clock = Clock()
        stream = open_stream(retention_s=1.0, wall_clock=clock)
        self.fill(stream, range(10, 13))
        stream.release("one", 3)
        clock.now += 1_000
        stream.append([], captured_lsn=Lsn(500))
        assert (stream.first_offset(), stream.size_bytes()) == (4, 0)

        stream = open_stream()
        stream.append([transaction(900, 1)])

        assert [e.offset for e in stream.read(3, limit=10, wait_s=0).events] == [4]

    @settings(max_examples=15, deadline=None)
    @given(data=st.data())
    def test_retention_never_passes_the_slowest_consumer(self, data: st.DataObject) -> None:
        backend = data.draw(st.sampled_from(sorted(BACKENDS)))
        with tempfile.TemporaryDirectory() as folder, closing(Opener(backend, Path(folder))) as opener:
            clock = Clock()
            retention_s = data.draw(st.sampled_from([0.0, 50.0, 10_000.0]))
            stream = opener(max_bytes=5_000, retention_s=retention_s, wall_clock=clock)
            offsets = {"one": 0, "two": 0}
            for name in offsets:
                stream.release(name, 0)
            for lsn in range(1, 25):
                clock.now += data.draw(st.integers(0, 60))
                try:
                    stream.append([transaction(lsn * 10, 1, size=data.draw(st.integers(1, 2_000)))])
                except StreamFull:
                    assert min(offsets.values()) < stream.head_offset()
                for name in offsets:
                    if data.draw(st.booleans()):
                        batch = stream.read(offsets[name], limit=data.draw(st.integers(1, 5)), wait_s=0)
                        assert [e.offset for e in batch.events] == list(range(offsets[name] + 1, batch.next_offset + 1))
                        offsets[name] = batch.next_offset
                        stream.release(name, offsets[name])
                assert stream.first_offset() <= min(offsets.values()) + 1
                assert stream.size_bytes() <= 5_000


class TestFull:
    @pytest.mark.fault("stream-full")
    def test_a_full_stream_refuses_and_goes_on_when_somebody_has_read(self, open_stream: Opener) -> None:
        # Given a stream that is full of what an agent needs
        stream = open_stream(max_bytes=3_000)
        stream.release("one", 0)
        with pytest.raises(StreamFull) as full:
            for lsn in range(100, 200, 10):
                stream.append([transaction(lsn, 1, size=800)])
        head, position = stream.head_offset(), stream.position()
        assert head == 3
        assert full.value.hint

        # When it refuses, nothing of it is taken
        with pytest.raises(StreamFull):
            stream.append([transaction(900, 1, size=800)])
        assert (stream.head_offset(), stream.position()) == (head, position)

        # When the agent has read, it goes on, young as everything is, and drops no more than it must
        stream.release("one", 2)
        stream.append([transaction(900, 1, size=800)])
        assert [e.offset for e in everything(stream)] == [2, 3, 4]

    def test_a_full_stream_still_takes_a_position(self, open_stream: Opener) -> None:
        stream = open_stream(max_bytes=1_000)
        stream.release("one", 0)
        stream.append([transaction(100, 1, size=800)])

        assert stream.append([], captured_lsn=Lsn(800)).captured_lsn == 800

    def test_what_is_larger_than_the_whole_stream_passes_once_the_stream_is_empty(self, open_stream: Opener) -> None:
        stream = open_stream(max_bytes=1_000)
        stream.append([transaction(100, 1, size=800)])
        large = transaction(200, 1, size=50_000)
        with pytest.raises(StreamFull):
            stream.append([large])

        stream.release("one", 1)
        stream.append([large])

        assert versions(everything(stream)) == [(200, 1)]
        # A position takes no room.
        assert stream.append([], captured_lsn=Lsn(900)).captured_lsn == 900

    @pytest.mark.fault("stream-full")
    def test_a_redelivery_after_it_was_full_is_neither_lost_nor_doubled(self, open_stream: Opener) -> None:
        # Given a stream that was full in the middle of a commit
        stream = open_stream(max_bytes=2_000)
        stream.release("one", 0)
        stream.append([transaction(100, 1, 2, size=800, end=False)])
        again = [transaction(100, 1, 2, size=800, end=False), transaction(100, 3, size=800)]
        for _ in range(2):
            with pytest.raises(StreamFull):
                stream.append(again)

        # When there is room and the same objects are appended again
        stream.release("one", 2)
        stream.append(again)

        assert versions(everything(stream)) == [(100, 3)]
        assert stream.position() == Position(captured_lsn=Lsn(108))


class TestSqliteFile:
    """What only the SQLite file can suffer."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "stream.db"

    @pytest.fixture
    def full(self, path: Path) -> Iterator[SqliteStream]:
        """A stream on a disk that is full to the last page."""
        stream = SqliteStream(path)
        stream.append([transaction(100, 1, size=100_000)])
        pages = stream._writer.execute("pragma page_count").fetchone()[0]
        stream._writer.execute(f"pragma max_page_count = {pages}")
        yield stream
        stream.close()

    @pytest.mark.fault("disk-full")
    def test_a_full_disk_is_a_full_stream_and_nothing_is_half_written(self, full: SqliteStream, path: Path) -> None:
        # When a commit does not fit on the disk
        with pytest.raises(StreamFull):
            full.append([transaction(200, 1, size=100_000)])

        # Then nothing of it is there, and it fits once there is room
        assert (full.head_offset(), full.position().captured_lsn) == (1, 108)
        full._writer.execute("pragma max_page_count = 1000000")
        full.append([transaction(200, 1, size=100_000)])
        assert versions(everything(full)) == [(100, 1), (200, 1)]

    @pytest.mark.parametrize("act", ["append", "release"])
    def test_a_file_that_cannot_be_written_is_an_error_of_ours(self, path: Path, act: str) -> None:
        stream = SqliteStream(path)
        stream._writer.execute("pragma query_only = on")

        with pytest.raises(StreamError):
            stream.append([transaction(100, 1)]) if act == "append" else stream.release("one", 1)
        stream.close()

    def test_a_closed_stream_says_so(self, path: Path) -> None:
        stream = SqliteStream(path)
        stream.append([transaction(100, 1)])
        stream.close()

        for act in (lambda: stream.read(0, limit=1, wait_s=0), lambda: stream.append([transaction(200, 1)])):
            with pytest.raises(StreamError):
                act()

    @pytest.mark.fault("stream-damaged")
    def test_a_damaged_file_is_refused_with_a_remedy(self, path: Path) -> None:
        # Given a file in whose middle somebody wrote
        stream = SqliteStream(path)
        for lsn in range(100, 200, 10):
            stream.append([transaction(lsn, 1, size=50_000)])
        stream.close()
        data = bytearray(path.read_bytes())
        data[len(data) // 3 : len(data) // 3 + 40_000] = b"\xff" * 40_000
        path.write_bytes(data)

        with pytest.raises(IdentityMismatch) as refused:
            everything(SqliteStream(path))
        assert refused.value.state == "STREAM_CORRUPT"
        assert "on_mismatch" in refused.value.hint.lower()

    @pytest.mark.parametrize(
        "change",
        [
            "update position set captured_lsn = captured_lsn + 1",
            "update position set head_offset = head_offset + 1",
            "update position set ledger = 'x'",
            "delete from position",
            "drop table consumer",
        ],
    )
    def test_a_position_that_was_not_written_by_us_is_damage(self, path: Path, change: str) -> None:
        stream = SqliteStream(path)
        stream.append([transaction(100, 1)])
        stream.close()
        with sqlite3.connect(path) as connection:
            connection.execute(change)
        connection.close()

        with pytest.raises(IdentityMismatch, match="STREAM_CORRUPT"):
            SqliteStream(path)

    def test_an_entry_that_was_not_written_by_us_is_damage(self, path: Path) -> None:
        # Given a stream with two blocks, one of which has a byte that flipped
        stream = SqliteStream(path)
        stream.append([transaction(100, 1)])
        stream.append([transaction(200, 1)])
        stream._writer.execute("update block set payload = cast(payload || x'00' as blob) where first_offset = 2")

        # Then it is never read, and a check before anybody reads finds it
        with pytest.raises(IdentityMismatch, match=r"STREAM_CORRUPT.* from offset 2 on"):
            stream.read(1, limit=10, wait_s=0)
        with pytest.raises(IdentityMismatch, match=r"STREAM_CORRUPT.* from offset 2 on"):
            stream.check(0)
        assert stream.damage is not None

        # But what nobody will read again is nobody's trouble
        stream.check(2)
        stream.close()

    def test_it_remembers_its_ledger(self, path: Path) -> None:
        stream = SqliteStream(path)
        assert stream.ledger() == ""
        stream.tie("a-uuid")
        stream.close()

        stream = SqliteStream(path)
        assert stream.ledger() == "a-uuid"
        stream.close()

    @pytest.mark.parametrize("again", [False, True], ids=["at once", "when it is opened again"])
    def test_a_new_one_counts_on_from_where_its_readers_are(self, path: Path, again: bool) -> None:
        # Given a new stream in place of one that was lost
        stream = SqliteStream(path)
        stream.begin_at(500)
        if again:
            stream.close()
            stream = SqliteStream(path)

        # When something is appended
        stream.append([transaction(100, 1)])

        # Then readers of the lost one find it next, also one that was further behind
        assert stream.head_offset() == 501
        for offset in (500, 20):
            assert len(stream.read(offset, limit=10, wait_s=0).events) == 1
        with pytest.raises(StreamError):
            stream.begin_at(1_000)
        stream.close()

    @pytest.mark.parametrize(
        ("appended", "blocks"),
        [
            (sized((5_000, 10), (4_999, 10), (1, 10), (1, 10)), [5_000, 5_000, 1]),
            (sized((4_999, 10), (1, 10), (1, 10)), [5_000, 1]),
            (sized((1, 1 << 20), (1, (1 << 20) - 1), (1, 1), (1, 1)), [1, 2, 1]),
            (sized((1, (1 << 20) - 1), (1, 1), (1, 1)), [2, 1]),
        ],
        ids=["many changes", "many changes of two commits", "many bytes", "many bytes of two commits"],
    )
    def test_what_is_appended_at_once_is_cut_into_blocks_of_bounded_size(
        self, path: Path, appended: list[Transaction], blocks: list[int]
    ) -> None:
        with closing(SqliteStream(path)) as stream:
            stream.append(appended)

            assert [
                count for (count,) in stream._writer.execute("select count from block order by first_offset")
            ] == blocks

    def test_what_goes_wrong_in_the_middle_of_an_append_leaves_nothing(self, path: Path) -> None:
        with closing(SqliteStream(path)) as stream:
            # Given a second block that is refused
            stream._writer.execute(
                "create temp trigger refused before insert on block when new.first_offset = 2 "
                "begin select raise(abort, 'no'); end"
            )
            with pytest.raises(StreamError, match="no"):
                stream.append([transaction(100, 1, size=1 << 20), transaction(200, 1)])
            assert (stream.head_offset(), stream.position()) == (0, Position())

            # When it is not any more
            stream._writer.execute("drop trigger refused")
            stream.append([transaction(100, 1, size=1 << 20), transaction(200, 1)])

            # Then everything is there, once
            assert versions(everything(stream)) == [(100, 1), (200, 1)]

    def test_it_takes_as_many_bytes_as_it_may_and_not_one_more(self, path: Path) -> None:
        # Given the size of two entries
        with closing(SqliteStream(path)) as stream:
            stream.append([transaction(100, 1)])
            stream.append([transaction(200, 1)])
            size = stream.size_bytes()

        for place, (max_bytes, head) in enumerate([(size, 2), (size - 1, 1)]):
            clock = Clock()
            with closing(SqliteStream(path.with_name(f"{place}.db"), max_bytes=max_bytes, wall_clock=clock)) as stream:
                with suppress(StreamFull):
                    stream.append([transaction(100, 1)])
                    # It looks for old blocks, too.
                    clock.now += 60
                    stream.append([transaction(200, 1)])
                assert stream.head_offset() == head

    def test_a_file_of_another_version_is_refused(self, path: Path) -> None:
        SqliteStream(path).close()
        with sqlite3.connect(path) as connection:
            connection.execute("pragma user_version = 99")
        connection.close()

        with pytest.raises(StreamError, match="schema 99"):
            SqliteStream(path)

    def test_two_appends_at_the_same_time_take_turns(self, path: Path) -> None:
        # Given the writer of capture, and a slot that is made anew meanwhile
        stream = SqliteStream(path)
        threads = [
            threading.Thread(target=lambda: [stream.append([], captured_lsn=Lsn(n)) for n in range(200)]),
            threading.Thread(target=lambda: [stream.append([transaction(10_000 + n * 10, 1)]) for n in range(200)]),
        ]

        # When both append
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        # Then every entry is there
        assert len(everything(stream)) == 200
        stream.close()
