"""The audit: what it calls wrong, what it leaves alone because it moves, and what it never does."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdc_agent.agents.planning import Collection, expected
from cdc_agent.documents.model import document_id, key_in, text_hash
from cdc_agent.documents.predicate import Predicate
from cdc_agent.embedding.hashing import HashingEmbedder
from cdc_agent.errors import CdcAgentError, UsageError
from cdc_agent.events import Row
from cdc_agent.health import Health
from cdc_agent.ledger.base import ChunkRef, Manifest, Resync
from cdc_agent.lsn import Lsn, Version
from cdc_agent.retry import Backoff, Retrier, Stopping
from cdc_agent.vectorstore.base import Record
from cdc_agent.verify.audit import Audit
from cdc_agent.verify.comparison import Place, compare
from cdc_agent.verify.defects import Defect, Kind
from cdc_agent.verify.ends import Audited, Barrier, Ends
from cdc_agent.verify.repair import Repairer
from cdc_agent.verify.report import MAX_LISTED, Report, Wanted
from cdc_agent.verify.runner import VerifyRunner
from cdc_agent.verify.settling import Settler
from cdc_agent.verify.vectors import ChunkPlace, Sample
from tests.support.rig import Rig, WatchedLedger
from tests.support.scripted import TABLE, Statement, Values, a_collection, a_relation, raw
from tests.support.wait import until

# -- one document, compared three ways --------------------------------------------------------------------------------

ROW: Values = ("7", "A title", "one two three four five six", "en")
PLACE = Place("docs", f"{TABLE}:7", ("7",))


def row_of(values: Values) -> Row:
    return Row(a_relation(), raw(values))


@dataclass
class Case:
    """A row with a manifest and records that agree with it, for tests to spoil."""

    collection: Collection = field(default_factory=a_collection)
    row: Row | None = field(default_factory=lambda: row_of(ROW))
    manifest: Manifest | None = None
    held: dict[str, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.row is not None
        wanted = expected(self.collection, self.row)
        assert wanted is not None
        texts = self.collection.chunk(self.collection.spec.template.render(self.row))
        assert len(texts) > 1
        chunks = tuple(ChunkRef(f"{PLACE.document_id}#1.{n}", text_hash(text)) for n, text in enumerate(texts))
        self.manifest = Manifest(
            collection="docs",
            document_id=PLACE.document_id,
            version=Version(Lsn(1), 1),
            xid=1,
            relation_oid=1,
            chunks=chunks,
            metadata_hash=wanted.metadata_hash,
        )
        for n, (chunk, text) in enumerate(zip(chunks, texts, strict=True)):
            own = {"cdc_doc": PLACE.document_id, "cdc_table": TABLE, "cdc_chunk": n, "cdc_lsn": 1, "cdc_commit_ts": "t"}
            self.held[chunk.id] = Record(id=chunk.id, text=text, metadata={"lang": "en", **own})

    @property
    def first(self) -> str:
        return next(iter(self.held))

    def change(self, **metadata: Any) -> None:
        record = self.held[self.first]
        merged = {k: v for k, v in {**record.metadata, **metadata}.items() if v is not None}
        self.held[self.first] = replace(record, metadata=merged)

    def kinds(self) -> list[tuple[Kind, str]]:
        found = compare(self.collection, PLACE, self.row, self.manifest, self.held)
        return [(defect.kind, defect.chunk_id) for defect in found]


def without_manifest(case: Case) -> None:
    case.manifest = None


def with_tombstone(case: Case) -> None:
    assert case.manifest is not None
    case.manifest = replace(case.manifest, deleted=True, chunks=())


def without_row(case: Case) -> None:
    case.row = None


def of_another_text(case: Case) -> None:
    case.row = row_of((ROW[0], "Another title", *ROW[2:]))


def of_other_metadata(case: Case) -> None:
    case.row = row_of((*ROW[:3], "de"))


def without_record(case: Case) -> None:
    del case.held[case.first]


def with_another_text(case: Case) -> None:
    case.held[case.first] = replace(case.held[case.first], text="something else")


@pytest.mark.parametrize(
    ("spoil", "kind", "names_chunk"),
    [
        (without_manifest, Kind.MISSING, False),
        (with_tombstone, Kind.MISSING, False),
        (without_row, Kind.ORPHANED, False),
        (of_another_text, Kind.STALE, False),
        (of_other_metadata, Kind.WRONG_METADATA, False),
        (without_record, Kind.TORN, True),
        (with_another_text, Kind.TORN, True),
    ],
)
def test_each_kind_of_difference_has_its_name(spoil: Callable[[Case], None], kind: Kind, names_chunk: bool) -> None:
    # Given a document on which row, manifest and store agree
    case = Case()
    assert case.kinds() == []

    # When one of them says something else
    chunk = case.first if names_chunk else ""
    spoil(case)

    # Then that is found, and nothing else
    assert case.kinds() == [(kind, chunk)]


@pytest.mark.parametrize(
    "metadata",
    [
        {"lang": "de"},
        {"lang": None},
        {"more": 1},
        {"cdc_doc": "public.docs:8"},
        {"cdc_table": "public.other"},
        {"cdc_chunk": 1},
        {"cdc_chunk": 0.0},
        {"cdc_chunk": False},
        {"cdc_lsn": None},
        {"cdc_commit_ts": None},
    ],
    ids=str,
)
def test_every_key_of_a_chunk_counts_also_ours_and_also_its_type(metadata: Mapping[str, Any]) -> None:
    # Given a document on which row, manifest and store agree
    case = Case()

    # When a key of its first chunk is wrong, missing or too much
    case.change(**metadata)

    # Then its metadata is wrong
    assert case.kinds() == [(Kind.WRONG_METADATA, case.first)]


def test_which_commit_wrote_a_chunk_is_not_compared() -> None:
    case = Case()
    case.change(cdc_lsn=99, cdc_commit_ts="another")
    assert case.kinds() == []


def test_a_row_that_does_not_belong_has_no_document() -> None:
    # Given a collection of German rows, and the document of an English one
    german = Predicate("lang = 'de'")
    case = Case()
    case.collection = a_collection(predicate=german)

    # Then the document is orphaned, and without it nothing is wrong
    assert case.kinds() == [(Kind.ORPHANED, "")]
    case.manifest = None
    assert case.kinds() == []


def test_a_difference_is_described_without_any_value() -> None:
    # Given differences in text and metadata
    case = Case()
    case.change(lang="secret-value")
    case.held[list(case.held)[1]] = replace(case.held[list(case.held)[1]], text="secret-text")

    # When they are described
    found = compare(case.collection, PLACE, case.row, case.manifest, case.held)

    # Then columns are named, values are not
    said = " ".join(defect.what for defect in found)
    assert "lang" in said
    assert "secret" not in said


@pytest.mark.parametrize("key", [("7",), ("a,b",), ("50%",), ("a,b", "7"), ("%2C", "x%,y"), ("", "")])
def test_a_document_id_leads_back_to_its_key(key: tuple[str, ...]) -> None:
    assert key_in(document_id("public.t", key), "public.t", len(key)) == key


# -- reports and samples ----------------------------------------------------------------------------------------------


def test_a_report_lists_some_defects_and_counts_all() -> None:
    # Given more defects than are listed
    report = Report(id=1, wanted=Wanted())
    many = [Defect(kind=Kind.TORN, collection="docs", chunk_id=str(n)) for n in range(MAX_LISTED + 5)]

    # When they are added and all but one are mended
    report.add(many)
    report.mended(many, many[:1])

    # Then the list is bounded and the counts are whole
    answer = report.as_json()
    assert len(answer["defects"]) == MAX_LISTED
    assert answer["found"] == {"torn": MAX_LISTED + 5}
    assert answer["left"] == {"torn": 1}


def test_a_sample_is_bounded_and_everything_has_a_chance() -> None:
    # Given a hundred chunks
    chunks = [ChunkPlace(PLACE, str(n), b"") for n in range(100)]

    # When ten are drawn, again and again
    seen: set[str] = set()
    for seed in range(200):
        sample = Sample(10, seed)
        for chunk in chunks:
            sample.offer(chunk)
        assert len({chunk.chunk_id for chunk in sample.chosen}) == 10
        seen |= {chunk.chunk_id for chunk in sample.chosen}

    # Then each was drawn at some time
    assert len(seen) == 100


# -- audits beside a real indexer -------------------------------------------------------------------------------------


class AuditRig(Rig):
    """A rig whose database takes marks, and audits over it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.embedder = HashingEmbedder(dimensions=8)
        self.indexer = self._built()
        self.requested: list[Resync] = []
        self._append_lock = threading.Lock()

    # The reader's part of the scripted database.
    def page(self, request: Any) -> Any:
        return self.database.page(request)

    def by_key(self, table: str, keys: Any) -> Any:
        return self.database.by_key(table, keys)

    def mark(self, prefix: str, content: Mapping[str, object]) -> Lsn:
        with self._append_lock:
            tx = self.database.message(prefix, content)
            self.append(tx)
        return tx.commit_lsn

    def key_names(self, table: str) -> tuple[str, ...]:
        return ("id",)

    def estimated_rows(self, table: str) -> int:
        return len(self.database.rows())

    def write(self, *statements: Statement, hide: bool = False) -> None:
        """A commit beside marks of another thread: the log has one order."""
        with self._append_lock:
            self.commit(*statements, hide=hide)

    def ends(self, patience_s: float = 20.0, rebuilt_s: float = 5.0) -> Ends:
        return Ends(
            ledger=self.ledger,
            store=self.store,
            reader=self,
            barrier=Barrier(
                watermark=self.indexer.watermark,
                hurry=lambda: self.indexer.hurry(),
                stop=self.stop_signal,
                patience_s=patience_s,
            ),
            request=self.request,
            behind=lambda: False,
            retrier=Retrier(self.stop_signal, Health(), Backoff(initial_s=0.001, maximum_s=0.01)),
            stop=self.stop_signal,
            rebuilt_s=rebuilt_s,
        )

    def rebuild(self) -> Resync:
        """What the guard of the store does, with the collection away for a moment; its rows are still to be read."""
        marker = self.store.marker("docs")
        self.store.drop_collection("docs")
        back = threading.Timer(0.1, lambda: self.store.open_collection("docs", dimensions=8, marker=marker))
        back.start()
        begun = self.ledger.forget_collection("docs", Resync(table=TABLE, collections=("docs",)))
        begun = replace(begun, snapshot=self.database.snapshot())
        self.ledger.save_resync(begun)
        return begun

    def read_again(self, resync: Resync) -> None:
        """The whole resync from its beginning to its end."""
        with self._append_lock:
            self.place(resync, self.read_page(None, 1_000), done=True)

    def request(self, resync: Resync) -> Resync:
        """Reads the rows at once, as the runner of resyncs would."""
        begun = self.ledger.start_resync(resync)
        self.requested.append(begun)
        rows = self.database.by_key(TABLE, begun.keys)
        found = {Row(relation, values).key() for relation, values in zip(rows.relations, rows.rows, strict=True)}
        self.place(begun, rows, done=True, absent=tuple(key for key in begun.keys if key not in found))
        return begun

    def audited(self) -> Audited:
        marker = {"ledger": self.ledger.uuid}
        return Audited(
            name="docs",
            configured="docs",
            collection=self.collection,
            embedder=self.embedder,
            fingerprint="f",
            marker=marker,
        )

    def audit(self, **wanted: Any) -> Report:
        report = Report(id=1, wanted=Wanted(**{"sample": 0, **wanted}))
        Audit(self.ends(), [self.audited()], report).run()
        return report


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[AuditRig]:
    rig = AuditRig(tmp_path)
    rig.start()
    yield rig
    rig.close()


