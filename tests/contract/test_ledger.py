"""Every ledger keeps the same contract: what it says is durable, whole, and never takes a name twice."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.errors import IdentityMismatch, LedgerError, LedgerFull
from cdc_agent.ledger.base import (
    Checkpoint,
    ChunkRef,
    DeadLetter,
    Flip,
    Ledger,
    Manifest,
    NewChunks,
    Resync,
    SourceIdentity,
)
from cdc_agent.ledger.postgres import PostgresLedger
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn, Version

C = "articles"
#: What a file of the second version must lose to be one of the first, which had no number.
BEFORE_2 = "drop table writing; update meta set value = '1' where key = 'schema_version'; pragma user_version = 0;"
AGENT = "indexer"

#: How each backend is opened on a folder or a database: to add one, name it here.
BACKENDS: dict[str, Callable[..., Ledger]] = {
    "sqlite": lambda place, **settings: SqliteLedger(place / "ledger.db", **settings),
    "postgres": lambda place, **settings: PostgresLedger(place, **settings),
}


@dataclass
class Opener:
    """Opens one ledger again and again, as a daemon does that is started again."""

    backend: str
    place: Path | str
    settings: dict[str, Any] = field(default_factory=dict)
    opened: list[Ledger] = field(default_factory=list)

    def __call__(self, **settings: Any) -> Ledger:
        self.close()
        self.settings.update(settings)
        self.opened.append(BACKENDS[self.backend](self.place, **self.settings))
        return self.opened[-1]

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()


@pytest.fixture(params=BACKENDS)
def open_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    on_server = request.param == "postgres"
    opener = Opener(request.param, request.getfixturevalue("pg").dsn if on_server else tmp_path)
    yield opener
    opener.close()


@pytest.fixture
def ledger(open_ledger: Opener) -> Ledger:
    return open_ledger()


def begin(ledger: Ledger, document: str, count: int, **more: Any) -> tuple[int, list[str]]:
    """A generation and the new ids of one document."""
    new = [NewChunks(collection=C, document_id=document, count=count)]
    generation, ids = ledger.begin_write(new, agent=AGENT, **more)
    return generation, ids[C, document]


def manifest(document: str, *chunk_ids: str, lsn: int = 100, ordinal: int = 1, **more: Any) -> Manifest:
    return Manifest(
        collection=C,
        document_id=document,
        version=Version(Lsn(lsn), ordinal),
        xid=lsn,
        relation_oid=more.pop("relation_oid", 1),
        chunks=tuple(ChunkRef(i, i.encode().ljust(16)) for i in chunk_ids),
        **more,
    )


def flip(ledger: Ledger, generation: int, *manifests: Manifest, offset: int = 0, lsn: int = 0, **more: Any) -> None:
    checkpoint = Checkpoint(offset=offset, applied_lsn=Lsn(lsn))
    ledger.flip(Flip(agent=AGENT, checkpoint=checkpoint, generation=generation, manifests=manifests, **more))


def write(ledger: Ledger, document: str, count: int, **more: Any) -> list[str]:
    """A document that is wholly written: its chunk ids."""
    generation, ids = begin(ledger, document, count)
    flip(ledger, generation, manifest(document, *ids, **more))
    return ids


def garbage(ledger: Ledger) -> set[str]:
    return {chunk_id for _, chunk_id in ledger.garbage(1_000)}


class TestGenerations:
    def test_ids_name_their_document_and_are_never_used_twice(self, open_ledger: Opener) -> None:
        # Given writes that are flipped, abandoned, or ended by a crash, over several lives
        seen: list[str] = []
        generations: list[int] = []
        for life in range(4):
            ledger = open_ledger()
            for step in range(3):
                generation, ids = begin(ledger, "public.t:1", 2)
                seen += ids
                generations.append(generation)
                assert all(i.startswith("public.t:1#") for i in ids)
                if step == life % 3:
                    flip(ledger, generation, manifest("public.t:1", *ids))
                    ledger.clear_garbage(ledger.garbage(100))

        # Then no id and no generation came twice, and they only grow
        assert len(set(seen)) == len(seen) == 24
        assert generations == sorted(set(generations))

    def test_a_crash_in_transaction_one_does_not_give_a_number_back(self, open_ledger: Opener) -> None:
        ledger = open_ledger()
        first, _ = begin(ledger, "d", 1)
        ledger = open_ledger()

        second, ids = begin(ledger, "d", 1)

        assert second > first
        assert set(ledger.intents(AGENT)) == {(C, f"d#{first}.0"), (C, ids[0])}

    def test_documents_of_one_name_in_two_collections_are_two(self, ledger: Ledger) -> None:
        _, ids = ledger.begin_write(
            [NewChunks(collection=c, document_id="d", count=1) for c in ("articles", "comments")], agent=AGENT
        )

        assert set(ids) == {("articles", "d"), ("comments", "d")}
        assert sorted(c for c, _ in ledger.intents(AGENT)) == ["articles", "comments"]


class TestFlip:
    def test_everything_in_it_becomes_true_at_once(self, open_ledger: Opener) -> None:
        # Given a document, a new version of it in the store, a letter and a resync
        ledger = open_ledger()
        old = write(ledger, "d", 3)
        resync = ledger.start_resync(Resync(table="public.t", collections=(C,)))
        generation, new = begin(ledger, "d", 1)

        # When it is flipped, and the process is killed
        kept = manifest("d", old[1], new[0], lsn=200)
        progress = replace(resync, last_key=("5",), rows_done=5)
        flip(ledger, generation, kept, offset=7, lsn=200, dead_letters=[letter("poison")], resyncs=[progress])
        ledger = open_ledger()

        # Then all of it is true
        assert ledger.manifests(C, ["d"]) == {"d": kept}
        assert garbage(ledger) == {old[0], old[2]}
        assert ledger.intents(AGENT) == []
        assert ledger.checkpoint(AGENT) == Checkpoint(offset=7, applied_lsn=Lsn(200))
        assert [found.document_id for found in ledger.dead_letters()] == ["poison"]
        assert ledger.resyncs() == [progress]

    def test_garbage_is_what_no_manifest_names(self, ledger: Ledger) -> None:
        # Given a document, an abandoned write of it, and one that was refused by the store
        old = write(ledger, "d", 2)
        _, abandoned = begin(ledger, "d", 2)
        generation, ids = ledger.begin_write(
            [NewChunks(collection=C, document_id=d, count=2) for d in ("d", "refused")], agent=AGENT
        )

        # When the batch is flipped without the refused one
        flip(ledger, generation, manifest("d", old[0], *ids[C, "d"]))

        # Then the rest is garbage
        assert garbage(ledger) == {old[1], *abandoned, *ids[C, "refused"]}

    def test_intents_of_later_generations_are_left_alone(self, ledger: Ledger) -> None:
        # Given a batch, and the next one that is planned already
        first, ids = begin(ledger, "d", 1)
        second, later = begin(ledger, "e", 2)

        # When the first is flipped
        flip(ledger, first, manifest("d", *ids))

        # Then the second one's ids are still intents, until their own flip
        assert {i for _, i in ledger.intents(AGENT)} == set(later)
        assert garbage(ledger) == set()
        flip(ledger, second, manifest("e", *later))
        assert ledger.intents(AGENT) == []
        assert garbage(ledger) == set()

    def test_a_chunk_whose_metadata_was_being_changed_is_not_garbage(self, ledger: Ledger) -> None:
        # Given a live chunk with an intent, of a process that died
        [chunk] = write(ledger, "d", 1)
        ledger.begin_write([], agent=AGENT, touched=[(C, chunk)])
        assert ledger.intents(AGENT) == [(C, chunk)]

        # When another document is flipped
        write(ledger, "e", 1)

        # Then the chunk lives on
        assert garbage(ledger) == set()
        assert ledger.live(C, [chunk]) == {chunk}

    def test_a_chunk_stays_under_suspicion_until_its_document_is_written_again(self, open_ledger: Opener) -> None:
        # Given a live chunk whose metadata was being changed when the process died: the request may still land
        ledger = open_ledger()
        [chunk] = write(ledger, "d", 1)
        ledger.begin_write([], agent=AGENT, touched=[(C, chunk)])

        # When the next life flips something else and dies too
        ledger = open_ledger()
        write(ledger, "e", 1)
        ledger = open_ledger()

        # Then the third one still knows of it, also when the document keeps the chunk, until it gets a new one
        assert ledger.intents(AGENT) == [(C, chunk)]
        flip(ledger, 0, manifest("d", chunk, lsn=150))
        assert ledger.intents(AGENT) == [(C, chunk)]
        write(ledger, "d", 1, lsn=200)
        assert ledger.intents(AGENT) == []
        assert garbage(ledger) == {chunk}

    def test_a_chunk_that_was_touched_while_its_own_write_was_under_way(self, ledger: Ledger) -> None:
        # Given a batch that writes a chunk, and the next one that only moves it
        first, [chunk] = begin(ledger, "d", 1)
        second, _ = ledger.begin_write([], agent=AGENT, touched=[(C, chunk)])

        # When both are flipped in order
        flip(ledger, first, manifest("d", chunk))
        flip(ledger, second, manifest("d", chunk, lsn=200))

        # Then it lives
        assert (garbage(ledger), ledger.intents(AGENT)) == (set(), [])

    def test_a_checkpoint_never_moves_backward(self, ledger: Ledger) -> None:
        flip(ledger, 0, offset=9, lsn=900)
        flip(ledger, 0, offset=5, lsn=1_000)
        flip(ledger, 0, offset=7, lsn=100)

        assert ledger.checkpoint(AGENT) == Checkpoint(offset=9, applied_lsn=Lsn(1_000))
        assert ledger.checkpoint("somebody else") == Checkpoint()

    def test_a_tombstone_keeps_its_version_and_drops_its_chunks(self, open_ledger: Opener) -> None:
        ledger = open_ledger()
        ids = write(ledger, "d", 2)
        tombstone = manifest("d", lsn=200, deleted=True, snapshot="5:9:7", epoch=3)

        flip(ledger, 0, tombstone)

        ledger = open_ledger()
        assert ledger.manifests(C, ["d", "never seen"]) == {"d": tombstone}
        assert garbage(ledger) == set(ids)

    def test_tombstones_that_every_read_sees_are_forgotten(self, ledger: Ledger) -> None:
        write(ledger, "alive", 1, lsn=5)
        flip(ledger, 0, manifest("old", lsn=10, deleted=True), manifest("young", lsn=30, deleted=True))

        # When everything below transaction 30 is visible for ever, but only commits before 5 are dealt with for good
        ledger.prune_tombstones(C, below_xid=30, up_to=Lsn(5))

        # Then nothing is forgotten, and once they are, what every read will see is
        assert set(ledger.manifests(C, ["alive", "old", "young"])) == {"alive", "old", "young"}
        ledger.prune_tombstones(C, below_xid=30, up_to=Lsn(100))
        assert set(ledger.manifests(C, ["alive", "old", "young"])) == {"alive", "young"}


class TestQuestions:
    def test_live_is_what_a_manifest_names_and_known_is_what_anything_names(self, ledger: Ledger) -> None:
        # Given a live chunk, garbage, an intent, and an id that nobody knows
        [old] = write(ledger, "d", 1)
        [live] = write(ledger, "d", 1, lsn=200)
        _, [intent] = begin(ledger, "e", 1)
        asked = [old, live, intent, "d#99.0", "a stranger"]

        assert ledger.live(C, asked) == {live}
        assert ledger.known(C, asked) == {old, live, intent}
        assert ledger.known("another collection", asked) == set()

        # When the garbage is gone from the store
        ledger.clear_garbage(ledger.garbage(10))
        assert ledger.known(C, asked) == {live, intent}

    def test_no_id_slips_through_while_it_moves(self, ledger: Ledger) -> None:
        # Given a thread that asks for ids all the time
        asked: list[str] = []
        missed: list[str] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                wanted = list(asked)[-3:]
                missed.extend(set(wanted) - ledger.known(C, wanted))

        thread = threading.Thread(target=ask)
        thread.start()

        # When ids go from intent to manifest to garbage
        for lsn in range(100, 160):
            generation, ids = begin(ledger, "d", 1)
            asked += ids
            flip(ledger, generation, manifest("d", *ids, lsn=lsn))
        done.set()
        thread.join(10)

        # Then each was known at every moment
        assert missed == []

    def test_counts_follow_every_flip_and_a_restart(self, open_ledger: Opener) -> None:
        ledger = open_ledger()
        assert ledger.counts(C) == (0, 0)
        write(ledger, "d", 3)
        write(ledger, "e", 2)
        assert ledger.counts(C) == (2, 5)
        write(ledger, "d", 1, lsn=200)
        assert ledger.counts(C) == (2, 3)
        flip(ledger, 0, manifest("e", lsn=300, deleted=True), manifest("never", lsn=300, deleted=True))
        assert ledger.counts(C) == (1, 1)
        flip(ledger, 0, manifest("e", lsn=400, deleted=True))
        write(ledger, "e", 4, lsn=500)
        assert ledger.counts(C) == (2, 5)
        assert ledger.counts("another") == (0, 0)

        ledger = open_ledger()
        assert ledger.counts(C) == (2, 5)

    def test_documents_of_a_relation_are_the_live_ones(self, ledger: Ledger) -> None:
        write(ledger, "b", 1, relation_oid=1)
        write(ledger, "a", 1, relation_oid=2)
        flip(ledger, 0, manifest("gone", relation_oid=1, deleted=True), manifest("empty", relation_oid=1))

        assert ledger.documents_of_relation(C, 1) == ["b", "empty"]
        assert ledger.documents_of_relation(C, 2) == ["a"]
        assert ledger.documents_of_relation(C, None) == ["a", "b", "empty"]
        assert ledger.documents_of_relation(C, None, after="a", limit=1) == ["b"]

    def test_unseen_is_what_no_resync_since_has_met(self, ledger: Ledger) -> None:
        for epoch in range(4):
            flip(ledger, 0, manifest(f"d{epoch}", epoch=epoch))
        flip(ledger, 0, manifest("gone", deleted=True))

        assert ledger.unseen(C, 2) == ["d0", "d1"]
        assert ledger.unseen(C, 2, after="d0", limit=1) == ["d1"]

    def test_a_strange_document_id_is_only_a_name(self, ledger: Ledger) -> None:
        # Given keys with everything that our own ids are put together from
        for name in ("public.t:a#1.0", "public.t:a", "public.t:100%,'\"\\", "public.t:", "public.t:\u00e9\u0000x"):
            [chunk] = write(ledger, name, 1)

            assert ledger.live(C, [chunk]) == {chunk}
            assert ledger.known(C, [chunk]) == {chunk}
            assert [c.id for c in ledger.manifests(C, [name])[name].chunks] == [chunk]

    def test_strange_documents_are_found_among_many_others(self, ledger: Ledger) -> None:
        names = [*(f"public.t:{n}" for n in range(9)), "public.t:\u0000", "public.t:\u0000x", "public.t:'\\"]
        for name in (*names, "public.t:"):
            write(ledger, name, 1)

        # Not what one of them would be without its end
        found = ledger.manifests(C, [*names, "public.t:not here", "public.t:\u0000y"])

        assert {name: m.document_id for name, m in found.items()} == {name: name for name in names}

    def test_collections_and_source_are_remembered(self, open_ledger: Opener) -> None:
        ledger = open_ledger()
        uuid = ledger.uuid
        identity = SourceIdentity(
            system_id="7", timeline=1, database_oid=5, slot_name="s", plugin="pgoutput", slot_ready=False
        )
        assert ledger.identity() is None
        assert ledger.collection_fingerprint(C) is None
        ledger.save_identity(identity)
        ledger.save_collection(C, "f1")

        ledger = open_ledger()
        assert (ledger.uuid, ledger.identity(), ledger.collection_fingerprint(C)) == (uuid, identity, "f1")
        ledger.save_identity(replace(identity, slot_ready=True))
        assert ledger.identity() == replace(identity, slot_ready=True)


# -- dead letters -------------------------------------------------------------------------------------------------


def letter(document: str, lsn: int = 100, ordinal: int = 1, **more: Any) -> DeadLetter:
    known = {"agent": AGENT, "reason": "embedding", "error": "too long", "attempts": 3, "parked_at": 1.5}
    return DeadLetter(
        document_id=document,
        table="public.t",
        key=("a,b", "7"),
        version=Version(Lsn(lsn), ordinal),
        **{"collection": C} | known | more,
    )


class TestDeadLetters:
    def test_a_letter_is_kept_as_it_is(self, open_ledger: Opener) -> None:
        flip(open_ledger(), 0, dead_letters=[letter("d")])

        ledger = open_ledger()
        [found] = ledger.dead_letters()
        assert replace(found, id=0) == letter("d")
        assert ledger.dead_letter(found.id) == found
        assert ledger.dead_letter(found.id + 1) is None

    @pytest.mark.parametrize(
        ("lsn", "ordinal", "settled"), [(100, 2, True), (100, 1, True), (200, 0, True), (100, 0, False), (99, 9, False)]
    )
    def test_a_letter_is_settled_when_its_document_gets_past_it(
        self, ledger: Ledger, lsn: int, ordinal: int, settled: bool
    ) -> None:
        flip(ledger, 0, dead_letters=[letter("d", 100, 1), letter("other", 100, 1)])

        flip(ledger, 0, manifest("d", lsn=lsn, ordinal=ordinal))

        assert [found.document_id for found in ledger.dead_letters()] == (["other"] if settled else ["d", "other"])

    def test_a_manifest_that_keeps_its_chunks_settles_nothing(self, ledger: Ledger) -> None:
        # Given a letter, and the parked change that comes by once more: only the bookkeeping moves
        flip(ledger, 0, dead_letters=[letter("d", 100, 1)])

        flip(ledger, 0, same=[manifest("d", lsn=100, ordinal=1)])

        assert [found.document_id for found in ledger.dead_letters()] == ["d"]

    def test_a_deletion_settles_too(self, ledger: Ledger) -> None:
        flip(ledger, 0, dead_letters=[letter("d")])

        flip(ledger, 0, manifest("d", lsn=200, deleted=True))

        assert ledger.dead_letters() == []

    def test_another_agents_letter_is_its_own_business(self, ledger: Ledger) -> None:
        flip(ledger, 0, dead_letters=[letter("d", agent="another")])

        flip(ledger, 0, manifest("d", lsn=200))

        assert [found.agent for found in ledger.dead_letters()] == ["another"]

    def test_a_document_that_fails_again_has_one_letter_of_its_newest_version(self, ledger: Ledger) -> None:
        flip(ledger, 0, dead_letters=[letter("d", 100)])
        flip(ledger, 0, dead_letters=[letter("d", 200)])

        assert [found.version.commit_lsn for found in ledger.dead_letters()] == [200]

    def test_a_letter_and_the_old_version_in_one_flip_keep_the_letter(self, ledger: Ledger) -> None:
        # Given a document whose new version is refused: its old manifest is saved beside the letter
        flip(ledger, 0, manifest("d", lsn=100), dead_letters=[letter("d", 200)])

        assert len(ledger.dead_letters()) == 1

    def test_a_letter_can_be_discarded_once(self, ledger: Ledger) -> None:
        flip(ledger, 0, dead_letters=[letter("d")])
        [found] = ledger.dead_letters()

        assert ledger.discard_dead_letter(found.id)
        assert not ledger.discard_dead_letter(found.id)
        assert ledger.dead_letters() == []

    def test_letters_are_listed_by_page_collection_and_reason(self, ledger: Ledger) -> None:
        letters = [letter("a"), letter("b", collection="others"), letter("c", reason="rejected"), letter("d")]
        flip(ledger, 0, dead_letters=letters)

        first = ledger.dead_letters(limit=2)
        rest = ledger.dead_letters(after=first[-1].id)
        assert [[found.document_id for found in page] for page in (first, rest)] == [["a", "b"], ["c", "d"]]
        assert [found.document_id for found in ledger.dead_letters(collection="others")] == ["b"]
        assert [found.document_id for found in ledger.dead_letters(reason="rejected")] == ["c"]
        assert ledger.dead_letter_counts() == {C: 3, "others": 1}

    @pytest.mark.parametrize(
        ("some", "left"), [({"collection": "others"}, ["a", "c"]), ({"reason": "rejected"}, ["a", "b"]), ({}, [])]
    )
    def test_many_letters_are_discarded_at_once(self, ledger: Ledger, some: dict[str, str], left: list[str]) -> None:
        flip(ledger, 0, dead_letters=[letter("a"), letter("b", collection="others"), letter("c", reason="rejected")])

        assert ledger.discard_dead_letters(**some) == 3 - len(left)
        assert [found.document_id for found in ledger.dead_letters()] == left


class TestResyncs:
    def test_a_resync_is_kept_with_its_progress(self, open_ledger: Opener) -> None:
        ledger = open_ledger()
        wanted = Resync(
            table="public.t", collections=(C, "b"), keys=(("1", "a,b"), ("2", "")), reason="why", rows_estimated=9
        )
        started = ledger.start_resync(wanted)
        other = ledger.start_resync(wanted)
        assert replace(started, id=0) == wanted
        assert other.id > started.id > 0

        moved = replace(started, snapshot="1:2:", last_key=("7", "x"), rows_done=5)
        ledger.save_resync(moved)
        flip(ledger, 0, resyncs=[replace(other, state="done", finished_at=2.5)])

        ledger = open_ledger()
        assert ledger.resyncs() == [moved, replace(other, state="done", finished_at=2.5)]
        assert ledger.resyncs(running_only=True) == [moved]


class TestListing:
    def test_live_documents_are_listed_page_by_page_in_order(self, ledger: Ledger) -> None:
        # Given documents of two collections, one of them deleted
        for number in range(7):
            write(ledger, f"d{number}", 1)
        flip(ledger, 0, manifest("d3", lsn=200, deleted=True))
        flip(ledger, 0, replace(manifest("d9"), collection="others"))

        # When they are listed by three
        pages: list[list[str]] = []
        while page := ledger.documents_after(C, pages[-1][-1] if pages else "", 3):
            pages.append(page)

        # Then each live one of the collection comes once
        assert pages == [["d0", "d1", "d2"], ["d4", "d5", "d6"]]


class TestVectorCache:
    def test_vectors_are_found_by_model_and_text(self, open_ledger: Opener) -> None:
        ledger = open_ledger()
        begin(ledger, "d", 1, fingerprint="m1", vectors={b"a": b"1234", b"b": b"5678"})

        ledger = open_ledger()
        assert ledger.cached_vectors("m1", [b"a", b"b", b"c"]) == {b"a": b"1234", b"b": b"5678"}
        assert ledger.cached_vectors("m2", [b"a"]) == {}

    def test_a_vector_that_is_not_to_be_believed_is_forgotten_for_its_model_alone(self, open_ledger: Opener) -> None:
        ledger = open_ledger()
        begin(ledger, "d", 1, fingerprint="m1", vectors={b"a": b"1234", b"b": b"5678"})
        begin(ledger, "d", 1, fingerprint="m2", vectors={b"a": b"9012"})

        ledger.forget_vectors("m1", [b"a", b"unknown"])

        ledger = open_ledger()
        assert ledger.cached_vectors("m1", [b"a", b"b"]) == {b"b": b"5678"}
        assert ledger.cached_vectors("m2", [b"a"]) == {b"a": b"9012"}

    def test_the_cache_stays_within_its_bytes_and_forgets_the_oldest(self, open_ledger: Opener) -> None:
        # Given room for about two thousand vectors
        ledger = open_ledger(embedding_cache_bytes=2_000 * (400 + 64))

        # When ten thousand are remembered, in another life too
        for number in range(100):
            if number == 50:
                ledger = open_ledger()
            vectors = {f"{number}/{n}".encode(): bytes(400) for n in range(100)}
            begin(ledger, "d", 0, fingerprint="m", vectors=vectors)

        # Then about as many are left, the newest among them
        left = [n for n in range(100) if ledger.cached_vectors("m", [f"{n}/0".encode()])]
        assert 5 <= len(left) <= 20
        assert left == list(range(100 - len(left), 100))

    def test_one_great_batch_does_not_burst_it(self, open_ledger: Opener) -> None:
        ledger = open_ledger(embedding_cache_bytes=100 * (400 + 64))

        begin(ledger, "d", 0, fingerprint="m", vectors={str(n).encode(): bytes(400) for n in range(5_000)})

        assert len(ledger.cached_vectors("m", [str(n).encode() for n in range(5_000)])) <= 100


def index(ledger: Ledger, document: str, *texts: str, offset: int = 0, collection: str = C) -> Manifest:
    """Write a document of these texts as the indexer does: its new texts are embedded, its manifest flips."""
    hashes = [text.encode().ljust(16) for text in texts]
    known = ledger.cached_vectors("m", hashes)
    new = NewChunks(collection=collection, document_id=document, count=len(hashes), hashes=hashes)
    vectors = {h: h * 100 for h in hashes if h not in known}
    generation, ids = ledger.begin_write([new], agent=AGENT, fingerprint="m", vectors=vectors)
    chunks = tuple(ChunkRef(i, h) for i, h in zip(ids[collection, document], hashes, strict=True))
    made = replace(manifest(document, lsn=generation), collection=collection, chunks=chunks)
    flip(ledger, generation, made, offset=offset)
    return made


def remembered(ledger: Ledger, *texts: str) -> set[str]:
    found = ledger.cached_vectors("m", [text.encode().ljust(16) for text in texts])
    return {h.decode().strip() for h in found}


class TestWhoseVectors:
    def test_a_vector_goes_with_the_last_document_that_ever_had_its_text(self, open_ledger: Opener) -> None:
        # Given two documents that share a text, one of which had another one before
        ledger = open_ledger()
        first = index(ledger, "1", "shared", "old")
        first = index(ledger, "1", "shared", "new", offset=1)
        second = index(ledger, "2", "shared")
        ledger = open_ledger()
        assert remembered(ledger, "shared", "old", "new") == {"shared", "old", "new"}

        # When one is deleted, then its own texts are forgotten, also the one that it only once had
        flip(ledger, 0, replace(first, chunks=(), deleted=True))
        assert remembered(ledger, "shared", "old", "new") == {"shared"}

        # When the other one is deleted, then nothing is left
        flip(ledger, 0, replace(second, chunks=(), deleted=True))
        assert remembered(ledger, "shared", "old", "new") == set()

    def test_documents_of_one_name_in_two_collections_are_two(self, ledger: Ledger) -> None:
        made = index(ledger, "1", "shared")
        index(ledger, "1", "shared", collection="other")

        flip(ledger, 0, replace(made, chunks=(), deleted=True))

        assert remembered(ledger, "shared") == {"shared"}

    def test_a_vector_of_a_write_that_never_came_to_its_end_goes_with_the_document(self, ledger: Ledger) -> None:
        # Given a document whose next text was embedded when the process died
        made = index(ledger, "1", "a")
        new = NewChunks(collection=C, document_id="1", count=1, hashes=[b"b".ljust(16)])
        ledger.begin_write([new], agent=AGENT, fingerprint="m", vectors={b"b".ljust(16): b"v" * 8})

        flip(ledger, 0, replace(made, chunks=(), deleted=True))

        assert remembered(ledger, "a", "b") == set()

    def test_a_deletion_does_not_take_vectors_of_what_is_being_written_meanwhile(self, ledger: Ledger) -> None:
        # Given a document, and the batch that inserts it again, begun before the batch that deletes it is flipped
        made = index(ledger, "1", "a")
        before = ledger.generation()
        new = NewChunks(collection=C, document_id="1", count=1, hashes=[b"b".ljust(16)])
        generation, ids = ledger.begin_write([new], agent=AGENT, fingerprint="m", vectors={b"b".ljust(16): b"v" * 8})
        gone = replace(made, chunks=(), deleted=True)

        # When the deletion is flipped, and somebody prunes
        flip(ledger, before, gone)
        ledger.prune_vectors()
        assert "b" in remembered(ledger, "a", "b")

        # Then the new text has its vector when the document lives again, and the old one goes with the document
        chunk = ChunkRef(ids[C, "1"][0], b"b".ljust(16))
        flip(ledger, generation, replace(made, chunks=(chunk,)))
        assert "b" in remembered(ledger, "a", "b")
        flip(ledger, generation, gone)
        assert remembered(ledger, "a", "b") == set()

    def test_vectors_of_what_is_being_written_are_not_pruned(self, ledger: Ledger) -> None:
        # Given a document that is being written for the first time
        new = NewChunks(collection=C, document_id="1", count=1, hashes=[b"a".ljust(16)])
        generation, _ = ledger.begin_write([new], agent=AGENT, fingerprint="m", vectors={b"a".ljust(16): b"v" * 8})

        # When somebody prunes for another reason
        ledger.remember_vectors("m", {b"salvaged".ljust(16): b"v" * 8})
        ledger.prune_vectors()
        assert remembered(ledger, "a", "salvaged") == {"a"}

        # Then its vectors go at the next look if it never came to its end
        flip(ledger, generation)
        ledger.prune_vectors()
        assert remembered(ledger, "a") == set()

    def test_vectors_of_a_document_that_never_came_to_be_are_pruned(self, ledger: Ledger) -> None:
        # Given a process that died when a new document was embedded, and a row that was gone when the next one read it
        new = NewChunks(collection=C, document_id="1", count=1, hashes=[b"a".ljust(16)])
        generation, _ = ledger.begin_write([new], agent=AGENT, fingerprint="m", vectors={b"a".ljust(16): b"v" * 8})
        flip(ledger, generation)

        # When somebody looks for vectors that belong to nobody
        ledger.prune_vectors()

        assert remembered(ledger, "a") == set()

    def test_texts_that_are_in_use_are_forgotten_last(self, open_ledger: Opener) -> None:
        # Given room for about ten vectors, and a document that was changed again and again after others were written
        ledger = open_ledger(embedding_cache_bytes=10 * (1_604 + 64))
        for number in range(8):
            index(ledger, str(number), f"text {number}")
        for number in range(20):
            index(ledger, "hot", f"version {number}", offset=number + 1)

        # Then the texts in use are all there, though they are the oldest
        in_use = [f"text {number}" for number in range(8)] + ["version 19"]
        assert remembered(ledger, *in_use) == set(in_use)

        # And of the hot document no more than the newest old ones
        assert len(remembered(ledger, *[f"version {number}" for number in range(19)])) <= 2

    def test_a_text_that_comes_back_is_in_use_again(self, open_ledger: Opener) -> None:
        ledger = open_ledger(embedding_cache_bytes=3 * (1_604 + 64))
        index(ledger, "1", "a")
        index(ledger, "1", "b", offset=1)
        index(ledger, "1", "a", offset=2)

        for number in range(5):
            index(ledger, "2", f"other {number}", offset=number + 3)

        assert remembered(ledger, "a", "b") == {"a"}

    def test_a_vector_whose_bytes_flipped_is_not_a_vector(self, open_ledger: Opener) -> None:
        ledger = open_ledger()
        index(ledger, "1", "a")
        if isinstance(ledger, SqliteLedger):
            ledger._writer.execute("update vector_cache set vector = cast(x'00' || substr(vector, 2) as blob)")
        if isinstance(ledger, PostgresLedger):
            ledger._write(
                lambda tx: tx.execute("update vector_cache set vector = overlay(vector placing '\\x00' from 1)")
            )

        assert remembered(ledger, "a") == set()


class TestForgottenCollections:
    def test_a_collection_that_is_gone_has_no_chunks_and_keeps_its_versions(self, open_ledger: Opener) -> None:
        # Given two collections with documents, intents, garbage and a dead letter
        ledger = open_ledger()
        made = index(ledger, "1", "a", "b")
        index(ledger, "1", "c", offset=1)
        begin(ledger, "2", 1)
        other = index(ledger, "1", "d", collection="other")
        flip(ledger, 0, dead_letters=[letter("3")])
        then = Resync(table="public.t", collections=(C,), reason="STORE_REPLACED")

        # When one is forgotten
        begun = ledger.forget_collection(C, then)
        ledger = open_ledger()

        # Then nothing of it is thought to be in the store
        assert ledger.counts(C) == (0, 0)
        assert ledger.documents_of_relation(C, None) == []
        assert [place for place in ledger.garbage(10) if place[0] == C] == []
        assert [place for place in ledger.intents(AGENT) if place[0] == C] == []

        # And what is known of versions, the vectors and the letter stay, and the resync is begun
        [kept] = ledger.manifests(C, ["1"]).values()
        assert kept.deleted
        assert kept.chunks == ()
        assert kept.version > made.version
        assert remembered(ledger, "a", "b", "c") == {"a", "b", "c"}
        assert [d.document_id for d in ledger.dead_letters()] == ["3"]
        assert [(r.id, r.reason) for r in ledger.resyncs(running_only=True)] == [(begun.id, "STORE_REPLACED")]

        # And the other one is as it was
        assert ledger.live("other", [c.id for c in other.chunks]) == {c.id for c in other.chunks}

    def test_a_resync_that_has_read_nothing_yet_is_not_doubled(self, ledger: Ledger) -> None:
        then = Resync(table="public.t", collections=(C,), reason="STORE_REPLACED")
        first = ledger.forget_collection(C, then)
        assert ledger.forget_collection(C, then).id == first.id

        # Its first page may be in the index by half, though it has not told so yet
        ledger.save_resync(replace(first, snapshot="1:1:"))
        second = ledger.forget_collection(C, then)
        assert second.id != first.id

        ledger.save_resync(replace(second, rows_done=1, last_key=("1",)))
        assert ledger.forget_collection(C, then).id not in (first.id, second.id)

    def test_vectors_of_documents_that_did_not_come_back_are_pruned(self, open_ledger: Opener) -> None:
        # Given a collection that was forgotten, and read again without one of its documents
        ledger = open_ledger()
        index(ledger, "1", "a")
        index(ledger, "2", "b")
        ledger.forget_collection(C, Resync(table="public.t", collections=(C,)))
        ledger.remember_vectors("m", {b"salvaged".ljust(16): b"v" * 8})
        index(ledger, "1", "a")

        # When what belongs to nobody is pruned
        ledger.prune_vectors()

        # Then only the texts of documents that live are remembered
        assert remembered(ledger, "a", "b", "salvaged") == {"a"}
        assert remembered(open_ledger(), "a", "b", "salvaged") == {"a"}

    def test_nothing_is_pruned_without_a_reason(self, ledger: Ledger) -> None:
        begin(ledger, "1", 0, fingerprint="m", vectors={b"a".ljust(16): b"v" * 8})

        ledger.prune_vectors()

        assert remembered(ledger, "a") == {"a"}

    def test_parked_documents_are_told(self, ledger: Ledger) -> None:
        flip(ledger, 0, dead_letters=[letter("3")])

        assert ledger.parked(C, ["2", "3"]) == {"3"}
        assert ledger.parked("other", ["3"]) == set()


class TestSqliteFile:
    """What only the SQLite file can suffer."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "ledger.db"

    @pytest.mark.fault("disk-full")
    def test_a_full_disk_changes_nothing_and_passes(self, path: Path) -> None:
        # Given a ledger on a disk that is full to the last page
        ledger = SqliteLedger(path)
        ids = write(ledger, "d", 1)
        ledger._writer.execute(f"pragma max_page_count = {ledger._writer.execute('pragma page_count').fetchone()[0]}")

        # When more is to be written
        large = {b"x": bytes(1_000_000)}
        with pytest.raises(LedgerFull) as full:
            begin(ledger, "d", 1, fingerprint="m", vectors=large)
        assert full.value.retryable

        # Then nothing was, and it can be once there is room
        assert ledger.intents(AGENT) == []
        assert ledger.live(C, ids) == set(ids)
        ledger._writer.execute("pragma max_page_count = 1000000")
        generation, _ = begin(ledger, "d", 1, fingerprint="m", vectors=large)
        assert generation == 2
        ledger.close()

    def test_counts_that_are_asked_for_in_the_middle_of_a_flip_are_not_counted_twice(self, path: Path) -> None:
        # Given a ledger with a document, and somebody who asks for the counts just after a flip was committed
        ledger = SqliteLedger(path)
        generation, ids = begin(ledger, "d", 3)
        asking = threading.Thread(target=lambda: ledger.counts(C))

        class Committing:
            """The writing connection, with somebody who is quick behind each commit."""

            def __init__(self, connection: sqlite3.Connection) -> None:
                self._connection = connection

            def __getattr__(self, name: str) -> Any:
                return getattr(self._connection, name)

            def execute(self, statement: str, *params: Any) -> Any:
                done = self._connection.execute(statement, *params)
                if statement == "commit":
                    asking.start()
                    asking.join(0.2)
                return done

        connection = ledger._writer
        ledger._writer = Committing(connection)  # type: ignore[assignment]

        # When the document is flipped
        flip(ledger, generation, manifest("d", *ids))
        ledger._writer = connection
        asking.join(10)

        # Then it counts once
        assert ledger.counts(C) == (1, 3)
        ledger.close()

    def test_a_closed_ledger_says_so(self, path: Path) -> None:
        ledger = SqliteLedger(path)
        ledger.close()

        for act in (lambda: ledger.checkpoint(AGENT), lambda: begin(ledger, "d", 1), lambda: ledger.counts(C)):
            with pytest.raises(LedgerError):
                act()

    @pytest.mark.fault("ledger-damaged")
    def test_a_damaged_file_is_refused_with_a_remedy(self, path: Path) -> None:
        ledger = SqliteLedger(path)
        for number in range(200):
            write(ledger, f"document {number}", 5)
        ledger.close()
        data = bytearray(path.read_bytes())
        data[len(data) // 3 : len(data) // 3 + 20_000] = b"\xff" * 20_000
        path.write_bytes(data)

        with pytest.raises(IdentityMismatch) as refused:
            SqliteLedger(path)
        assert refused.value.state == "LEDGER_CORRUPT"
        assert "on_mismatch" in refused.value.hint.lower()

    @pytest.mark.parametrize(
        "change",
        [
            "update manifest set chunks = cast(chunks || x'00' as blob)",
            "update manifest set column_hashes = x'ff' || column_hashes",
            "update manifest set commit_lsn = commit_lsn + 1",
            "update manifest set snapshot = '1:1:'",
            "update manifest set document_id = 'another'",
            "alter table manifest rename to manifesu",
            "drop table manifest",
        ],
    )
    def test_content_that_was_not_written_by_us_is_damage(self, path: Path, change: str) -> None:
        ledger = SqliteLedger(path)
        write(ledger, "d", 1)
        ledger.close()
        with sqlite3.connect(path) as connection:
            connection.execute(change)
        connection.close()

        with pytest.raises(IdentityMismatch, match="LEDGER_CORRUPT"):
            SqliteLedger(path)

    def test_damage_under_our_hands_is_named_and_remembered(self, path: Path) -> None:
        ledger = SqliteLedger(path)
        write(ledger, "d", 1)
        ledger._writer.execute("update manifest set xid = xid + 1")

        with pytest.raises(IdentityMismatch, match="LEDGER_CORRUPT"):
            ledger.manifests(C, ["d"])
        assert ledger.damage is not None
        ledger.close()

    def test_a_file_of_the_first_version_gets_what_it_lacks(self, path: Path) -> None:
        # Given a ledger from before writings were timed
        ledger = SqliteLedger(path)
        [old] = write(ledger, "old", 1)
        ledger.close()
        with sqlite3.connect(path) as connection:
            connection.executescript(BEFORE_2)
        connection.close()

        # When it is opened today, and something is written
        ledger = SqliteLedger(path, wall_clock=lambda: 1_000.0)
        [new] = write(ledger, "new", 1)

        # Then it holds what it held, and knows the time of what is new alone
        assert set(ledger.manifests(C, ["old", "new"])) == {"old", "new"}
        assert (ledger.written_at(old), ledger.written_at(new)) == (None, 1_000.0)
        ledger.close()
        SqliteLedger(path).close()

    def test_a_file_of_the_first_version_that_lost_a_table_is_damaged_all_the_same(self, path: Path) -> None:
        SqliteLedger(path).close()
        with sqlite3.connect(path) as connection:
            connection.executescript(f"{BEFORE_2} drop table manifest;")
        connection.close()

        with pytest.raises(IdentityMismatch, match="LEDGER_CORRUPT"):
            SqliteLedger(path)

    def test_the_time_of_old_writings_is_kept_to_the_minute(self, path: Path) -> None:
        # Given four thousand writings, ten a minute
        moments = (number * 6.0 for number in range(10_000))
        ledger = SqliteLedger(path, wall_clock=lambda: next(moments))
        ids = [f"d#{ledger.begin_write([], agent=AGENT)[0]}.0" for _ in range(4_000)]

        # Then the newest are known to the moment, the oldest to the minute, and few are kept
        assert [ledger.written_at(chunk) for chunk in ids[-1_000:]] == [n * 6.0 for n in range(3_000, 4_000)]
        assert {n * 6.0 - (ledger.written_at(ids[n]) or 0.0) for n in range(1_000)} == {n * 6.0 for n in range(10)}
        assert ledger._one("select count(*) from writing")[0] < 2_400
        ledger.close()

    @pytest.mark.fault("ledger-damaged")
    def test_a_file_of_another_version_is_refused(self, path: Path) -> None:
        SqliteLedger(path).close()
        with sqlite3.connect(path) as connection:
            connection.execute("pragma user_version = 99")
        connection.close()

        with pytest.raises(LedgerError, match="schema 99"):
            SqliteLedger(path)

    def test_nobody_else_may_read_it(self, path: Path) -> None:
        SqliteLedger(path).close()

        assert path.stat().st_mode & 0o077 == 0
