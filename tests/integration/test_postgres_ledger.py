"""The ledger in Postgres: several processes at once, processes that were thought dead, servers that go away."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from psycopg import sql

from cdc_agent.errors import FlipOutdated, IdentityMismatch, LedgerError, LedgerFull, LedgerUnavailable
from cdc_agent.ledger import postgres_schema, postgres_server
from cdc_agent.ledger.base import Checkpoint, ChunkRef, DeadLetter, Flip, Generation, Manifest, NewChunks, Resync
from cdc_agent.ledger.postgres import PostgresLedger
from cdc_agent.ledger.postgres_examination import examine, is_there, put_schema_aside
from cdc_agent.ledger.postgres_flip import carry_out
from cdc_agent.lsn import Lsn, Version
from tests.support.postgres import Database
from tests.support.wait import until

C = "articles"
AGENT = "indexer/p3"
WAITING = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
STRANGE = 'Läger "ledger" x'


@pytest.fixture
def opened() -> Iterator[Callable[..., PostgresLedger]]:
    """Opens ledgers that are closed with the test; each is what another process would have."""
    made: list[PostgresLedger] = []

    def open_one(database: Database, schema: str = "cdc_agent", **more: Any) -> PostgresLedger:
        made.append(PostgresLedger(database.dsn, schema, **more))
        return made[-1]

    yield open_one
    for ledger in made:
        ledger.close()


def begin(ledger: PostgresLedger, document: str, count: int = 1, agent: str = AGENT) -> tuple[int, list[str]]:
    generation, ids = ledger.begin_write([NewChunks(collection=C, document_id=document, count=count)], agent=agent)
    return generation, ids[C, document]


def manifest(document: str, *chunk_ids: str, lsn: int = 100, ordinal: int = 1, **more: Any) -> Manifest:
    chunks = tuple(ChunkRef(i, i.encode()[:16].ljust(16)) for i in chunk_ids)
    version = Version(Lsn(lsn), ordinal)
    return Manifest(collection=C, document_id=document, version=version, xid=lsn, relation_oid=1, chunks=chunks, **more)


def flip(
    ledger: PostgresLedger, generation: int, *manifests: Manifest, offset: int = 0, agent: str = AGENT, **more: Any
) -> None:
    checkpoint = Checkpoint(offset=offset, applied_lsn=Lsn(offset))
    ledger.flip(Flip(agent=agent, checkpoint=checkpoint, generation=generation, manifests=manifests, **more))


def write(ledger: PostgresLedger, document: str, count: int = 1, *, agent: str = AGENT, **more: Any) -> list[str]:
    offset = more.pop("offset", 0)
    generation, ids = begin(ledger, document, count, agent)
    flip(ledger, generation, manifest(document, *ids, **more), offset=offset, agent=agent)
    return ids


def letter(document: str, lsn: int) -> DeadLetter:
    return DeadLetter(
        agent=AGENT,
        collection=C,
        document_id=document,
        table="public.t",
        key=("1",),
        version=Version(Lsn(lsn), 1),
        reason="embedding",
        error="too long",
        attempts=3,
        parked_at=1.5,
    )


def garbage(ledger: PostgresLedger) -> set[str]:
    return {chunk for _, chunk in ledger.garbage(1_000)}


def child(dsn: str, body: str) -> subprocess.Popen[str]:
    """Another process with a ledger of its own."""
    head = """
        import sys
        from cdc_agent.ledger.base import *
        from cdc_agent.ledger.postgres import PostgresLedger
        from cdc_agent.lsn import Lsn, Version
        ledger = PostgresLedger(sys.argv[1])
    """
    code = textwrap.dedent(head) + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", code, dsn], stdout=subprocess.PIPE, text=True)


def at_once(*acts: Callable[[], object]) -> None:
    """Each in a thread of its own; raises what one of them raised."""
    failed: list[BaseException] = []

    def guarded(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=guarded, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if failed:
        raise failed[0]


class TestZombies:
    """What somebody may do who was thought to be dead, while a successor works for the same agent."""

    @pytest.mark.fault("worker-late")
    def test_a_late_flip_puts_nothing_older_over_newer(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a worker that planned a change of two documents and was stopped, and its successor that went further
        zombie, successor = opened(pg), opened(pg)
        generation, old = begin(zombie, "d")
        new = write(successor, "d", lsn=200, offset=9)

        # When the worker goes on and flips
        flip(zombie, generation, manifest("d", *old, lsn=100), manifest("e", lsn=100), offset=5)

        # Then only what is news is in it
        assert successor.manifests(C, ["d"])["d"] == manifest("d", *new, lsn=200)
        assert successor.manifests(C, ["e"])["e"] == manifest("e", lsn=100)
        assert successor.checkpoint(AGENT) == Checkpoint(offset=9, applied_lsn=Lsn(9))
        assert successor.live(C, [*old, *new]) == set(new)
        assert garbage(successor) == set(old)
        assert successor.counts(C) == (2, 1)

    def test_a_late_deletion_does_not_delete_what_came_back(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a document that was deleted and inserted again within one transaction, cut into two chunks of the stream
        zombie, successor = opened(pg), opened(pg)
        flip(successor, 0, manifest("d", lsn=100, ordinal=1, deleted=True), offset=1)
        new = write(successor, "d", lsn=100, ordinal=150, offset=2)

        flip(zombie, 0, manifest("d", lsn=100, ordinal=1, deleted=True), offset=1)

        assert successor.live(C, new) == set(new)
        assert successor.counts(C) == (1, 1)

    def test_a_tombstone_guards_against_a_late_insert(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        zombie, successor = opened(pg), opened(pg)
        generation, ids = begin(zombie, "d")
        flip(successor, 0, manifest("d", lsn=200, deleted=True), offset=2)

        flip(zombie, generation, manifest("d", *ids, lsn=100), offset=1)

        assert successor.manifests(C, ["d"])["d"].deleted
        assert successor.live(C, ids) == set()

    def test_bookkeeping_that_is_late_changes_nothing(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        zombie, successor = opened(pg), opened(pg)
        [chunk] = write(successor, "d", lsn=200, offset=2)

        flip(zombie, 0, same=[manifest("d", chunk, lsn=100, epoch=7)], offset=1)

        assert successor.manifests(C, ["d"])["d"] == manifest("d", chunk, lsn=200)

    @pytest.mark.fault("worker-late")
    def test_chunks_that_a_successor_gave_up_never_become_live(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a worker that wrote its chunks and was stopped, and the chunk of the stream given to another one, for
        # which they were abandoned
        zombie, successor = opened(pg), opened(pg)
        generation, abandoned = begin(zombie, "d")
        new = write(successor, "d", lsn=100, offset=5)
        assert garbage(successor) == set(abandoned)
        successor.clear_garbage(successor.garbage(10))
        before = successor.turn(C)

        # When the worker flips what the store has no longer
        with pytest.raises(FlipOutdated) as refused:
            flip(zombie, generation, manifest("d", *abandoned, lsn=100), offset=5)

        # Then nothing changed, and it is told to begin anew
        assert "planned again" in refused.value.hint
        assert successor.live(C, [*new, *abandoned]) == set(new)
        assert successor.turn(C) == before

    def test_a_chunk_of_the_stream_that_is_flipped_twice_is_there_once(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given two workers with the same chunk of the stream
        first, second = opened(pg), opened(pg)
        one, ids_one = begin(first, "d", 2)
        two, ids_two = begin(second, "d", 2)

        # When both flip it
        flip(first, one, manifest("d", *ids_one, lsn=100), offset=5)
        flip(second, two, manifest("d", *ids_two, lsn=100), offset=5)

        # Then one of the two is live, the other is garbage, and nothing is between them
        assert first.live(C, [*ids_one, *ids_two]) == set(ids_two)
        assert garbage(first) == set(ids_one)
        assert first.intents(AGENT) == []
        assert first.counts(C) == (1, 2)

    @pytest.mark.fault("worker-late")
    def test_a_successor_whose_chunks_were_given_up_plans_again_and_loses_nothing(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a successor in the middle of a write, and a worker that comes back and begins a later one
        zombie, successor = opened(pg), opened(pg)
        generation, ids = begin(successor, "d")
        write(zombie, "e", offset=1)

        # When the successor flips, then it is refused, its checkpoint has not moved, and its second try is whole
        with pytest.raises(FlipOutdated):
            flip(successor, generation, manifest("d", *ids, lsn=300), offset=2)
        assert successor.checkpoint(AGENT).offset == 1
        ids = write(successor, "d", lsn=300, offset=2)
        assert successor.live(C, ids) == set(ids)

    def test_a_late_letter_takes_no_newer_ones_place(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        zombie, successor = opened(pg), opened(pg)
        flip(successor, 0, dead_letters=[letter("d", 200)], offset=2)
        write(successor, "e", lsn=200, offset=3)

        flip(zombie, 0, dead_letters=[letter("d", 100), letter("e", 100)], offset=1)

        assert [(one.document_id, one.version.commit_lsn) for one in successor.dead_letters()] == [("d", 200)]

    def test_who_stops_in_the_middle_of_a_flip_holds_its_successor_up_only_briefly(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a worker that was stopped while it held its checkpoint
        zombie = opened(pg, stall_timeout_s=0.3)
        successor = opened(pg)
        write(successor, "d", offset=1)
        held = threading.Event()

        def stop_in_the_middle() -> None:
            with zombie._connection() as tx, tx.transaction():
                tx.execute("update checkpoint set stream_offset = 99")
                held.set()
                done.wait(30)
                tx.execute("select 1")

        done = threading.Event()
        stalled = threading.Thread(target=lambda: _swallow(stop_in_the_middle))
        stalled.start()
        held.wait(10)

        # When its successor flips, then it does so, and what the other one did is undone
        write(successor, "d", lsn=200, offset=2)
        done.set()
        stalled.join(10)
        assert successor.checkpoint(AGENT).offset == 2

        # And the worker that comes back works on a new connection
        assert zombie.checkpoint(AGENT).offset == 2


def _swallow(act: Callable[[], None]) -> None:
    # What is left of it is looked at from outside.
    with suppress(Exception):
        act()


class TestTogether:
    def test_agents_write_one_collection_at_once(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        # Given four workers, each with its own documents and agent, and texts that they share
        workers = [opened(pg) for _ in range(4)]
        numbers: list[int] = []

        def work(place: int) -> None:
            ledger, agent = workers[place], f"indexer/p{place}"
            for turn in range(25):
                names = [f"{place}/{n}" for n in range(5)]
                new = [NewChunks(collection=C, document_id=d, count=2, hashes=[b"s" * 16]) for d in names]
                vectors = {bytes([n]) * 16: b"v" * 64 for n in range(20)}
                generation, ids = ledger.begin_write(new, agent=agent, fingerprint="m", vectors=vectors)
                numbers.append(generation)
                made = [manifest(d, *ids[C, d], lsn=100 + turn, deleted=False) for d in names]
                flip(ledger, generation, *made, offset=turn + 1, agent=agent)
                ledger.clear_garbage(ledger.garbage(20))

        # When all of them write
        at_once(*[lambda place=place: work(place) for place in range(4)])  # type: ignore[misc]

        # Then no number came twice, and the counts are what is there
        assert len(set(numbers)) == len(numbers) == 100
        assert workers[0].counts(C) == (20, 40)
        assert len(workers[0].documents_of_relation(C, None)) == 20
        assert [workers[0].checkpoint(f"indexer/p{place}").offset for place in range(4)] == [25] * 4

    def test_two_who_write_the_same_documents_end_with_the_newest(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given two agents that flip the same documents in opposite orders, and neither waits for the other for ever
        ledgers = [opened(pg), opened(pg)]
        names = [f"d{n}" for n in range(10)]

        def work(place: int) -> None:
            for turn in range(30):
                order = names if place else names[::-1]
                made = [manifest(d, lsn=100 + 2 * turn + place, deleted=turn % 2 == 0) for d in order]
                flip(ledgers[place], 0, *made, offset=turn, agent=f"agent {place}")

        at_once(lambda: work(0), lambda: work(1))

        assert {m.version.commit_lsn for m in ledgers[0].manifests(C, names).values()} == {159}
        assert ledgers[0].counts(C) == (10, 0)

    def test_processes_never_take_one_number_twice(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        body = """
            for _ in range(50):
                print(ledger.begin_write([NewChunks(collection="c", document_id="d", count=1)], agent="a")[0])
        """
        opened(pg)
        children = [child(pg.dsn, body) for _ in range(2)]

        numbers = [int(line) for one in children for line in one.communicate(timeout=60)[0].split()]

        assert len(set(numbers)) == len(numbers) == 100

    def test_between_two_equal_turns_nothing_changed(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        # Given somebody who asks which chunks are live, and two others who flip all the time
        reader, writers = opened(pg), [opened(pg), opened(pg)]
        done = threading.Event()
        torn: list[int] = []
        quiet: list[int] = []

        def ask() -> None:
            while not done.is_set():
                turn = reader.turn(C)
                assert turn % 2 == 0
                first = _named(reader)
                second = _named(reader)
                if reader.turn(C) == turn:
                    (torn if first != second else quiet).append(turn)

        def work(place: int) -> None:
            for turn in range(40):
                write(writers[place], f"d{place}", lsn=100 + turn, agent=f"agent {place}")

        asking = threading.Thread(target=ask)
        asking.start()
        at_once(lambda: work(0), lambda: work(1))
        until(lambda: quiet, what="a quiet moment")
        done.set()
        asking.join(10)

        # Then what was read between two equal turns was one and the same, and every flip was a turn
        assert torn == []
        assert reader.turn(C) == 2 * 80

    def test_two_flips_of_one_document_count_it_once(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        # Given a live document, whose deletion by one agent is not committed yet
        one, other = opened(pg), opened(pg)
        write(one, "d", lsn=100)

        # When another agent deletes it meanwhile
        with under_way(one, manifest("d", lsn=200, deleted=True), agent="one"):
            deleting = threading.Thread(
                target=lambda: flip(other, 0, manifest("d", lsn=300, deleted=True), agent="other")
            )
            deleting.start()
            until(lambda: pg.execute(WAITING) == [(1,)], what="the second flip to wait")
        deleting.join(10)

        # Then it is gone once
        assert other.counts(C) == (0, 0)
        assert other.manifests(C, ["d"])["d"].version.commit_lsn == 300

    def test_two_who_insert_one_document_end_with_the_newer(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a document that nobody knows, whose insertion by one agent is not committed yet
        one, other = opened(pg), opened(pg)
        generation, ids = begin(other, "d", 2, agent="other")

        # When another agent inserts an older version of it
        with under_way(one, manifest("d", lsn=200), agent="one"):
            inserting = threading.Thread(
                target=lambda: flip(other, generation, manifest("d", *ids, lsn=100), agent="other")
            )
            inserting.start()
            until(lambda: pg.execute(WAITING) == [(1,)], what="the second flip to wait")
        inserting.join(10)

        # Then it has looked again, and left the document as it was
        assert other.manifests(C, ["d"])["d"].version.commit_lsn == 200
        assert other.counts(C) == (1, 0)
        assert garbage(other) == set(ids)

    def test_a_flip_that_stands_in_somebodys_way_comes_again(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given somebody (an operator, say) who holds the second document and then wants the first
        ledger = opened(pg)
        flip(ledger, 0, manifest("a"), manifest("b"))
        holder = pg.connect(autocommit=False)
        holder.execute("select from cdc_agent.manifest where document_id = 'b' for update")

        # When a flip holds the first and waits for the second
        flipping = threading.Thread(target=lambda: flip(ledger, 0, manifest("a", lsn=200), manifest("b", lsn=200)))
        flipping.start()
        until(lambda: pg.execute(WAITING) == [(1,)], what="the flip to wait")
        holder.execute("select from cdc_agent.manifest where document_id = 'a' for update")
        holder.rollback()
        flipping.join(20)

        # Then the server has ended the one or the other, and the flip is made all the same
        assert {m.version.commit_lsn for m in ledger.manifests(C, ["a", "b"]).values()} == {200}

    def test_turns_never_come_back_when_a_collection_goes(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        ledger = opened(pg)
        seen = [ledger.turn(C)]
        write(ledger, "d")
        seen.append(ledger.turn(C))
        ledger.forget_collection(C, Resync(table="public.t", collections=(C,)))
        seen.append(ledger.turn(C))
        write(ledger, "d", lsn=200)
        seen.append(ledger.turn(C))
        ledger.drop_generation(generation_of(C), forget_agent=False)
        seen.append(ledger.turn(C))

        assert seen == sorted(set(seen))
        assert ledger.counts(C) == (0, 0)

    def test_a_collection_that_goes_waits_for_flips_under_way(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a flip that is written and not committed yet
        one, other = opened(pg), opened(pg)
        under_way, go_on = threading.Event(), threading.Event()

        def slowly() -> None:
            def act(tx: Any) -> None:
                flipped = Flip(agent=AGENT, checkpoint=Checkpoint(), generation=0, manifests=[manifest("d")])
                carry_out(tx, flipped, one._vectors)
                under_way.set()
                go_on.wait(10)

            one._write(act)

        # When the collection is forgotten meanwhile
        def forget() -> None:
            under_way.wait(10)
            threading.Timer(0.2, go_on.set).start()
            other.drop_generation(generation_of(C), forget_agent=False)

        at_once(slowly, forget)

        # Then nothing of it is left, and nothing of it is counted
        assert other.manifests(C, ["d"]) == {}
        assert other.counts(C) == (0, 0)

    def test_a_text_that_two_documents_lose_at_once_is_forgotten(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given two documents of one text, and the deletion of the first under way
        one, other = opened(pg), opened(pg)
        new = [NewChunks(collection=C, document_id=d, count=0, hashes=[b"t" * 16]) for d in ("a", "b")]
        one.begin_write(new, agent=AGENT, fingerprint="m", vectors={b"t" * 16: b"v" * 8})
        under_way, go_on = threading.Event(), threading.Event()

        def slowly() -> None:
            def act(tx: Any) -> None:
                one._vectors.forget_documents(tx, [(C, "a")], 0)
                under_way.set()
                go_on.wait(10)

            one._write(act)

        def meanwhile() -> None:
            under_way.wait(10)
            threading.Timer(0.2, go_on.set).start()
            flip(other, 0, manifest("b", lsn=200, deleted=True), agent="another")

        at_once(slowly, meanwhile)

        # Then its vector went with the second one
        assert other.cached_vectors("m", [b"t" * 16]) == {}


@contextmanager
def under_way(ledger: PostgresLedger, made: Manifest, *, agent: str) -> Iterator[None]:
    """A flip of one manifest that is written, and committed at the end."""
    with ledger._connection() as tx, tx.transaction():
        carry_out(tx, Flip(agent=agent, checkpoint=Checkpoint(), generation=0, manifests=[made]), ledger._vectors)
        yield


def _named(ledger: PostgresLedger) -> set[str]:
    found = ledger.manifests(C, ["d0", "d1"]).values()
    return {chunk.id for one in found for chunk in one.chunks}


def generation_of(physical: str) -> Generation:
    return Generation(
        collection=physical,
        number=1,
        physical=physical,
        agent=AGENT,
        fingerprint="f",
        spec="{}",
        state="dropping",
        created_at=1.0,
    )


class TestDeath:
    def test_who_is_killed_between_intent_and_flip_leaves_only_intents(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a process that began a write and is killed
        body = """
            print(ledger.begin_write([NewChunks(collection="articles", document_id="d", count=2)], agent="indexer/p3"))
            sys.stdout.flush()
            import time
            time.sleep(60)
        """
        ledger = opened(pg)
        with child(pg.dsn, body) as killed:
            assert killed.stdout is not None
            assert killed.stdout.readline().startswith("(1,")
            killed.kill()

        # When another one goes on
        assert ledger.known(C, ["d#1.0", "d#1.1"]) == {"d#1.0", "d#1.1"}
        ids = write(ledger, "d")

        # Then it takes other ids, and those of the dead are garbage
        assert ids == ["d#2.0"]
        assert garbage(ledger) == {"d#1.0", "d#1.1"}

    def test_who_is_killed_within_a_flip_has_flipped_nothing(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a process whose flip waits for a row that somebody else holds
        ledger = opened(pg)
        write(ledger, "d", offset=1)
        holder = pg.connect(autocommit=False)
        holder.execute("select from cdc_agent.manifest for update")
        body = """
            at = Checkpoint(offset=7, applied_lsn=Lsn(7))
            made = Manifest(collection="articles", document_id="d", version=Version(Lsn(200), 1), xid=1, relation_oid=1,
                            deleted=True)
            ledger.flip(Flip(agent="indexer/p3", checkpoint=at, generation=0, manifests=[made]))
        """
        with child(pg.dsn, body) as killed:
            until(lambda: pg.execute(WAITING) == [(1,)], what="the flip to wait")

            # When it is killed, and the row is free again
            killed.kill()
        holder.rollback()

        # Then nothing of the flip is there, and the agent goes on
        assert ledger.checkpoint(AGENT).offset == 1
        assert ledger.counts(C) == (1, 1)
        flip(ledger, 0, manifest("d", lsn=200, deleted=True), offset=8)
        assert ledger.counts(C) == (0, 0)

    @pytest.mark.fault("ledger-away")
    @pytest.mark.parametrize("how", ["fast", "immediate"])
    def test_a_server_that_starts_again_is_found_again(
        self, private_pg: Database, opened: Callable[..., PostgresLedger], how: str
    ) -> None:
        # Given a ledger with idle connections, some of them opened by several threads
        ledger = opened(private_pg)
        at_once(*[lambda n=n: write(ledger, f"d{n}", agent=f"a{n}") for n in range(4)])  # type: ignore[misc]

        # When the server is away
        private_pg.server.stop(how)
        for act in (lambda: ledger.checkpoint(AGENT), lambda: write(ledger, "d"), lambda: ledger.turn(C)):
            with pytest.raises(LedgerUnavailable) as away:
                act()
            assert away.value.retryable
            assert away.value.exit_code == 75
        private_pg.server.start()

        # Then everything that was said is there, and work goes on by itself
        assert ledger.counts(C) == (4, 4)
        assert write(ledger, "d")[0].startswith("d#")

    def test_a_connection_that_is_lost_in_between_is_not_noticed(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        ledger = opened(pg)
        for number in range(5):
            pg.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like '%ledger'")

            write(ledger, f"d{number}")

        assert ledger.counts(C) == (5, 5)

    def test_what_no_server_would_take_is_not_tried_for_ever(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a name with a NUL, which psycopg does not send
        ledger = opened(pg)

        with pytest.raises(LedgerError, match="NUL") as refused:
            ledger.save_collection("a\0b", "f")

        assert not refused.value.retryable

    def test_a_full_disk_is_told_apart_and_passes(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        # Given a server that has no space for one more intent
        ledger = opened(pg)
        pg.execute(
            "create function no_space() returns trigger language plpgsql as"
            " $$ begin raise exception 'could not extend file' using errcode = 'disk_full'; end $$"
        )
        pg.execute("create trigger no_space before insert on cdc_agent.intent execute function no_space()")

        with pytest.raises(LedgerFull) as full:
            begin(ledger, "d")
        assert full.value.retryable

        # Then nothing was written, and it can be once there is room
        pg.execute("drop trigger no_space on cdc_agent.intent")
        assert ledger.intents(AGENT) == []
        begin(ledger, "d")


class TestOpening:
    def test_the_session_is_durable_whatever_the_database_says(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        pg.execute(f"alter database {pg.name} set synchronous_commit = off")
        pg.execute(f"alter database {pg.name} set search_path = public")

        ledger = opened(pg)

        assert ledger._one("show synchronous_commit") == ("on",)
        assert write(ledger, "d") == ["d#1.0"]

    @pytest.mark.parametrize("schema", [STRANGE, "cdc_agent", "x" * 63, 'a";drop schema public;--'])
    def test_a_schema_may_have_any_name(self, pg: Database, opened: Callable[..., PostgresLedger], schema: str) -> None:
        ledger = opened(pg, schema)
        write(ledger, "d")

        tables = pg.execute("select count(*) from pg_tables where schemaname = %s", [schema])
        assert tables == [(16,)]
        assert opened(pg, schema).uuid == ledger.uuid
        assert opened(pg, "another").counts(C) == (0, 0)

    def test_many_who_come_at_once_make_one_ledger(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        uuids: list[str] = []

        at_once(*[lambda: uuids.append(opened(pg).uuid) for _ in range(6)])

        assert len(uuids) == 6
        assert len(set(uuids)) == 1

    def test_who_comes_while_another_one_makes_the_tables_waits(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given somebody who is at it
        maker = pg.connect(autocommit=False)
        maker.execute("select pg_advisory_xact_lock(hashtextextended('cdc_agent ledger cdc_agent', 0))")
        made: list[PostgresLedger] = []

        # When another one comes
        opening = threading.Thread(target=lambda: made.append(opened(pg)))
        opening.start()
        until(lambda: pg.execute(WAITING) == [(1,)], what="the second one to wait")
        assert pg.execute("select from pg_namespace where nspname = 'cdc_agent'") == []

        # Then it goes on when that one is done
        maker.rollback()
        opening.join(10)
        assert made[0].counts(C) == (0, 0)

    def test_tables_of_a_newer_cdc_agent_are_refused(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        opened(pg).close()
        pg.execute("update cdc_agent.meta set value = '99' where key = 'schema_version'")

        with pytest.raises(LedgerError, match="version 99") as refused:
            opened(pg)
        assert "newer cdc-agent" in refused.value.hint
        assert not examine(pg.dsn, "cdc_agent").ok

    def test_an_older_version_climbs_once_and_keeps_what_it_holds(
        self, pg: Database, opened: Callable[..., PostgresLedger], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a ledger of today, and a cdc-agent of tomorrow that knows two steps more
        ledger = opened(pg)
        write(ledger, "d")
        steps = (*postgres_schema.STEPS, "create table two (n integer); insert into two values (2)", "drop table two")
        with pg.connect() as connection:
            connection.execute("set search_path = cdc_agent")

            # When a step fails, then nothing of the climb is there
            with pytest.raises(Exception, match="no_such"):
                postgres_schema.bring_up_to_date(connection, "cdc_agent", (*steps, "select no_such"))
            assert postgres_schema.version_of(connection, "cdc_agent") == len(postgres_schema.STEPS)

            # When all of them do what they should
            for _ in range(2):
                postgres_schema.bring_up_to_date(connection, "cdc_agent", steps)

            # Then it is of the new version, and holds what it held
            assert postgres_schema.version_of(connection, "cdc_agent") == len(steps)
        assert ledger.counts(C) == (1, 1)

    def test_a_role_that_may_not_make_a_schema_is_told_what_it_lacks(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a role without rights
        role = f"{pg.name}_poor"
        pg.execute(f"create role {role} login")
        poor = replace_user(pg, role)
        try:
            found = examine(poor, "cdc_agent")
            assert (found.ok, f'create schema "cdc_agent" authorization "{role}"' in found.hint) == (False, True)
            with pytest.raises(LedgerError, match="refuses us"):
                PostgresLedger(poor)

            # When somebody follows the hint
            pg.execute(found.hint.partition(": ")[2])

            # Then that is enough
            assert examine(poor, "cdc_agent").ok
            PostgresLedger(poor).close()
            assert "holds a ledger" in examine(poor, "cdc_agent").message
        finally:
            pg.execute(f"drop owned by {role}")
            pg.execute(f"drop role {role}")

    def test_a_schema_of_somebody_else_is_not_filled(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        role = f"{pg.name}_poor"
        pg.execute(f"create role {role} login")
        pg.execute("create schema cdc_agent")
        poor = replace_user(pg, role)
        try:
            with pytest.raises(LedgerError, match="may not make tables") as refused:
                PostgresLedger(poor)
            assert f'grant usage, create on schema "cdc_agent" to "{role}"' in refused.value.hint
            assert examine(poor, "cdc_agent").hint == refused.value.hint
        finally:
            pg.execute(f"drop role {role}")

    def test_a_database_of_another_encoding_is_refused(self, pg: Database) -> None:
        name = f"{pg.name}_latin"
        pg.execute(f"create database {name} encoding 'LATIN1' locale 'C' template template0")
        try:
            dsn = pg.server.dsn(name)
            with pytest.raises(LedgerError, match="LATIN1"):
                PostgresLedger(dsn)
            assert not examine(dsn, "cdc_agent").ok
        finally:
            pg.execute(f"drop database {name} with (force)")

    def test_a_password_is_in_no_error(self) -> None:
        for dsn in ("host=127.0.0.1 port=1 password=hunter2", "postgresql://u:hunter2@127.0.0.1:1/x", "hunter2 is it"):
            with pytest.raises(LedgerError) as refused:
                PostgresLedger(dsn)
            assert "hunter2" not in str(refused.value)
            assert "hunter2" not in str(examine(dsn, "cdc_agent"))

    def test_a_closed_ledger_says_so(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        ledger = opened(pg)
        ledger.close()

        for act in (lambda: ledger.checkpoint(AGENT), lambda: begin(ledger, "d"), lambda: ledger.counts(C)):
            with pytest.raises(LedgerError, match="closed"):
                act()


class TestAlone:
    """A daemon is the only one of its ledger, whatever happens to connections."""

    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(postgres_server, "_HOLD_WAIT_S", 1)

    def test_a_second_daemon_is_told_and_comes_when_the_first_has_gone(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        first = opened(pg, alone=True)

        with pytest.raises(LedgerUnavailable, match="another daemon") as refused:
            opened(pg, alone=True)
        assert refused.value.retryable

        # Who only looks may look, and in another schema there is nobody
        assert opened(pg).uuid == first.uuid
        opened(pg, "another", alone=True)
        first.close()
        assert opened(pg, alone=True).uuid == first.uuid

    def test_one_that_was_killed_is_in_nobodys_way(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        body = """
            ledger = PostgresLedger(sys.argv[1], alone=True)
            print("here", flush=True)
            import time
            time.sleep(60)
        """
        with child(pg.dsn, body) as killed:
            assert killed.stdout is not None
            killed.stdout.readline()
            killed.kill()

        opened(pg, alone=True)

    def test_it_is_held_again_when_every_connection_was_lost(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        first = opened(pg, alone=True)
        pg.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like '%ledger'")
        write(first, "d")

        with pytest.raises(LedgerUnavailable, match="another daemon"):
            opened(pg, alone=True)

    def test_who_lost_it_to_another_one_ends(self, pg: Database, opened: Callable[..., PostgresLedger]) -> None:
        # Given a daemon whose connections were lost, and another one that was quicker
        first = opened(pg, alone=True)
        pg.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like '%ledger'")
        opened(pg, alone=True)

        with pytest.raises(LedgerError, match="since our connection was lost") as ended:
            first.checkpoint(AGENT)
        assert not ended.value.retryable


class TestDamage:
    @pytest.mark.parametrize(
        "change",
        [
            "update manifest set chunks = chunks || '\\x00'",
            "update manifest set commit_lsn = commit_lsn + 1",
            "update manifest set snapshot = '1:1:'",
            "alter table manifest rename to manifesu",
            "alter table manifest drop column epoch",
            "drop table manifest",
        ],
    )
    def test_content_that_was_not_written_by_us_is_damage(
        self, pg: Database, opened: Callable[..., PostgresLedger], change: str
    ) -> None:
        ledger = opened(pg)
        write(ledger, "d")
        pg.execute(f"set search_path = cdc_agent; {change}")

        with pytest.raises(IdentityMismatch, match="LEDGER_CORRUPT") as found:
            ledger.manifests(C, ["d"])
        assert ledger.damage is found.value
        assert "on_mismatch" in found.value.hint.lower()

    def test_a_ledger_that_lost_a_table_is_not_opened(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        opened(pg).close()
        pg.execute("drop table cdc_agent.garbage")

        with pytest.raises(IdentityMismatch, match="no garbage"):
            opened(pg)
        assert not examine(pg.dsn, "cdc_agent").ok
        assert is_there(pg.dsn, "cdc_agent")

    @pytest.mark.parametrize("schema", ["cdc_agent", STRANGE, "ü" * 31])
    def test_what_is_damaged_is_put_aside_and_begun_anew(
        self, pg: Database, opened: Callable[..., PostgresLedger], schema: str
    ) -> None:
        ledger = opened(pg, schema)
        write(ledger, "d")
        ledger.close()

        name = put_schema_aside(pg.dsn, schema)

        assert not is_there(pg.dsn, schema)
        fresh = opened(pg, schema)
        assert fresh.uuid != ledger.uuid
        assert fresh.counts(C) == (0, 0)
        kept = sql.SQL("select count(*) from {}").format(sql.Identifier(name, "manifest"))
        assert pg.connect().execute(kept).fetchall() == [(1,)]

    def test_a_ledger_on_another_server_gives_no_number_twice(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        # Given a ledger that was copied to this server, or whose standby took over: it may be a little older
        ledger = opened(pg)
        write(ledger, "d")
        ledger.close()
        pg.execute("update cdc_agent.meta set value = 'another/00000001' where key = 'server'")

        [chunk] = write(opened(pg), "e")

        assert int(chunk.removeprefix("e#").removesuffix(".0")) > 1_000_000
        assert write(opened(pg), "f")[0] > chunk.replace("e#", "f#")

    def test_a_server_that_is_replaced_under_our_hands_is_noticed(
        self, pg: Database, opened: Callable[..., PostgresLedger]
    ) -> None:
        ledger = opened(pg)
        ledger._server = "another/00000001"
        pg.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like '%ledger'")

        with pytest.raises(LedgerError, match="was replaced") as refused:
            ledger.checkpoint(AGENT)
        assert not refused.value.retryable


def replace_user(database: Database, user: str) -> str:
    from psycopg.conninfo import make_conninfo

    return make_conninfo(database.dsn, user=user)
