"""The write protocol against a store that refuses, lies, hangs and answers late."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_agent.agents.folding import Pending
from cdc_agent.agents.indexer import AGENT
from cdc_agent.agents.planning import Collection, Plan, plan
from cdc_agent.agents.writing import IndexWriter, Prepared, TaintedError
from cdc_agent.documents.model import text_hash
from cdc_agent.documents.rendering import Template
from cdc_agent.events import Row
from cdc_agent.health import Health
from cdc_agent.ledger.base import Checkpoint, Manifest
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn, Version
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.vectorstore.records import CollectionMissing
from tests.support.scripted import FaultyStore, a_collection, a_relation, expected_chunks, raw

COLLECTION = a_collection(max_tokens=1, template=Template("{body}"))


class Desk:
    """A writer on a ledger and a store; ``reopen`` is the next life of the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FaultyStore()
        self.store.open_collection("docs", dimensions=4, marker={"ledger": "x"})
        self.retrier = Retrier(threading.Event(), Health(), Backoff(initial_s=0.0001, maximum_s=0.001))
        self.number = 0
        #: What every document must be in the end.
        self.wanted: dict[str, tuple[str, str]] = {}
        self.ledger: SqliteLedger | None = None
        self.reopen()

    def reopen(self) -> None:
        if self.ledger is not None:
            self.ledger.close()
        self.ledger = SqliteLedger(self.folder / "ledger.db")
        # No test here cuts the power.
        self.ledger._writer.execute("pragma synchronous = off")
        self.writer = IndexWriter(
            agent=AGENT, ledger=self.ledger, store=self.store, collections={"docs": COLLECTION}, fingerprint="f"
        )

    def manifest(self, key: str, collection: str = "docs") -> Manifest | None:
        assert self.ledger is not None
        return self.ledger.manifests(collection, [f"public.docs:{key}"]).get(f"public.docs:{key}")

    def plan(self, key: str, body: str | None, lang: str = "en", collection: Collection = COLLECTION) -> Plan:
        base = self.manifest(key, collection.spec.name)
        row = Row(a_relation(), raw((key, "", body, lang))) if body is not None else None
        pending = Pending(
            document_id=f"public.docs:{key}",
            key=(key,),
            base=base,
            version=Version(Lsn(self.number * 100), 1),
            xid=self.number,
            relation_oid=1,
            row=row,
            touched=True,
        )
        return plan(collection, pending, tainted=self.writer.tainted(base))

    def begin(self, changes: dict[str, tuple[str | None, str]]) -> Prepared:
        self.number += 1
        return self.begin_planned([self.plan(key, body, lang) for key, (body, lang) in changes.items()])

    def begin_planned(self, plans: Sequence[Plan]) -> Prepared:
        texts = {p.hashes[i]: p.texts[i] for p in plans for i in p.new}
        vectors = {digest: np.array([1, len(text), 0, 0], dtype=np.float32) for digest, text in texts.items()}
        checkpoint = Checkpoint(offset=self.number, applied_lsn=Lsn(self.number * 100))
        return self.writer.begin(plans, vectors, list(vectors), checkpoint=checkpoint, retrier=self.retrier)

    def write(self, changes: dict[str, tuple[str | None, str]]) -> None:
        """One batch, planned again as often as a write in place fails."""
        while True:
            try:
                self.writer.write(self.begin(changes), self.retrier)
            except TaintedError:
                continue
            for key, (body, lang) in changes.items():
                self.wanted.pop(key, None)
                if body is not None:
                    self.wanted[key] = (body, lang)
            return

    def live(self) -> dict[str, str]:
        """Live ids and the hashes of their texts."""
        assert self.ledger is not None
        documents = self.ledger.documents_of_relation("docs", None)
        return {c.id: c.text_hash.hex() for m in self.ledger.manifests("docs", documents).values() for c in m.chunks}

    def assert_every_live_chunk_is_right(self) -> None:
        """Manifests are what the documents must be, and everything that they name is in the store, as it must be."""
        found = {r.id: r for r in self.store.everything("docs")}
        live = self.live()
        assert set(live) <= set(found)
        assert {i: text_hash(found[i].text).hex() for i in live} == live
        seen = sorted(
            (str(r.metadata["cdc_doc"]), int(str(r.metadata["cdc_chunk"])), r.text, str(r.metadata["lang"]))
            for i, r in found.items()
            if i in live
        )
        wanted = [c for k, (b, lang) in self.wanted.items() for c in expected_chunks(COLLECTION, (k, "", b, lang))]
        assert seen == sorted(wanted)

    def assert_clean(self) -> None:
        """After a sweep and the garbage, the store holds what manifests name and nothing else."""
        self.writer.sweep(self.retrier)
        self.writer.collect_garbage(self.retrier)
        self.assert_every_live_chunk_is_right()
        assert {r.id for r in self.store.everything("docs")} == set(self.live())


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    assert made.ledger is not None
    made.ledger.close()


