"""What needs no model does not wait for one: a permission that was taken away, a document that was deleted."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_agent import metrics
from cdc_agent.agents import indexer as indexer_module
from cdc_agent.agents.aside import Aside
from cdc_agent.agents.writing import TaintedError
from tests.support.rig import CountingEmbedder, Rig
from tests.support.scripted import Statement
from tests.support.wait import until
from tests.unit.agents.test_indexer import LONG, OTHER_LONG, Schedule

#: Within this many seconds a revocation counts, also on a busy machine; the model answers nothing before it is let go.
SOON_S = 10.0


class SlowModel(CountingEmbedder):
    """Answers nothing while it is ``held``; ``asked`` says that somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.free.set()
        self.asked = threading.Event()
        #: Draws how long each call takes.
        self.pace: random.Random | None = None

    def hold(self) -> None:
        self.asked.clear()
        self.free.clear()

    def embed(self, texts: Any) -> Any:
        self.asked.set()
        assert self.free.wait(60)
        if self.pace is not None:
            threading.Event().wait(self.pace.choice([0.0, 0.001, 0.004]))
        return super().embed(texts)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    rig.embedder = SlowModel()
    yield rig
    model(rig).free.set()
    rig.close()


def model(rig: Rig) -> SlowModel:
    assert isinstance(rig.embedder, SlowModel)
    return rig.embedder


def waiting(rig: Rig, documents: int = 2_000) -> None:
    """A model that is at work on the first of many documents, and stays so."""
    model(rig).hold()
    rows = [Statement("insert", f"n{i}", (f"n{i}", "t", f"body {i}", "en")) for i in range(documents)]
    rig.commit(*rows)
    assert model(rig).asked.wait(20)


def langs(rig: Rig) -> dict[str, str]:
    """What a search could see: the metadata of each document that is live in the store."""
    live = rig.live_ids()
    return {
        str(record.metadata["cdc_doc"]).rpartition(":")[2]: str(record.metadata.get("lang"))
        for record in rig.store.everything("docs")
        if record.id in live
    }


def indexed(rig: Rig, *keys: str) -> None:
    rig.start()
    for key in keys:
        rig.insert(key, "t", LONG)
    rig.settle()


def test_a_revoked_permission_counts_at_once_while_thousands_of_documents_wait_for_the_model(rig: Rig) -> None:
    # Given two documents in the index, and two thousand that wait for a model that takes its time
    indexed(rig, "1", "2")
    waiting(rig)
    offset, lsn = rig.indexer.watermark.offset, rig.indexer.watermark.applied_lsn

    # When the metadata of one change, twice, and the other is deleted
    began = time.monotonic()
    rig.update("1", "t", LONG, "xx")
    rig.update("1", "t", LONG, "revoked")
    rig.commit(Statement("delete", "2"))
    until(lambda: langs(rig) == {"1": "revoked"}, what="the change to count")

    # Then that is so within a moment, and nothing was embedded for it
    assert time.monotonic() - began < SOON_S
    assert not model(rig).free.is_set()
    # And nobody is told that the index is complete up to there.
    assert (rig.indexer.watermark.offset, rig.indexer.watermark.applied_lsn) == (offset, lsn)
    assert rig.ledger.checkpoint("indexer").offset == offset

    # When the model answers, then the rest follows.
    model(rig).free.set()
    rig.assert_index_is_the_table()


def test_a_change_does_not_wait_for_the_model_that_the_same_batch_needs(rig: Rig) -> None:
    # Given a document whose metadata change in the middle of a transaction that brings others
    indexed(rig, "1")
    model(rig).hold()
    rig.commit(
        Statement("insert", "2", ("2", "t", "new", "en")),
        Statement("update", "1", ("1", "t", LONG, "revoked")),
        Statement("insert", "3", ("3", "t", "newer", "en")),
    )

    # Then it counts while the model is still at work on them
    assert model(rig).asked.wait(20)
    until(lambda: langs(rig) == {"1": "revoked"}, what="the change to count")
    assert not model(rig).free.is_set()

    # And so does another one that comes now
    rig.update("1", "t", LONG, "again")
    until(lambda: langs(rig) == {"1": "again"}, what="the change to count")
    model(rig).free.set()
    rig.assert_index_is_the_table()


def test_nothing_is_reordered_within_a_document(rig: Rig) -> None:
    # Given documents whose next text is in hand, or further behind in the stream, or whose key moves
    indexed(rig, "1", "2", "3", "5")
    model(rig).hold()
    rig.update("1", "t", OTHER_LONG)
    assert model(rig).asked.wait(20)
    rig.update("2", "t", OTHER_LONG)
    rig.commit(Statement("update", "3", ("4", "t", LONG, "en")))

    # When the metadata of all of them change
    rig.update("1", "t", OTHER_LONG, "later")
    rig.update("2", "t", OTHER_LONG, "later")
    rig.update("4", "t", LONG, "later")
    rig.update("5", "t", LONG, "now")
    until(lambda: langs(rig)["5"] == "now", what="the last change to count")

    # Then those wait for what is in front of them
    assert langs(rig) == {"1": "en", "2": "en", "3": "en", "5": "now"}
    model(rig).free.set()
    rig.assert_index_is_the_table()
    assert langs(rig) == {"1": "later", "2": "later", "4": "later", "5": "now"}