def test_a_true_index_is_clean_and_nothing_is_embedded_or_written(rig: AuditRig) -> None:
    # Given an index that is true
    for n in range(50):
        rig.insert(str(n), body=f"one two three four five six {n}")
    rig.settle()
    before = rig.stream.head_offset()

    # When it is audited
    report = rig.audit()

    # Then all was looked at, nothing found, and not even a mark written
    assert (report.rows, report.documents, report.records) == (50, 50, len(rig.live_ids()))
    assert report.chunks == len(rig.live_ids())
    assert report.found.total() == report.moving == report.parked == 0
    assert rig.stream.head_offset() == before


def test_a_commit_that_the_index_has_and_readers_do_not_see_is_no_defect(rig: AuditRig) -> None:
    # Given rows of which one was changed, one deleted and one inserted by commits that nobody sees yet
    for n in range(3):
        rig.insert(str(n))
    rig.settle()
    rig.database.time_passes = False
    rig.write(Statement("update", "0", ("0", "another", "text", "de")), hide=True)
    rig.write(Statement("delete", "1"), hide=True)
    rig.write(Statement("insert", "9", ("9", "new", "row", "en")), hide=True)
    rig.settle()

    # When the index is audited
    report = rig.audit()

    # Then what differs is moving, and once the commits are seen nothing differs
    assert report.found.total() == 0
    assert report.moving == 3
    for _ in range(3):
        rig.database.show()
    assert rig.audit().found.total() == rig.audit().moving == 0


