"""The stream against real NATS servers that are too old, go away, fill up, forget, or are somebody else's."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cdc_agent.errors import IdentityMismatch, StreamError, StreamFull, StreamUnavailable
from cdc_agent.events import Change, Column, Relation, Transaction
from cdc_agent.lsn import Lsn
from cdc_agent.stream.jetstream import JetStream, bucket_of, remove
from cdc_agent.stream.nats_link import NatsLink, NatsPlace
from cdc_agent.stream.nats_server import SyncFacts, sync_facts
from tests.support.certificates import Authority
from tests.support.nats import NatsServer, found_old
from tests.support.ports import free_port
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import until

T = TypeVar("T")
Open = Callable[..., JetStream]

RELATION = Relation(
    oid=1, root_oid=1, schema="public", name="t", columns=(Column(name="body", type_oid=25),), key=("body",)
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def open_stream(server: NatsServer) -> Iterator[Open]:
    """Opens the stream of one name, again and again; what was opened before stays open."""
    opened: list[JetStream] = []

    def open_one(url: str = "", **more: Any) -> JetStream:
        place = NatsPlace(urls=(url or server.url,), timeout_s=2.0)
        opened.append(JetStream(place, "docs", **{"hold_s": 0.0, **more}))
        return opened[-1]

    yield open_one
    for stream in opened:
        stream.close()


def transaction(lsn: int, *ordinals: int, size: int = 10, end: bool = True) -> Transaction:
    changes = [Change("c", RELATION, n, None, (b"x" * size,)) for n in ordinals]
    end_lsn = Lsn(lsn + 8) if end else None
    return Transaction(xid=lsn, commit_lsn=Lsn(lsn), commit_ts_us=0, changes=changes, end_lsn=end_lsn)


def versions(stream: JetStream) -> list[tuple[int, int]]:
    """Of everything in the stream, once its server answers: it may have been started a moment ago."""

    def read() -> list[list[tuple[int, int]]]:
        try:
            return [_versions(stream)]
        except StreamUnavailable as exc:
            raise AssertionError("NATS does not answer yet") from exc

    return until(read, 60, "NATS to answer")[0]


def _versions(stream: JetStream) -> list[tuple[int, int]]:
    offset, found = stream.first_offset() - 1, []
    while (batch := stream.read(offset, limit=1_000, wait_s=0)).events:
        found += [(int(e.version.commit_lsn), e.version.ordinal) for e in batch.events]
        offset = batch.next_offset
    return found


# -- who reads ----------------------------------------------------------------------------------------------------


def test_its_readers_are_found_again_without_listening_for_them(server: NatsServer, open_stream: Open) -> None:
    # Given a stream with two readers, and one that has left it
    stream = open_stream()
    for offset, name in enumerate(("indexer", "app:on mail, 'now'", "gone")):
        stream.release(name, offset)
    stream.release("indexer", 7)
    stream.forget("gone")

    # When it is opened once more
    with consumers_made(server, bucket_of("docs")) as made:
        again = open_stream()

    # Then all who read it are known, and the server was asked: who listens may hear that there is nobody
    assert {name: again.released(name) for name in again.consumers()} == {"indexer": 7, "app:on mail, 'now'": 1}
    assert made == []


@contextmanager
def consumers_made(server: NatsServer, bucket: str) -> Iterator[list[str]]:
    """Names of the consumers of a bucket that are made meanwhile."""
    made: list[str] = []
    link, stream = NatsLink(NatsPlace(urls=(server.url,))), f"KV_{bucket}"

    async def hear(message: Any) -> None:
        made.append(message.subject.rpartition(".")[2])

    try:
        link.call(link.client.subscribe, f"$JS.EVENT.ADVISORY.CONSUMER.CREATED.{stream}.*", cb=hear)
        link.call(link.client.flush)
        yield made
        # The server tells of one after the other.
        link.call(link.js.add_consumer, stream, durable_name="last", ack_policy="none")
        until(lambda: made[-1:] == ["last"], what="the server to tell of the last one")
        del made[-1]
    finally:
        link.close()


# -- what is taken ------------------------------------------------------------------------------------------------


def test_a_server_that_loses_streams_is_refused(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "old", binary=found_old()) as old:
        with pytest.raises(StreamError, match=r"2\.9\.\d+, which can lose") as refused:
            JetStream(NatsPlace(urls=(old.url,)), "docs", hold_s=0.0)
    assert not refused.value.retryable
    assert "2.10.23" in refused.value.hint


def test_nobody_at_the_address_is_an_outage_with_its_name() -> None:
    with pytest.raises(StreamUnavailable, match=r"127\.0\.0\.1:9"):
        JetStream(NatsPlace(urls=("nats://127.0.0.1:9",), timeout_s=1.0), "docs", hold_s=0.0)


def test_who_we_are_is_asked(tmp_path: Path) -> None:
    options = "authorization { user: cdc, password: secret }"
    with NatsServer(tmp_path / "closed", options=options) as closed:
        with pytest.raises(StreamUnavailable, match=r"(?i)authorization") as refused:
            JetStream(NatsPlace(urls=(closed.url,), timeout_s=1.0, user="cdc", password="wrong"), "docs", hold_s=0.0)
        assert "wrong" not in str(refused.value)

        JetStream(NatsPlace(urls=(closed.url,), user="cdc", password="secret"), "docs", hold_s=0.0).close()


def test_the_server_proves_who_it_is(tmp_path: Path) -> None:
    # Given a server with a certificate of an authority of ours
    ours, others = (Authority.create(tmp_path, name) for name in ("ours", "others"))
    ours.issue(tmp_path, "localhost")
    options = f'tls {{ cert_file: "{tmp_path}/server.crt", key_file: "{tmp_path}/server.key" }}'
    with NatsServer(tmp_path / "nats", options=options) as server:

        def place(ca: Authority, host: str = "localhost") -> NatsPlace:
            return NatsPlace(urls=(f"tls://{host}:{server.port}",), ca_file=ca.certificate, timeout_s=2.0)

        # Then it is taken by who trusts that authority, under its name, and by nobody else
        JetStream(place(ours), "docs", hold_s=0.0).close()
        for wrong in (place(others), place(ours, "127.0.0.1")):
            with pytest.raises(StreamUnavailable, match=r"(?i)certificate"):
                JetStream(wrong, "docs", hold_s=0.0)


@pytest.mark.parametrize(
    ("jetstream", "facts"),
    [
        ("", SyncFacts(hold_s=150.0, known=True)),
        ("sync_interval: 10s", SyncFacts(hold_s=40.0, known=True)),
        ("sync_interval: always", SyncFacts(hold_s=0.0, known=True)),
    ],
)
def test_a_server_says_when_it_writes_to_its_disk(tmp_path: Path, jetstream: str, facts: SyncFacts) -> None:
    with NatsServer(tmp_path / "nats", jetstream=jetstream) as server:
        assert sync_facts(server.monitor_url) == facts


def test_a_row_larger_than_a_message_may_be_travels_in_pieces(open_stream: Open) -> None:
    # Given a server that takes a megabyte at once, as servers do
    stream = open_stream()

    # When a row of five comes in the middle of others
    stream.append([transaction(100, 1), transaction(200, 1, 2, size=5_000_000), transaction(300, 1)])

    # Then it is whole, for whoever reads from anywhere, also after a restart
    for one in (stream, open_stream()):
        assert versions(one) == [(100, 1), (200, 1), (200, 2), (300, 1)]
        [event] = one.read(2, limit=1, wait_s=0).events
        assert event.after is not None
        assert len(event.after.raw[0]) == 5_000_000


# -- exactly once -------------------------------------------------------------------------------------------------


COMMITS = [transaction(100 * n, *range(1, 1_501)) for n in range(1, 25)]
WANTED = [(int(tx.commit_lsn), change.ordinal) for tx in COMMITS for change in tx.changes]


@contextmanager
def appending(stream: JetStream) -> Iterator[threading.Thread]:
    """Appends ``COMMITS`` as capture does: in order, each again until it is taken; ended by the end of the block."""

    def append() -> None:
        for commit in COMMITS:
            until(lambda commit=commit: _taken(stream, commit), 60, "a commit to be taken")  # type: ignore[misc]

    thread = threading.Thread(target=append)
    thread.start()
    yield thread
    thread.join(120)
    assert not thread.is_alive()


def _taken(stream: JetStream, commit: Transaction) -> bool:
    try:
        stream.append([replace(commit, changes=list(commit.changes))])
    except (StreamUnavailable, StreamFull):
        return False
    return True


@pytest.mark.chaos
@pytest.mark.slow
def test_a_server_killed_while_it_takes_commits_has_each_change_once(server: NatsServer, open_stream: Open) -> None:
    stream = open_stream()
    with appending(stream):
        for entries in (1_000, 7_000, 13_000, 20_000, 27_000):
            until(lambda n=entries: stream.head_offset() >= n, 60, "entries")  # type: ignore[misc]
            server.kill()
            server.start()

    assert versions(stream) == WANTED
    assert versions(open_stream()) == WANTED


@pytest.mark.chaos
@pytest.mark.slow
def test_a_network_cut_anywhere_loses_and_doubles_nothing(server: NatsServer, open_stream: Open) -> None:
    with TcpProxy(server.port) as proxy:
        stream = open_stream(f"nats://127.0.0.1:{proxy.port}")
        with appending(stream):
            for n in range(12):
                # In the middle of answers, of connections being made, of nothing at all
                cuts = proxy.cuts
                proxy.cut_after(300 + 171 * n)
                until(lambda cuts=cuts: proxy.cuts > cuts, 60, "the cut")  # type: ignore[misc]
            # What was on its way when it was given up still arrives
            proxy.hides_departures = True
            proxy.blackhole()
            until(lambda: not stream._link.client.is_connected, 60, "the hole to be noticed")
            proxy.let_through()

        assert versions(stream) == WANTED
        stream.close()


@pytest.mark.chaos
@pytest.mark.slow
def test_a_cluster_whose_leaders_are_killed_has_each_change_once(tmp_path: Path) -> None:
    # Given three servers that keep three copies
    routes = [free_port() for _ in range(3)]
    others = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
    servers = [
        NatsServer(
            tmp_path / f"n{n}",
            options=f"server_name: n{n}\ncluster {{ name: c, listen: 127.0.0.1:{port}, routes: [{others}] }}",
        )
        for n, port in enumerate(routes)
    ]
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        place = NatsPlace(urls=tuple(server.url for server in servers), timeout_s=3.0)
        stream = answered(lambda: JetStream(place, "docs", replicas=3, hold_s=0.0))
        stack.callback(stream.close)

        # When one after the other is killed
        with appending(stream):
            for n, entries in enumerate((3_000, 9_000, 15_000, 22_000)):
                until(lambda n=entries: stream.head_offset() >= n, 60, "entries")  # type: ignore[misc]
                servers[n % 3].kill()
                servers[n % 3].start()

        # Then each change is there once
        assert answered(lambda: versions(stream)) == WANTED
        answered(lambda: stream.check(0))


def answered(ask: Callable[[], T]) -> T:
    """What is answered once there is a leader."""
    got: list[T] = []

    def asked() -> bool:
        with contextlib.suppress(StreamUnavailable):
            got.append(ask())
        return bool(got)

    until(asked, 60, "a leader")
    return got[0]


def test_an_outage_is_noticed_by_who_waits_for_news(server: NatsServer, open_stream: Open) -> None:
    # Given a stream that nobody writes to, whose server dies
    stream = open_stream()
    assert stream.read(0, limit=1, wait_s=0.01).events == []
    server.kill()

    # Then who waits for news hears of it, and of its end
    def away() -> bool:
        with contextlib.suppress(StreamUnavailable):
            return bool(stream.read(0, limit=1, wait_s=0.01).events)
        return True

    until(away, 20, "the outage to be noticed")
    server.start()
    until(lambda: not away(), 20, "the server to be back")


@pytest.mark.chaos
@pytest.mark.slow
def test_a_writer_killed_anywhere_leaves_what_the_next_one_goes_on_from(server: NatsServer, open_stream: Open) -> None:
    # Given a process that appends, and is killed at a different moment each time
    stream = open_stream()
    for n in range(8):
        child = multiprocessing.get_context("spawn").Process(target=_append_all, args=(server.url,))
        child.start()
        head = stream.head_offset()
        until(lambda: (_look(stream), stream.head_offset() > head + 700 * n)[1] or not child.is_alive(), 60, "entries")  # noqa: B023
        child.kill()
        child.join()

    # When the next one appends all of it again
    with appending(stream):
        pass

    # Then each change is there once
    assert versions(stream) == WANTED


def _append_all(url: str) -> None:
    stream = JetStream(NatsPlace(urls=(url,)), "docs", hold_s=0.0)
    stream.append([*COMMITS])


def _look(stream: JetStream) -> None:
    """Another process writes; ours has to be told to look."""
    stream._uncertain = True
    stream.append([])


# -- full, gone, replaced ----------------------------------------------------------------------------------------


def test_a_disk_that_is_full_is_a_full_stream_and_goes_on(tmp_path: Path) -> None:
    # Given a stream that an operator limits to three megabytes
    with NatsServer(tmp_path / "small", jetstream="max_file_store: 100MB") as server:
        stream = JetStream(NatsPlace(urls=(server.url,), timeout_s=2.0), "docs", hold_s=0.0, max_bytes=1 << 24)
        stream.release("one", 0)
        limit = stream._link.call(_limited_to, stream, 3_000_000)
        assert limit == 3_000_000

        # When it is full
        with pytest.raises(StreamFull) as full:
            for lsn in range(100, 1_000, 10):
                stream.append([transaction(lsn, 1, 2, size=200_000)])
        head = stream.head_offset()
        assert full.value.hint

        # Then nothing of what was refused is there, and it goes on as soon as somebody has read
        assert versions(stream)[-1][0] == 100 + 10 * (head // 2 - 1)
        stream.release("one", head - 2)
        stream.append([transaction(5_000, 1, 2, size=200_000)])
        assert versions(stream)[-1] == (5_000, 2)
        stream.close()


async def _limited_to(stream: JetStream, most_bytes: int) -> int:
    """As an operator does with ``nats stream edit``."""
    js = stream._link.js
    config = (await js.stream_info("docs")).config
    config.max_bytes = most_bytes
    return int((await js.update_stream(config)).config.max_bytes)


def test_two_writers_fence_each_other(open_stream: Open) -> None:
    # Given two daemons that were given the same stream by mistake
    one, other = open_stream(), open_stream()
    one.append([transaction(100, 1)])

    # When the other writes, it is refused, and sees what the first one wrote
    with pytest.raises(StreamUnavailable, match="not where we left it"):
        other.append([transaction(200, 1)])
    other.append([transaction(200, 1)])

    assert versions(other) == [(100, 1), (200, 1)]


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_stream_that_is_not_ours_any_more_is_a_named_state(server: NatsServer, open_stream: Open, how: str) -> None:
    # Given a stream that belongs to a ledger
    stream = open_stream()
    stream.tie("ours")
    stream.append([transaction(100, 1)])

    # When somebody does that to it
    remove(NatsPlace(urls=(server.url,)), "docs")
    if how == "replaced":
        open_stream().tie("theirs")

    # Then the next commit is not taken, and it is said what happened
    with pytest.raises(StreamUnavailable):
        stream.append([transaction(200, 1)])
    with pytest.raises(IdentityMismatch, match="STREAM_LOST") as lost:
        stream.append([transaction(200, 1)])
    assert stream.damage is lost.value
    assert lost.value.hint


def test_a_stream_that_was_emptied_lacks_what_was_not_read(open_stream: Open) -> None:
    stream = open_stream()
    stream.append([transaction(100, 1), transaction(200, 1)])
    stream._link.call(stream._link.js.purge_stream, "docs")

    # Whether more has come in since, or not
    for lsn in (300, 400):
        with pytest.raises(IdentityMismatch, match="lacks messages that were not read yet"):
            stream.check(1)
        stream.append([transaction(lsn, 1)])
    stream.check(2)


def test_a_stream_without_its_readers_is_a_named_state(open_stream: Open) -> None:
    stream = open_stream()
    stream.tie("ours")
    stream._link.call(stream._link.js.delete_key_value, "docs_readers")

    with pytest.raises(IdentityMismatch, match="STREAM_LOST"):
        open_stream()


def test_a_message_that_is_gone_from_the_middle_is_found_before_anybody_reads(open_stream: Open) -> None:
    # Given a stream that lost a message, as a server does with one whose checksum is wrong
    stream = open_stream()
    for lsn in range(100, 200, 10):
        stream.append([transaction(lsn, 1)])
    stream.check(0)
    stream._link.call(stream._link.js.delete_msg, "docs", 4)

    # Then it is no gap that is read over
    with pytest.raises(IdentityMismatch, match="lacks 1 of its messages"):
        stream.check(0)
    with pytest.raises(StreamError, match="not in the stream any more"):
        versions(stream)

    # But what nobody will read again is nobody's trouble
    stream.check(10)


def test_a_stream_made_for_something_else_is_refused(open_stream: Open) -> None:
    stream = open_stream()
    stream._link.call(stream._link.js.add_stream, name="orders", subjects=["orders.*"])

    with pytest.raises(StreamError, match="did not make"):
        JetStream(stream._link.place, "orders", hold_s=0.0)


def test_a_stream_that_lost_what_it_acknowledged_is_looked_at_again_before_that_is_believed(
    server: NatsServer, open_stream: Open, tmp_path: Path
) -> None:
    # Given a server that comes back without the last commit
    clock = Clock()
    stream = open_stream(clock=clock)
    stream.append([transaction(100, 1)])
    server.kill()
    shutil.copytree(server.store, tmp_path / "older")
    server.start()
    until(lambda: _taken(stream, transaction(200, 1)), 20, "the commit to be taken")
    server.kill()
    shutil.rmtree(server.store)
    shutil.copytree(tmp_path / "older", server.store)
    server.start()

    # When it is looked at, then it may be a replica that is behind
    until(lambda: "is behind what it has acknowledged" in _refusal(stream), 20, "the loss to be noticed")

    # But not for ever
    clock.now += 6
    with pytest.raises(IdentityMismatch, match="STREAM_BEHIND"):
        stream.append([transaction(300, 1)])


def _refusal(stream: JetStream) -> str:
    try:
        stream.append([transaction(300, 1)])
    except StreamUnavailable as exc:
        return exc.message
    return ""


# -- what may be acknowledged -------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_postgres_may_forget_only_what_is_on_the_servers_disk(open_stream: Open) -> None:
    clock = Clock()
    stream = open_stream(hold_s=150.0, clock=clock)
    stream.append([transaction(100, 1)])
    clock.now += 100
    stream.append([transaction(200, 1)])

    # It may be read at once, and forgotten when it is old enough
    assert versions(stream) == [(100, 1), (200, 1)]
    assert (stream.position().captured_lsn, stream.acknowledgeable()) == (208, 0)
    clock.now += 50
    assert stream.acknowledgeable() == 108
    # And an idle stream holds nothing back for ever
    clock.now += 100
    assert stream.acknowledgeable() == 208


def test_after_a_restart_the_age_of_what_is_there_counts(open_stream: Open) -> None:
    # Given a stream that was written a little while ago
    open_stream().append([transaction(100, 1)])
    written = time.monotonic()
    until(lambda: time.monotonic() - written > 0.5, 5, "half a second")

    # When it is opened again
    clock = Clock()
    stream = open_stream(hold_s=150.0, clock=clock)
    assert stream.acknowledgeable() == 0

    # Then it has waited a part of its time already, by the server's clock
    clock.now += 149.6
    assert stream.acknowledgeable() == 108


def test_what_a_server_may_still_lose_is_never_all_that_tells_where_the_stream_is(open_stream: Open) -> None:
    # Given entries that everybody has read and nobody wants to keep, younger than the server's disk
    clock = Clock()
    stream = open_stream(hold_s=150.0, clock=clock, retention_s=0.0, wall_clock=clock)
    stream.append([transaction(100, 1)])
    stream.release("one", 1)

    # When they would go
    clock.now += 100
    stream.append([transaction(200, 1)])
    assert stream.first_offset() == 1

    # Then they stay until something after them is safe
    clock.now += 60
    stream.append([transaction(300, 1)])
    assert stream.first_offset() == 1
    clock.now += 100
    stream.append([transaction(400, 1)])
    assert stream.first_offset() == 2