def test_a_document_that_moves_is_found_at_one_of_its_keys_all_the_time(rig: Rig) -> None:
    # Given a document that moves to another key, and one that goes, in a transaction that waits for the model
    indexed(rig, "1", "2")
    model(rig).hold()
    rig.commit(
        Statement("insert", "3", ("3", "t", "new", "en")),
        Statement("update", "1", ("7", "t", LONG, "en")),
        Statement("delete", "2"),
    )

    # When what may go ahead has gone
    assert model(rig).asked.wait(20)
    until(lambda: "2" not in langs(rig), what="the deletion to count")

    # Then the one that moves stands where it was until it stands where it goes
    assert langs(rig) == {"1": "en"}
    model(rig).free.set()
    rig.assert_index_is_the_table()
    assert langs(rig) == {"3": "en", "7": "en"}


def test_a_text_of_a_document_whose_deletion_goes_ahead_is_not_embedded_again(rig: Rig) -> None:
    # Given a document that goes, and one with its text that comes, in a transaction that waits for the model
    indexed(rig, "1")
    model(rig).hold()
    rig.commit(
        Statement("insert", "2", ("2", "t", "new", "en")),
        Statement("delete", "1"),
        Statement("insert", "7", ("7", "t", LONG, "en")),
    )
    assert model(rig).asked.wait(20)
    until(lambda: "1" not in langs(rig), what="the deletion to go ahead")
    model(rig).free.set()
    rig.assert_index_is_the_table()

    # When that one moves to another key
    rig.commit(Statement("update", "7", ("8", "t", LONG, "en")))
    rig.assert_index_is_the_table()

    # Then no text was embedded twice.
    assert max(Counter(model(rig).texts).values()) == 1


def test_a_truncate_is_not_passed(rig: Rig) -> None:
    # Given a table that is emptied behind a document that waits, and a row that comes again and changes
    indexed(rig, "1", "2")
    waiting(rig, documents=3)
    rig.update("2", "t", LONG, "before")
    rig.commit(Statement("truncate", partition=1))
    rig.insert("1", "t", LONG)
    rig.update("1", "t", LONG, "after")

    # When what may go ahead has gone
    until(lambda: langs(rig).get("2") == "before", what="the change in front of it")
    assert langs(rig)["1"] == "en"
    model(rig).free.set()

    # Then the index is the table
    rig.assert_index_is_the_table()


def test_what_went_ahead_survives_a_death_and_is_not_done_twice(rig: Rig) -> None:
    # Given a change that went ahead of others
    indexed(rig, "1")
    waiting(rig, documents=50)
    rig.update("1", "t", LONG, "revoked")
    until(lambda: langs(rig)["1"] == "revoked", what="the change to count")
    went = rig.manifest("1")

    # When the process dies, and the next one begins in front of all of them
    threading.Timer(0.1, model(rig).free.set).start()
    rig.stop()
    assert rig.ledger.checkpoint("indexer").offset < rig.stream.head_offset()
    rig.start()

    # Then the change is met again, and is nothing new
    rig.assert_index_is_the_table()
    now = rig.manifest("1")
    assert went is not None
    assert now is not None
    assert (now.version, now.chunks) == (went.version, went.chunks)


def test_a_failed_write_of_what_goes_ahead_is_made_good(rig: Rig) -> None:
    # Given a store that loses the first write in place
    indexed(rig, "1")
    waiting(rig, documents=50)
    rig.store._faults = iter(["lost", "late"])
    rig.update("1", "t", LONG, "revoked")

    # When the model answers at last
    until(lambda: isinstance(rig.indexer._failed, TaintedError), what="the write to fail")
    model(rig).free.set()

    # Then the index is the table, also after what was late has landed
    rig.assert_index_is_the_table()
    rig.store.land()
    rig.assert_index_is_the_table()


@pytest.mark.parametrize("seed", range(8))
def test_any_schedule_comes_to_the_table_whatever_goes_ahead(
    rig: Rig, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a model that is slow enough for others to go ahead, and any history
    monkeypatch.setattr(indexer_module, "_OVERTAKE_S", 0.0005)
    model(rig).pace = random.Random(seed)
    before = metrics.OVERTAKEN._value.get()
    Schedule(rig, 100 + seed).run(80)
    assert metrics.OVERTAKEN._value.get() > before, "nothing went ahead: this schedule shows nothing"

    rig.stop()
    rig.store.heal()
    rig.store.land()
    rig.start()

    # Then the index is the table, and no document ever went backward
    rig.assert_index_is_the_table()


def test_the_thread_aside_gives_back_what_came_of_it() -> None:
    aside = Aside("aside")
    looked: list[int] = []
    gate = threading.Event()

    def fails() -> None:
        raise LookupError("no")

    assert aside.run(lambda: gate.wait(20) and 7, lambda: (looked.append(1), gate.set())[1], 0.001) == 7
    assert looked
    with pytest.raises(LookupError):
        aside.run(fails, lambda: None, 0.001)
    gate.clear()
    ended = threading.Event()

    def opens_and_fails() -> None:
        gate.set()
        raise LookupError("no")

    with pytest.raises(LookupError):
        aside.run(lambda: (gate.wait(20), ended.set()), opens_and_fails, 0.001)
    assert ended.is_set(), "an error of what is done meanwhile waits for the call to end"
    aside.close()