def test_an_index_that_is_behind_is_waited_for(rig: AuditRig) -> None:
    # Given an indexer that stands still while rows change
    for n in range(5):
        rig.insert(str(n))
    rig.settle()
    go = threading.Event()
    rig.store.before_write = lambda _: (go.wait(20), None)[1]
    for n in range(5):
        rig.update(str(n), body="something else")

    # When an audit begins, and the indexer goes on a little later
    threading.Timer(0.2, go.set).start()
    report = rig.audit()

    # Then the audit has waited for it
    assert report.found.total() == report.moving == 0
    rig.settle()


def test_a_row_that_never_stands_still_counts_as_moving(rig: AuditRig) -> None:
    # Given a row that changes at each read
    rig.insert("1")
    rig.settle()
    numbers = iter(range(1000))
    rig.database.before_read = lambda: rig.write(Statement("update", "1", ("1", "t", f"body {next(numbers)}", "en")))

    # When it is suspected
    settled = Settler(rig.ends(), {"docs": rig.audited()}).settle(TABLE, [Place("docs", f"{TABLE}:1", ("1",))])

    # Then it is no defect
    assert settled.defects == []
    rig.database.before_read = lambda: None


def test_metadata_that_is_in_the_store_before_it_is_in_the_ledger_is_no_defect(
    rig: AuditRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a commit that nobody sees yet; its metadata is written while a close look is under way, and not flipped
    rig.insert("1", lang="en")
    rig.settle()
    go, marks, stored = threading.Event(), iter(range(100)), rig.store.get

    def languages() -> set[Any]:
        return {r.metadata["lang"] for page in rig.store.ids("docs") for r in stored("docs", page)}

    def get(collection: str, ids: Any, **more: Any) -> list[Record]:
        if not go.is_set() and not rig.database.hidden:
            rig.write(Statement("update", "1", ("1", "t", "b", "de")), hide=True)
            until(lambda: languages() == {"de"})
        return stored(collection, ids, **more)

    def mark(prefix: str, content: Mapping[str, object]) -> Lsn:
        if next(marks) == 1:
            go.set()
        return AuditRig.mark(rig, prefix, content)

    def flip(given: Any) -> None:
        assert not given.manifests or go.wait(20)
        WatchedLedger.flip(rig.ledger, given)

    rig.database.time_passes = False
    monkeypatch.setattr(rig, "mark", mark)
    monkeypatch.setattr(rig.ledger, "flip", flip)
    monkeypatch.setattr(rig.store, "get", get)

    # When the document is looked at
    settled = Settler(rig.ends(), {"docs": rig.audited()}).settle(TABLE, [Place("docs", f"{TABLE}:1", ("1",))])

    # Then the second wait has found out that something moved
    assert settled.defects == []
    assert len(settled.moving) == 1
    assert languages() == {"de"}


def test_every_planted_defect_is_found_under_its_name_and_no_other(rig: AuditRig) -> None:
    # Given a true index that somebody spoils in the store
    for n in range(8):
        rig.insert(str(n), body=f"one two three four five six {n}")
    rig.settle()
    chunks = [rig.manifest(str(n)).chunks for n in range(8)]  # type: ignore[union-attr]
    rig.store.delete("docs", [chunks[0][0].id])
    rig.store.update_metadata("docs", {chunks[1][0].id: {"lang": "xx"}})
    vector = rig.embedder.embed(["entirely different words"])[0]
    [record] = rig.store.get("docs", [chunks[2][1].id])
    rig.store.upsert("docs", [replace(record, embedding=vector)])
    rig.store.upsert("docs", [replace(record, id=f"{TABLE}:5#77.0", embedding=vector)])
    rig.store.upsert("docs", [replace(record, id="strange", embedding=vector)])

    # When it is audited
    report = rig.audit(sample=1000)

    # Then each is found under its name
    found = {(defect.kind, defect.chunk_id) for defect in report.defects}
    assert found == {
        (Kind.TORN, chunks[0][0].id),
        (Kind.WRONG_METADATA, chunks[1][0].id),
        (Kind.VECTOR, chunks[2][1].id),
        (Kind.ORPHANED_RECORD, f"{TABLE}:5#77.0"),
        (Kind.ORPHANED_RECORD, "strange"),
    }
    assert len(report.defects) == 5


def test_garbage_that_waits_and_ids_being_written_are_no_defects(rig: AuditRig) -> None:
    # Given an intent whose record is in the store, and garbage that was not collected yet
    rig.insert("1", body="one two three four five six")
    rig.settle()
    [record, *_] = rig.store.everything("docs")
    with rig.ledger._transaction() as tx:
        tx.execute("insert into intent values ('docs', 'being#1.0', 9999, 'other')")
        tx.execute("insert into garbage values ('docs', 'waiting#1.0')")
    vector = np.ones(8, dtype=np.float32)
    ids = ("being#1.0", "waiting#1.0")
    rig.store.upsert("docs", [replace(record, id=chunk_id, embedding=vector) for chunk_id in ids])

    # When the index is audited, then neither is reported
    assert rig.audit().found.total() == 0


def test_a_collection_that_was_built_otherwise_is_named(rig: AuditRig) -> None:
    rig.insert("1")
    rig.settle()
    rig.store.set_marker("docs", {"ledger": "another"})

    report = rig.audit()

    assert [(d.kind, d.collection, d.document_id) for d in report.defects] == [(Kind.WRONG_GENERATION, "docs", "")]


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_reported_while_rows_change_whatever_the_schedule(tmp_path: Path, seed: int) -> None:
    # Given a writer that inserts, updates back and forth, and deletes, with commits that are seen late
    rig = AuditRig(tmp_path)
    rig.start()
    choose = random.Random(seed)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            key, text = str(choose.randrange(12)), choose.choice(["a", "b", "one two three four five"])
            exists = key in rig.database.rows(hidden=True)
            values = (key, "t", text, choose.choice(["en", "de"]))
            kind = choose.choice(["update", "update", "delete"]) if exists else "insert"
            rig.write(Statement(kind, key, None if kind == "delete" else values), hide=choose.random() < 0.3)
            if choose.random() < 0.5:
                rig.database.show()
            done.wait(choose.random() * 0.004)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        # When it is audited meanwhile
        reports = [rig.audit(sample=20) for _ in range(3)]
    finally:
        done.set()
        writer.join()

    # Then nothing is called wrong, and at the end nothing is
    assert [report.found.total() for report in reports] == [0, 0, 0], [r.defects for r in reports]
    while rig.database.hidden:
        rig.database.show()
    rig.assert_index_is_the_table()
    last = rig.audit(sample=1000)
    assert last.found.total() == last.moving == 0
    rig.close()


@pytest.mark.parametrize("state", ["failed", "cancelled", "done"])
def test_a_collection_is_marked_as_ours_only_when_all_of_it_was_written_anew(rig: AuditRig, state: str) -> None:
    # Given a collection that was built with another model
    rig.store.set_marker("docs", {"ledger": "other"})
    ends = replace(rig.ends(), request=lambda wanted: rig.ledger.start_resync(replace(wanted, state=state)))

    # When it is repaired, and its rows are written anew to the end or not
    Repairer(ends, {"docs": rig.audited()}).generation(rig.audited())

    # Then it is marked as built so only if they were
    assert (rig.store.marker("docs")["ledger"] == rig.ledger.uuid) is (state == "done")


@pytest.mark.parametrize("when", ["rows", "documents", "records", "vectors"])
def test_a_store_that_is_built_again_in_the_middle_of_an_audit_lacks_nothing(rig: AuditRig, when: str) -> None:
    # Given an index that is true, and an audit that has come to its rows, its documents, its records or its sample
    for n in range(30):
        rig.insert(str(n), body=f"one two three {n}")
    rig.settle()
    ends = rig.ends()
    rebuilt: list[Resync] = []

    def come() -> None:
        """The collection is built again, once; its rows come later."""
        if not rebuilt:
            rebuilt.append(rig.rebuild())
            threading.Timer(0.7, rig.read_again, rebuilt).start()

    report = Report(id=1, wanted=Wanted(sample=10))
    audit = Audit(ends, [rig.audited()], report)
    step = {
        "rows": "_check_rows",
        "documents": "_check_documents",
        "records": "_check_records",
        "vectors": "_check_vectors",
    }[when]
    check = getattr(audit, step)

    def checked(*args: Any) -> None:
        come()
        check(*args)

    setattr(audit, step, checked)

    # When it goes on
    audit.run()

    # Then nothing is called missing that is on its way
    assert rebuilt
    assert report.found.total() == 0
    until(lambda: rig.ledger.resyncs(running_only=True) == [], what="the rows")
    assert rig.audit().found.total() == 0


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_one_audit_runs_at_a_time_and_strange_names_are_refused(rig: AuditRig) -> None:
    # Given a runner whose thread has not begun
    runner = VerifyRunner(rig.ends(), lambda: [rig.audited()])

    # When audits are asked for
    with pytest.raises(UsageError, match="no collection"):
        runner.request(Wanted(collection="nothing"))
    with pytest.raises(UsageError, match="no collection"):
        runner.request(Wanted(table="public.nothing"))
    first = runner.request(Wanted(table=TABLE, sample=0))

    # Then a second has to wait until the first is done
    with pytest.raises(UsageError, match="not finished"):
        runner.request(Wanted())
    runner._audit(first)
    assert first.state == "done"
    assert runner.request(Wanted()).id == 2
    assert [report.id for report in runner.reports()] == [1, 2]


def test_an_audit_that_cannot_go_on_says_why(rig: AuditRig) -> None:
    # Given a store whose collection is gone
    runner = VerifyRunner(rig.ends(rebuilt_s=0.0), lambda: [rig.audited()])
    rig.store.drop_collection("docs")

    # When an audit is made
    report = runner.request(Wanted())
    runner._audit(report)

    # Then it ends with the reason
    assert report.state == "failed"
    assert "docs" in report.error
    assert report.as_json()["finished_at"] is not None


def test_an_index_that_stands_still_is_not_called_wrong(rig: AuditRig) -> None:
    # Given an index that lacks a row because its indexer does not go on
    rig.stop_signal.set()
    rig.stop()
    rig.stop_signal.clear()
    rig.insert("1")
    report = Report(id=1, wanted=Wanted())

    # When it is audited with little patience
    with pytest.raises(CdcAgentError, match="stands still"):
        Audit(rig.ends(patience_s=0.5), [rig.audited()], report).run()

    # Then that is the answer, and no defect
    assert report.found.total() == 0


def test_an_audit_ends_with_the_daemon(rig: AuditRig) -> None:
    # Given a daemon that is to stop
    runner = VerifyRunner(rig.ends(), lambda: [rig.audited()])
    report = runner.request(Wanted())
    rig.insert("1")
    rig.settle()
    rig.stop_signal.set()

    # When an audit is at work, then it ends too
    with pytest.raises(Stopping):
        rig.ends().check_stop()
    runner._audit(report)
    assert report.state == "stopped"
