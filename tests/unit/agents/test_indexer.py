"""The real indexer on a real stream and ledger: whatever happens, the index becomes the table."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc_agent.documents.model import text_hash
from cdc_agent.ledger.base import Flip, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.source.base import RowSet
from cdc_agent.stream.base import Batch
from tests.support.rig import Rig
from tests.support.scripted import FaultyStore, Statement
from tests.support.wait import until

LONG = "one two three four five six seven eight"
OTHER_LONG = "one two three four nine ten eleven twelve"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


# -- random schedules -------------------------------------------------------------------------------------------


class Schedule:
    """One life after the other of random events."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.random = random.Random(seed)
        self.resync: Resync | None = None
        self.page: RowSet | None = None
        self.after: str | None = None
        self.gap = False

    def run(self, steps: int) -> None:
        acts: list[tuple[int, Callable[[], None]]] = [
            (30, self.write),
            (4, self.rig.database.show),
            (8, self.go_on_with_resync),
            (2, self.restart),
            (2, self.rig.settle),
            (3, self.break_store),
            (1, self.rig.store.land),
            (1, self.lose_the_slot),
        ]
        weights = [weight for weight, _ in acts]
        self.rig.start()
        for _ in range(steps):
            self.random.choices(acts, weights)[0][1]()
        while self.gap or self.resync is not None:
            self.go_on_with_resync()
        while self.rig.database.hidden:
            self.rig.database.show()

    def statements(self) -> list[Statement]:
        rows = self.rig.database.rows(hidden=True)
        made: list[Statement] = []
        for _ in range(self.random.choice([1, 1, 2, 4])):
            made.append(self.statement(rows))
            self.rig.database._change(made[-1], rows, 0)
        return made

    def statement(self, rows: dict) -> Statement:
        pick = self.random.choice
        free = [key for key in map(str, range(1, 9)) if key not in rows]
        kinds = ["insert"] * 4 * bool(free) + ["update", "update", "update", "move", "delete"] * bool(rows)
        kind = "truncate" if self.random.random() < 0.03 else pick(kinds)
        partition = pick([1, 1, 2])
        if kind == "truncate":
            return Statement("truncate", partition=partition)
        key = pick(free) if kind == "insert" else pick(sorted(rows))
        if kind == "delete":
            return Statement("delete", key)
        old = rows[key][0] if kind != "insert" else ("", "", "", "")
        to = pick(free) if kind == "move" and free else key
        body = old[2] if old[2] and pick([True, False]) else pick([LONG, OTHER_LONG, "short", "", f"{LONG} {key}"])
        title = old[1] if old[1] and pick([True, False]) else pick(["a", "b", f"c{key}"])
        values = (to, title, body, pick(["en", "de"]))
        return Statement("insert" if kind == "insert" else "update", key, values, partition)

    def write(self) -> None:
        self.rig.commit(*self.statements(), hide=self.random.random() < 0.3)

    def restart(self) -> None:
        self.rig.stop()
        # Whatever a dead process had sent may still arrive.
        if self.random.random() < 0.5:
            self.rig.store.land()
        self.rig.start()

    def break_store(self) -> None:
        kinds = ["lost", "done", "late", "ok"]
        self.rig.store._faults = iter([self.random.choice(kinds) for _ in range(self.random.randrange(1, 6))])

    def lose_the_slot(self) -> None:
        """Some commits never reach the stream; everything is read again from then on."""
        if self.resync is None:
            while self.rig.database.hidden:
                self.rig.database.show()
            self.rig.database.commit(*self.statements())
            self.gap = True

    def go_on_with_resync(self) -> None:
        if self.resync is None:
            self.resync, self.page, self.after, self.gap = self.rig.begin_resync(), None, None, False
        elif self.page is None:
            self.page = self.rig.read_page(self.after, 3)
        else:
            done = len(self.page.rows) < 3
            self.rig.place(self.resync, self.page, done=done)
            self.after = (self.page.rows[-1][0] or b"").decode() if self.page.rows else self.after  # type: ignore[union-attr]
            self.page = None
            if done:
                self.resync = None