# -- any schedule -----------------------------------------------------------------------------------------------

BODIES = st.one_of(st.none(), st.lists(st.sampled_from("abcd"), max_size=4).map("\n\n".join))
CHANGES = st.dictionaries(st.sampled_from("123"), st.tuples(BODIES, st.sampled_from(["en", "de"])), min_size=1)
FAULTS = st.lists(st.sampled_from(["ok", "ok", "lost", "done", "late"]), max_size=4)
STEPS = st.one_of(
    st.tuples(st.just("write"), CHANGES, FAULTS),
    st.tuples(st.just("abandon"), CHANGES, st.integers(0, 3)),
    st.tuples(st.sampled_from(["land", "garbage", "die"]), st.none(), FAULTS),
)


class _Killed(BaseException):
    """The process ends here."""


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=8))
@pytest.mark.fault("store-fails-in-between", "late-write", "answer-lost")
def test_after_any_schedule_the_store_is_what_the_manifests_say(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        for kind, changes, how in steps:
            desk.store._faults = iter(how if kind != "abandon" else ())
            if kind == "write":
                desk.write(changes)
            elif kind == "abandon":
                die_after(desk, changes, how)
                # What the next life does first: the same changes again, from the stream.
                desk.write(changes)
            elif kind == "garbage":
                desk.writer.collect_garbage(desk.retrier)
            elif kind == "land":
                desk.store.land()
            else:
                desk.reopen()
            # A request of a dead process must not change what a reader sees, at any time.
            desk.assert_every_live_chunk_is_right()
        desk.store.heal()
        desk.store.land()
        desk.assert_clean()
        assert desk.ledger is not None
        desk.ledger.close()


def die_after(desk: Desk, changes: Any, writes: int) -> None:
    """Begin a batch and die after some of its writes; the one that is under way then lands late, or never."""
    left = writes

    def count(_kind: str) -> None:
        nonlocal left
        if left == 0:
            raise _Killed
        left -= 1

    prepared = desk.begin(changes)
    desk.store.before_write = count
    desk.store._faults = iter(["ok"] * (writes - 1) + ["late"] * 9)
    try:
        desk.writer.write(prepared, desk.retrier)
        for key, (body, lang) in changes.items():
            desk.wanted.pop(key, None)
            if body is not None:
                desk.wanted[key] = (body, lang)
    except (_Killed, TaintedError):
        pass
    desk.store.before_write = lambda _: None
    desk.store.heal()
    desk.reopen()


# -- one at a time ----------------------------------------------------------------------------------------------


@pytest.mark.fault("store-fails-in-between", "answer-lost")
def test_an_upsert_that_fails_is_repeated_under_the_same_ids(desk: Desk) -> None:
    desk.store._faults = iter(["lost", "done", "late"])

    desk.write({"1": ("a\n\nb", "en")})

    assert sorted(desk.live()) == ["public.docs:1#1.0", "public.docs:1#1.1"]
    desk.store.land()
    desk.assert_clean()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.fault("late-write")
def test_an_upsert_that_was_repeated_and_lands_again_later_does_not_undo_a_write_in_place(
    desk: Desk, restart: bool
) -> None:
    # Given chunks that were taken at the second try, while the first one is still under way
    desk.store._faults = iter(["late"])
    assert not desk.writer.write(desk.begin({"1": ("a\n\nb", "en")}), desk.retrier)
    if restart:
        desk.reopen()
        desk.write({"2": ("c", "en")})
        desk.reopen()

    # When the metadata changes, and then the first request lands
    desk.write({"1": ("a\n\nb", "de")})
    desk.store.land()

    # Then the new metadata stands
    desk.assert_clean()


@pytest.mark.parametrize("fault", ["lost", "done", "late"])
def test_a_metadata_write_that_fails_is_planned_again_with_new_ids(desk: Desk, fault: str) -> None:
    # Given a document
    desk.write({"1": ("a\n\nb", "en"), "2": ("c", "en")})
    before = set(desk.live())

    # When a write in place fails
    desk.store._faults = iter([fault])
    with pytest.raises(TaintedError) as failed:
        desk.writer.write(desk.begin({"1": ("a\n\nb", "de")}), desk.retrier)
    assert failed.value.retryable

    # Then nothing is flipped, its chunks are doubted, and the next write gives all of them new ids
    assert set(desk.live()) == before
    assert desk.writer.tainted(desk.manifest("1")) == {"public.docs:1#1.0", "public.docs:1#1.1"}
    assert desk.writer.tainted(desk.manifest("2")) == frozenset()
    desk.write({"1": ("a\n\nb", "fr")})
    assert desk.writer.tainted(desk.manifest("1")) == frozenset()
    desk.store.land()
    desk.assert_clean()


def test_a_doubt_about_one_document_is_not_settled_by_another_whose_name_begins_alike(desk: Desk) -> None:
    # Given documents whose names are beginnings of each other, and a failed write in place of the longer one
    desk.write({"1": ("a", "en"), "1#2": ("b", "en")})
    desk.store._faults = iter(["late"])
    with pytest.raises(TaintedError):
        desk.writer.write(desk.begin({"1#2": ("b", "de")}), desk.retrier)

    # When the shorter one is written
    desk.write({"1": ("c", "en")})

    # Then the longer one is still in doubt
    assert desk.writer.tainted(desk.manifest("1#2"))


def test_a_process_that_died_in_a_write_in_place_leaves_its_doubt_to_the_next_ones(desk: Desk) -> None:
    # Given a document, and a life that ends during a write in place
    desk.write({"1": ("a", "en")})
    desk.begin({"1": ("a", "de")})
    desk.reopen()
    assert desk.writer.tainted(desk.manifest("1")) == {"public.docs:1#1.0"}

    # When the next life writes something else and ends, too
    desk.write({"2": ("b", "en")})
    desk.reopen()

    # Then the third one still gives the document a new chunk
    desk.write({"1": ("a", "de")})
    assert "public.docs:1#1.0" not in desk.live()
    desk.assert_clean()


def test_a_batch_that_was_planned_ahead_survives_the_flip_of_the_one_before(desk: Desk) -> None:
    first = desk.begin({"1": ("a", "en")})
    second = desk.begin({"2": ("b", "en")})

    desk.writer.write(first, desk.retrier)
    desk.writer.collect_garbage(desk.retrier)
    desk.writer.write(second, desk.retrier)

    desk.wanted = {"1": ("a", "en"), "2": ("b", "en")}
    desk.assert_clean()


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("refused", ["poison", "xx"], ids=["text", "metadata"])
def test_a_refused_document_is_parked_alone_and_its_ids_are_given_back(desk: Desk, refused: str, first: bool) -> None:
    # Given three documents of which the store refuses one
    desk.write({"1": ("a", "en"), "2": ("b", "en")})
    before = desk.manifest("1")
    desk.store.poison = {refused}
    text, lang = ("poison", "en") if refused == "poison" else ("a", "xx")

    # When they are written
    changes: dict[str, tuple[str | None, str]] = {"2": ("c", "en"), "3": ("d", "en")}
    prepared = desk.begin({"1": (text, lang)} | changes if first else changes | {"1": (text, lang)})
    as_planned = desk.writer.write(prepared, desk.retrier)

    # Then the others are there, the refused one stays as it was, and the caller knows
    assert not as_planned
    assert [p.pending.document_id for p in prepared.plans] == ["public.docs:2", "public.docs:3"]
    desk.wanted = {"1": ("a", "en"), "2": ("c", "en"), "3": ("d", "en")}
    desk.assert_clean()
    assert desk.ledger is not None
    [letter] = desk.ledger.dead_letters()
    assert (letter.document_id, letter.reason, letter.version) == ("public.docs:1", "rejected", Version(Lsn(200), 1))
    assert letter.attempts == 1
    assert before is not None
    kept = desk.manifest("1")
    assert kept is not None
    assert (kept.version, kept.chunks, kept.column_hashes) == (before.version, before.chunks, b"")


@pytest.fixture
def beside(desk: Desk) -> Collection:
    """A second collection that the writer of ``desk`` keeps."""
    assert desk.ledger is not None
    desk.store.open_collection("notes", dimensions=4, marker={"ledger": "x"})
    notes = a_collection("notes", max_tokens=1, template=Template("{body}"))
    both = {"docs": COLLECTION, "notes": notes}
    desk.writer = IndexWriter(agent=AGENT, ledger=desk.ledger, store=desk.store, collections=both, fingerprint="f")
    return notes


def test_a_text_that_one_collection_refuses_is_not_written_into_it_from_another(desk: Desk, beside: Collection) -> None:
    # Given a batch over two collections, in one of which a text is refused
    desk.store.poison = {"poison"}
    desk.number += 1
    prepared = desk.begin_planned([desk.plan("1", "poison"), desk.plan("2", "a", collection=beside)])

    desk.writer.write(prepared, desk.retrier)

    assert desk.store.everything("docs") == []
    assert [r.text for r in desk.store.everything("notes")] == ["a"]


def test_a_doubt_about_one_document_is_not_settled_by_one_of_its_name_in_another_collection(
    desk: Desk, beside: Collection
) -> None:
    # Given a document of one name in each of two collections, and a failed write in place of one of them
    def write(*plans: Plan) -> None:
        desk.number += 1
        desk.writer.write(desk.begin_planned(plans), desk.retrier)

    write(desk.plan("1", "a"), desk.plan("1", "b", collection=beside))
    desk.store._faults = iter(["late"])
    with pytest.raises(TaintedError):
        write(desk.plan("1", "b", "de", beside))

    # When the other one is written
    write(desk.plan("1", "c"))

    # Then the first one is still in doubt
    assert desk.writer.tainted(desk.manifest("1", "notes"))


def test_metadata_that_two_collections_refuse_are_parked_once_in_each(desk: Desk, beside: Collection) -> None:
    # Given a document in each of two collections, and metadata for both that are refused
    for lang in ("en", "xx"):
        desk.number += 1
        plans = [desk.plan("1", "a", lang), desk.plan("2", "b", lang, beside)]
        desk.writer.write(desk.begin_planned(plans), desk.retrier)
        desk.store.poison = {"xx"}

    assert desk.ledger is not None
    assert [(letter.collection, letter.document_id) for letter in desk.ledger.dead_letters()] == [
        ("docs", "public.docs:1"),
        ("notes", "public.docs:2"),
    ]


def test_a_collection_that_was_deleted_by_hand_stops_everything(desk: Desk) -> None:
    desk.write({"1": ("a", "en")})
    desk.store.drop_collection("docs")

    for changes in ({"2": ("b", "en")}, {"1": ("a", "de")}):
        with pytest.raises(CollectionMissing):
            desk.writer.write(desk.begin(changes), desk.retrier)
    assert desk.ledger is not None
    assert desk.ledger.dead_letters() == []


def test_the_sweep_removes_strays_and_nothing_that_is_named(desk: Desk) -> None:
    # Given a document, garbage, a batch that is begun, and a request of an earlier life that landed late
    desk.write({"1": ("a", "en")})
    desk.write({"1": ("b", "en")})
    begun = desk.begin({"2": ("c", "en")})
    desk.writer._upsert(begun, desk.retrier)
    [stray] = desk.store.get("docs", ["public.docs:2#3.0"])
    desk.store.upsert("docs", [type(stray)(id="public.docs:9#1.0", text="x", metadata={}, embedding=np.ones(4, "f4"))])

    # When it sweeps
    assert desk.writer.sweep(desk.retrier) == 1

    # Then only the stray is gone
    assert {r.id for r in desk.store.everything("docs")} == {
        "public.docs:1#1.0",
        "public.docs:1#2.0",
        "public.docs:2#3.0",
    }


def test_garbage_is_deleted_until_the_store_has_said_so(desk: Desk) -> None:
    desk.write({"1": ("a\n\nb\n\nc", "en")})
    desk.write({"1": (None, "en")})
    desk.store._faults = iter(["lost", "done", "late"])

    desk.writer.collect_garbage(desk.retrier)

    assert desk.store.everything("docs") == []
    assert desk.ledger is not None
    assert desk.ledger.garbage(10) == []


def test_a_batch_that_adds_nothing_costs_no_transaction_before_its_flip(desk: Desk) -> None:
    desk.write({"1": ("a", "en"), "2": ("b", "en")})
    assert desk.ledger is not None
    begun = desk.ledger.generation()

    # When a document leaves, and nothing new comes
    desk.write({"1": (None, "en")})

    assert desk.ledger.generation() == begun
    # And beside one that comes, it takes no ids
    prepared = desk.begin({"2": (None, "en"), "3": ("c", "en")})
    assert [document for _, document in prepared.records] == ["public.docs:3"]
    assert [c for _, c in desk.ledger.intents(AGENT)] == [r.id for rs in prepared.records.values() for r in rs]


def test_vectors_are_kept_with_the_ids_and_only_of_texts_that_are_written(desk: Desk) -> None:
    # Given a text that was embedded and whose document was parked meanwhile, and one that is to be written
    desk.number += 1
    made = desk.plan("1", "a")
    (written,), parked = made.hashes, text_hash("poison")
    vectors = {digest: np.array([1, 0, 0, 0], dtype=np.float32) for digest in (written, parked)}

    # When the batch begins, even in a process that is to stop
    stopping = threading.Event()
    stopping.set()
    retrier = Retrier(stopping, Health(), Backoff(initial_s=0.0001, maximum_s=0.001))
    desk.writer.begin([made], vectors, list(vectors), checkpoint=Checkpoint(offset=1), retrier=retrier)

    # Then what was paid for is kept, and nothing that would never leave
    assert desk.ledger is not None
    assert set(desk.ledger.cached_vectors("f", vectors)) == {written}


@pytest.mark.parametrize("part", ["manifests", "same", "letters", "resyncs"])
def test_a_batch_is_empty_only_without_anything_to_record(part: str) -> None:
    # Whatever it is, a batch that holds it is written even where the position does not move.
    something: Any = [object()]

    assert Prepared(checkpoint=Checkpoint()).empty is True
    assert Prepared(checkpoint=Checkpoint(), **{part: something}).empty is False