@pytest.mark.parametrize("seed", range(8))
def test_any_schedule_comes_to_the_table(rig: Rig, seed: int) -> None:
    # Given any history of writes, reads that miss commits, restarts, faults of the store and lost slots
    Schedule(rig, seed).run(60)

    # When the store is well again, and a last life begins after everything that was late has landed
    rig.stop()
    rig.store.heal()
    rig.store.land()
    rig.start()

    # Then the index is the table, no document ever went backward, and no text was embedded twice, unless its vector
    # had left with its last document
    rig.assert_index_is_the_table()
    forgotten = rig.ledger.forgotten()
    assert all(count <= 1 + forgotten[text_hash(text)] for text, count in Counter(rig.embedder.texts).items())
    assert all(resync.state == "done" for resync in rig.ledger.resyncs())


def test_text_and_metadata_of_a_document_change_at_once_for_who_searches(rig: Rig) -> None:
    # Given a reader who looks in the last moment before each flip and in the first one after it
    mixed: list[set[object]] = []

    def look(flip: Flip) -> None:
        found = rig.ledger.manifests("docs", [manifest.document_id for manifest in flip.manifests])
        for manifest in found.values():
            records = rig.store.get("docs", [chunk.id for chunk in manifest.chunks])
            languages = {record.metadata.get("lang") for record in records}
            if len(languages) > 1:
                mixed.append(languages)

    rig.ledger.before_flip = rig.ledger.after_flip = look
    rig.start()
    rig.insert("1", "t", LONG, "en")
    rig.settle()

    # When a part of the text changes together with the metadata, and when a part goes
    rig.update("1", "t", OTHER_LONG, "de")
    rig.settle()
    rig.update("1", "t", LONG.rpartition(" ")[0], "fr")
    rig.assert_index_is_the_table()

    # Then no document ever had metadata of two versions, and only the new texts were embedded
    assert mixed == []
    assert len(rig.embedder.texts) == len(set(rig.embedder.texts))


# -- economy ----------------------------------------------------------------------------------------------------


def test_only_the_part_that_changed_is_embedded(rig: Rig) -> None:
    # Given a document of several chunks
    rig.start()
    rig.insert("1", "t", LONG)
    rig.assert_index_is_the_table()
    before = list(rig.embedder.texts)

    # When its end changes, then only its metadata, then nothing
    rig.update("1", "t", OTHER_LONG)
    rig.update("1", "t", OTHER_LONG, "de")
    rig.update("1", "t", OTHER_LONG, "de")
    rig.assert_index_is_the_table()

    # Then only the chunks that are new were embedded, and nothing was read again
    wanted = [text for _, _, text, _ in rig.wanted()]
    assert set(before) & set(wanted)
    assert rig.embedder.texts[len(before) :] == [text for text in wanted if text not in before]
    assert rig.database.reads == 0


def test_a_row_that_is_read_again_unchanged_costs_nothing(rig: Rig) -> None:
    rig.start()
    for key in ("1", "2", "3"):
        rig.insert(key, key, LONG)
    rig.assert_index_is_the_table()
    before, ids = len(rig.embedder.texts), rig.live_ids()

    resync = rig.begin_resync()
    rig.place(resync, rig.read_page(None, 10), done=True)
    rig.assert_index_is_the_table()

    assert (len(rig.embedder.texts), rig.live_ids()) == (before, ids)


# -- one at a time ----------------------------------------------------------------------------------------------


def test_a_page_does_not_undo_a_change_that_it_did_not_see(rig: Rig) -> None:
    # Given a change and a deletion that are in the log but not visible
    rig.start()
    for key in ("1", "2", "3"):
        rig.insert(key, "old")
    resync = rig.begin_resync()
    rig.update("1", "new", hide=True)
    rig.commit(Statement("delete", "2"), hide=True)

    # When a page is read that shows the rows from before, and is placed behind both
    page = rig.read_page(None, 10)
    assert [values[1] for values in page.rows] == [b"old", b"old", b"old"]
    rig.place(resync, page, done=True)

    # Then the newer state stands
    rig.database.show()
    rig.database.show()
    rig.assert_index_is_the_table()


def test_a_truncate_between_the_read_of_a_page_and_its_place_takes_the_page_with_it(rig: Rig) -> None:
    # Given a first copy: the index knows no row yet
    rig.start()
    rig.database.commit(*(Statement("insert", key, (key, "t", "b", "en"), 1 + int(key) % 2) for key in "123456"))
    resync = rig.begin_resync()

    # When a page is read, the table is truncated in one partition, and then the page comes to its place
    page = rig.read_page(None, 10)
    rig.commit(Statement("truncate", partition=1))
    rig.place(resync, page, done=True)

    # Then only the other partition's rows are in the index
    rig.assert_index_is_the_table()
    assert {chunk[0][-1] for chunk in rig.stored()} == {"1", "3", "5"}


def test_what_vanished_while_nobody_looked_is_swept_out(rig: Rig) -> None:
    # Given three documents, of which one vanishes without a word in the log, and one changes
    rig.start()
    for key in ("1", "2", "3"):
        rig.insert(key)
    rig.settle()
    rig.database.commit(Statement("delete", "1"), Statement("update", "2", ("2", "changed", "b", "en")))

    # When the table is read again, in pages
    resync = rig.begin_resync()
    rig.place(resync, rig.read_page(None, 1), done=False)
    rig.insert("0", "came meanwhile")
    rig.place(resync, rig.read_page("2", 5), done=True)

    rig.assert_index_is_the_table()
    assert rig.ledger.resyncs()[0].state == "done"


def test_what_vanished_is_swept_out_even_while_its_document_is_being_written(rig: Rig) -> None:
    # Given two documents, of which the batch of one is held before the store, and the other one waits behind it
    entered, leave = threading.Event(), threading.Event()

    def hold(kind: str) -> None:
        if kind == "upsert" and not leave.is_set():
            entered.set()
            assert leave.wait(10)

    rig.store.before_write = hold
    rig.start()
    rig.insert("1")
    assert entered.wait(10)
    rig.insert("2")

    # When both vanish without a word in the log, and a whole resync is planned before the batch lands
    rig.database.commit(Statement("delete", "1"), Statement("delete", "2"))
    resync = rig.begin_resync()
    rig.place(resync, rig.read_page(None, 5), done=True)
    until(lambda: rig.indexer._handoff.full(), what="the next batch to be planned")
    leave.set()

    # Then both are gone
    rig.assert_index_is_the_table()
    assert rig.stored() == []


def test_a_document_that_is_asked_for_by_key_is_read_or_removed(rig: Rig) -> None:
    rig.start()
    rig.insert("1")
    rig.insert("2")
    rig.settle()
    rig.database.commit(Statement("delete", "1"), Statement("update", "2", ("2", "changed", "b", "en")))

    resync = rig.begin_resync(keys=("1", "2"))
    rig.place(resync, rig.database.by_key("", [("1",), ("2",)]), done=True, absent=(("1",),))

    rig.assert_index_is_the_table()


def test_a_long_value_that_was_not_sent_is_read_again_in_a_version_that_fits(rig: Rig) -> None:
    # Given a long body, and a title that changes in a commit which readers do not see for a while
    rig.start()
    rig.insert("1", "old", LONG)
    rig.settle()
    rig.update("1", "new", LONG, hide=True)
    rig.update("1", "newest", LONG)

    rig.assert_index_is_the_table()


def test_a_row_that_readers_do_not_see_yet_is_not_taken_as_it_was(rig: Rig) -> None:
    # Given a long body, and a title whose change is in the log but not visible
    rig.start()
    rig.insert("1", "old", LONG)
    rig.settle()

    # When the row must be read again because its body was not sent, and nothing else ever happens to it
    rig.update("1", "new", LONG, hide=True)

    # Then the new title is waited for
    rig.assert_index_is_the_table()


def test_a_row_that_moved_on_before_it_was_read_again_belongs_to_its_new_partition(rig: Rig) -> None:
    # Given a change that makes us read the row, which has moved to another partition by then
    rig.start()
    rig.insert("1", "old", LONG)
    rig.settle()
    changed = rig.database.commit(Statement("update", "1", ("1", "new", LONG, "en"), 1))
    moved = rig.database.commit(Statement("update", "1", ("1", "new", LONG, "en"), 2))
    rig.append(changed)
    rig.settle()
    rig.append(moved)

    # When the old partition is truncated, then it stays; with the new one it goes
    rig.commit(Statement("truncate", partition=1))
    rig.assert_index_is_the_table()
    assert rig.stored()
    rig.commit(Statement("truncate", partition=2))
    rig.assert_index_is_the_table()
    assert not rig.stored()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.fault("torn-read")
def test_no_document_is_ever_seen_in_an_older_version_than_before(rig: Rig, seed: int) -> None:
    # Given documents whose titles only ever count upward
    chance = random.Random(seed)
    newest: dict[str, int] = {}
    backward: list[str] = []

    def look(flip: Flip) -> None:
        for manifest in flip.manifests:
            if manifest.chunks:
                [first] = rig.store.get("docs", [manifest.chunks[0].id])
                count = int(first.text.split()[0])
                if count < newest.get(manifest.document_id, 0):
                    backward.append(f"{manifest.document_id}: {newest[manifest.document_id]} -> {count}")
                newest[manifest.document_id] = count

    rig.ledger.after_flip = look
    rig.start()
    for key in ("1", "2", "3"):
        rig.insert(key, "0", LONG)
    resync, page, waiting = None, None, []

    # When they change, are read again, and are placed in pages that are older than the log; capture lags now and then
    for number in range(1, 60):
        key, body = chance.choice("123"), chance.choice([LONG, LONG, OTHER_LONG])
        waiting.append(
            rig.database.commit(Statement("update", key, (key, str(number), body, "en")), hide=chance.random() < 0.4)
        )
        if chance.random() < 0.5:
            for tx in waiting:
                rig.append(tx)
            waiting = []
        if chance.random() < 0.2 and not waiting:
            if resync is None:
                resync, page = rig.begin_resync(), rig.read_page(None, 10)
            else:
                assert page is not None
                rig.place(resync, page, done=True)
                resync = None
        if chance.random() < 0.2:
            rig.settle()
    for tx in waiting:
        rig.append(tx)

    # Then nobody has ever seen an older title after a newer one
    rig.assert_index_is_the_table()
    assert backward == []


def test_a_truncate_does_not_miss_a_document_that_is_being_written_at_that_moment(rig: Rig) -> None:
    # Given a document in flight: its batch is held just before the store
    entered, leave = threading.Event(), threading.Event()

    def hold(kind: str) -> None:
        if kind == "upsert" and not leave.is_set():
            entered.set()
            assert leave.wait(10)

    rig.store.before_write = hold
    rig.start()
    rig.insert("1")
    assert entered.wait(10)

    # When a truncate is planned, and the batch lands between its looks at the ledger and at what is in flight
    def land() -> None:
        leave.set()
        until(lambda: rig.indexer._in_flight.empty, what="the batch to land")

    rig.ledger.after_documents = land
    rig.commit(Statement("truncate"))

    # Then the document is gone
    rig.assert_index_is_the_table()
    assert rig.stored() == []


def test_many_documents_are_truncated_at_once(rig: Rig) -> None:
    rig.start()
    rig.commit(*(Statement("insert", str(n), (str(n), f"title {n}", "", "en")) for n in range(1, 301)))
    rig.assert_index_is_the_table()

    rig.commit(Statement("truncate"))

    rig.assert_index_is_the_table()
    assert rig.stored() == []


# -- the watermark ----------------------------------------------------------------------------------------------


def test_the_watermark_does_not_pass_a_batch_that_failed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a document, and a change of its metadata that fails while the planner waits in a read
    rig.insert("1")
    rig.start()
    rig.settle()
    rig.stop()
    rig.store._faults = iter(["lost"])
    rig.start()
    read = rig.stream.read
    failed = threading.Event()

    def read_after_the_failure(after_offset: int, *, limit: int, wait_s: float) -> Batch:
        batch = read(after_offset, limit=limit, wait_s=0.01)
        if after_offset == 2 and not failed.is_set():
            # The planner looked before the writer failed; now an idle position arrives.
            until(lambda: rig.indexer._failed is not None and rig.indexer._in_flight.empty, what="the batch to fail")
            rig.stream.append([], captured_lsn=Lsn(10**6))
            batch = read(after_offset, limit=limit, wait_s=0)
            failed.set()
            seen.append(rig.indexer.watermark.applied_lsn)
        elif failed.is_set() and len(seen) == 1:
            seen.append(rig.indexer.watermark.applied_lsn)
        return batch

    seen: list[Lsn] = []
    monkeypatch.setattr(rig.stream, "read", read_after_the_failure)
    rig.update("1", lang="de")

    # Then the watermark stands still until the batch is written after all
    rig.assert_index_is_the_table()
    assert seen[0] == seen[1] < 10**6
    until(lambda: rig.indexer.watermark.applied_lsn == 10**6, what="the idle position to be reached")


# -- refusals ---------------------------------------------------------------------------------------------------


def test_a_text_that_the_model_refuses_is_parked_and_the_old_version_stays(rig: Rig) -> None:
    # Given a document, and a new text that is poison
    rig.start()
    rig.insert("1", "t", LONG)
    rig.insert("2")
    rig.settle()
    before = rig.stored()
    rig.embedder.poison = {"poison"}
    rig.update("1", "t", "one two three four five six seven poison")
    rig.settle()

    # Then the old one is still found, and a letter says why
    assert rig.stored() == before
    [letter] = rig.ledger.dead_letters()
    assert (letter.document_id, letter.reason) == ("public.docs:1", "embedding")

    # When the row changes in another column, and its long body is not sent
    rig.embedder.poison = set()
    rig.update("1", "t", "one two three four five six seven poison", "de")

    # Then nothing of the parked version is missing
    rig.assert_index_is_the_table()
    assert rig.ledger.dead_letters() == []


@pytest.mark.parametrize("known", [True, False])
def test_a_row_that_was_read_before_a_parked_change_does_not_pass_for_newer(rig: Rig, known: bool) -> None:
    # Given a page of a resync that was read, and a text committed since that the model refuses
    rig.embedder.poison = {"poison"}
    rig.start()
    rig.insert("1", "t", LONG)
    if known:
        rig.settle()
    resync = rig.begin_resync()
    page = rig.read_page(None, 10)
    rig.update("1", "t", "one two three four five six seven poison")

    # When the page comes behind it
    rig.place(resync, page, done=False)
    rig.settle()

    # Then the letter stays: what the page holds is older
    assert [letter.document_id for letter in rig.ledger.dead_letters()] == ["public.docs:1"]
    rig.embedder.poison = set()
    rig.update("1", "t", "one two three four five six seven poison", "de")
    rig.assert_index_is_the_table()
    assert rig.ledger.dead_letters() == []


def test_of_a_document_that_is_parked_no_vector_is_kept(rig: Rig) -> None:
    # Given a new document, one chunk of which the model refuses, in one batch with another
    rig.embedder.poison = {"poison"}
    rig.insert("1", "t", "one two three four five six seven poison")
    rig.insert("2", "t", OTHER_LONG)

    rig.start()
    rig.settle()

    # Then its other chunks, which were embedded, left nothing behind that nothing would ever take away
    assert [letter.document_id for letter in rig.ledger.dead_letters()] == ["public.docs:1"]
    assert rig.ledger.unused_vectors() == 0


def test_a_parked_document_stays_parked_when_its_change_comes_by_once_more(rig: Rig) -> None:
    # Given a row that must be read again, whose metadata the store refuses, in one batch with a truncate
    rig.store.poison = {"xx"}
    rig.insert("1", "old", LONG)
    rig.update("1", "new", LONG, "xx")
    rig.commit(Statement("truncate", partition=2))

    # When the batch is planned again and again, because the store did not take all of it
    rig.start()
    rig.settle()

    # Then the letter stays, and nothing is lost once the store takes the row
    assert [letter.document_id for letter in rig.ledger.dead_letters()] == ["public.docs:1"]
    rig.store.poison = set()
    rig.update("1", "newer", LONG, "de")
    rig.assert_index_is_the_table()
    assert rig.ledger.dead_letters() == []


def test_a_record_that_the_store_refuses_does_not_leave_traces_in_what_was_planned_on_it(rig: Rig) -> None:
    # Given a new document whose batch is held before a store that will refuse it
    entered, leave = threading.Event(), threading.Event()
    rig.store.poison = {"poison"}
    upsert = rig.store.upsert

    def held_upsert(collection: str, records: list) -> None:
        entered.set()
        assert leave.wait(10)
        upsert(collection, records)

    rig.store.upsert = held_upsert  # type: ignore[method-assign]
    rig.start()
    rig.insert("1", "t", LONG, "poison")
    assert entered.wait(10)

    # When its next version, which keeps every chunk, is planned before the refusal
    rig.update("1", "t", LONG, "en")
    until(lambda: rig.indexer._handoff.full(), what="the next batch to be planned")
    leave.set()

    # Then the next version is whole
    rig.assert_index_is_the_table()
    assert rig.ledger.dead_letters() == []


def test_metadata_that_the_store_refuses_parks_its_document_alone(rig: Rig) -> None:
    rig.start()
    rig.insert("1")
    rig.insert("2")
    rig.settle()
    rig.store.poison = {"xx"}
    rig.commit(
        Statement("update", "1", ("1", "t", "b", "xx")),
        Statement("update", "2", ("2", "t", "b", "de")),
    )
    rig.settle()

    assert [letter.document_id for letter in rig.ledger.dead_letters()] == ["public.docs:1"]
    assert {chunk[0][-1]: chunk[3] for chunk in rig.stored()} == {"1": "en", "2": "de"}

    rig.store.poison = set()
    rig.update("1", lang="yy")
    rig.assert_index_is_the_table()
    assert rig.ledger.dead_letters() == []


def test_a_cache_that_forgot_everything_does_not_make_an_edit_dear(rig: Rig) -> None:
    # Given a document of several chunks, whose vectors are in the store and nowhere else
    rig.start()
    rig.insert("1", "t", LONG)
    rig.assert_index_is_the_table()
    before = list(rig.embedder.texts)
    rig.ledger.forget_vectors("f", [text_hash(text) for text in before])

    # When a part of it changes together with its metadata
    rig.update("1", "t", OTHER_LONG, "de")
    rig.assert_index_is_the_table()

    # Then only that part was embedded
    wanted = [text for _, _, text, _ in rig.wanted()]
    assert rig.embedder.texts[len(before) :] == [text for text in wanted if text not in before]


# -- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["lost", "done", "late"])
def test_a_metadata_write_that_failed_is_done_again_under_new_ids(tmp_path: Path, fault: str) -> None:
    # Given a document whose metadata write fails, and may still be under way
    store = FaultyStore()
    rig = Rig(tmp_path, store=store)
    rig.start()
    rig.insert("1", "t", LONG)
    rig.settle()
    old = rig.live_ids()
    store._faults = iter([fault])

    # When it is written again, and the old request lands afterwards
    rig.update("1", "t", LONG, "de")
    rig.settle()
    store.land()

    # Then every chunk is a new one, with the new metadata
    rig.assert_index_is_the_table()
    assert not old & rig.live_ids()
    assert len(rig.embedder.texts) == len(set(rig.embedder.texts))
    rig.close()


def test_a_stop_while_a_batch_is_handed_over_ends_at_once_and_loses_nothing(rig: Rig) -> None:
    # Given a store that hangs in its first write, and batches that pile up behind it
    entered, leave = threading.Event(), threading.Event()

    def hang(kind: str) -> None:
        if not leave.is_set():
            entered.set()
            leave.wait(10)

    rig.store.before_write = hang
    rig.start()
    rig.insert("1")
    assert entered.wait(10)
    for key in ("2", "3", "4"):
        rig.insert(key)
        until(lambda: rig.indexer._handoff.full(), what="batches to pile up")

    # When the process is to stop
    rig.stop_signal.set()
    leave.set()
    rig.stop()

    # Then the next life does what was left
    rig.start()
    rig.assert_index_is_the_table()


@pytest.mark.fault("thread-fails")
def test_an_error_that_nobody_expects_ends_the_thread_and_is_not_swallowed(rig: Rig) -> None:
    def explode(kind: str) -> None:
        raise ZeroDivisionError

    rig.store.before_write = explode
    rig.start()
    rig.insert("1")

    until(lambda: bool(rig.failures), what="the writer to fail")
    assert isinstance(rig.failures[0], ZeroDivisionError)
