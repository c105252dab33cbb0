"""Folding: in whatever batches changes come, the last state of every row is the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_agent.agents.folding import Fold, Pending, filled, key_of
from cdc_agent.documents.model import document_id
from cdc_agent.events import UNCHANGED, ChangeEvent, Column, Op, Relation, Row
from cdc_agent.ledger.base import Manifest
from cdc_agent.lsn import Lsn, Version
from cdc_agent.snapshot import Snapshot
from tests.support.scripted import TABLE, ScriptedDatabase, Statement, a_relation, events_of, raw

LONG_A, LONG_B = "a long body that lies out of line", "another long body out of line"


class Index:
    """What folding needs to know of an index, and the documents that it would hold."""

    def __init__(self, database: ScriptedDatabase) -> None:
        self.database = database
        self.manifests: dict[str, Manifest] = {}
        self.rows: dict[str, tuple[Any, ...]] = {}
        self.rereads = 0

    def fold(self) -> Fold:
        return Fold(table=TABLE, manifest_of=self.manifests.get, documents_of=self.documents_of)

    def documents_of(self, oid: int) -> Iterable[str]:
        return [d for d, m in self.manifests.items() if m.relation_oid == oid and not m.deleted]

    def apply(self, fold: Fold) -> None:
        """What the planner does: read again what is missing, then remember."""
        for found, pending in fold.pending.items():
            assert pending.version >= (self.manifests[found].version if found in self.manifests else Version(Lsn(0), 0))
            if pending.touched:
                self._complete(pending)
                self.rows.pop(found, None)
                if pending.row is not None:
                    self.rows[found] = pending.row.raw
            deleted = found not in self.rows
            self.manifests[found] = Manifest(
                collection="docs",
                document_id=found,
                version=pending.version,
                xid=pending.xid,
                relation_oid=pending.relation_oid,
                snapshot=pending.snapshot,
                epoch=pending.epoch,
                deleted=deleted,
            )

    def _complete(self, pending: Pending) -> None:
        if pending.row is None or UNCHANGED not in pending.row.raw:
            return
        self.rereads += 1
        found = self.database.by_key(TABLE, [pending.key])
        while not Snapshot.parse(found.snapshot).sees(pending.xid):
            found = self.database.by_key(TABLE, [pending.key])
        pending.snapshot = found.snapshot
        pending.row = Row(found.relations[0], found.rows[0]) if found.rows else None
        if pending.row is not None:
            pending.relation_oid = pending.row.relation.oid


def wanted(database: ScriptedDatabase) -> dict[str, tuple[bytes, ...]]:
    return {document_id(TABLE, (key,)): raw(values) for key, (values, _) in database.rows(hidden=True).items()}


KEYS = st.integers(0, 4).map(str)
BODIES = st.sampled_from(["short", "brief", LONG_A, LONG_B])
TEXTS = st.sampled_from(["x", "y"])
PARTITIONS = st.sampled_from([1, 1, 1, 2])


@st.composite
def statements(draw: st.DrawFn, rows: dict[str, Any]) -> Statement:
    """One statement that Postgres would take, given the rows there are."""
    kinds = ["insert"] * (len(rows) < 5) * 2 + ["update", "update", "move", "delete"] * bool(rows) + ["truncate"]
    kind = draw(st.sampled_from(kinds))
    if kind == "truncate":
        return Statement("truncate", partition=draw(PARTITIONS))
    free = [key for key in map(str, range(5)) if key not in rows]
    key = draw(st.sampled_from(free if kind == "insert" else sorted(rows)))
    if kind == "delete":
        return Statement("delete", key)
    to = draw(st.sampled_from(free)) if kind == "move" and free else key
    body = draw(BODIES)
    if kind != "insert" and draw(st.booleans()):
        body = rows[key][0][2]
    values = (to, draw(TEXTS), body, draw(TEXTS))
    return Statement("insert" if kind == "insert" else "update", key, values, draw(PARTITIONS))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_history_in_any_batches_with_any_redelivery_comes_to_the_table(data: st.DataObject) -> None:
    # Given a history of a few rows
    database = ScriptedDatabase()
    events: list[ChangeEvent] = []
    for _ in range(data.draw(st.integers(1, 8))):
        done: list[Statement] = []
        rows = database.rows(hidden=True)
        for _ in range(data.draw(st.integers(1, 3))):
            done.append(data.draw(statements(rows)))
            database._change(done[-1], rows, 0)
        events += events_of(database.commit(*done, hide=data.draw(st.booleans())))

    # When it is folded in any batches, and after any of them from some earlier place again
    index = Index(database)
    place = 0
    repeats = data.draw(st.integers(0, 3))
    while place < len(events):
        size = data.draw(st.integers(1, len(events) - place))
        fold = index.fold()
        for event in events[place : place + size]:
            fold.change(event)
        index.apply(fold)
        place += size
        if repeats and data.draw(st.booleans()):
            repeats -= 1
            place = data.draw(st.integers(0, place))

    # Then the documents are the rows
    assert index.rows == wanted(database)


# -- what a history does not reach easily ---------------------------------------------------------------------------


def event(op: Op, ordinal: int = 1, *, xid: int = 50, lsn: int = 500, **images: Any) -> ChangeEvent:
    relation = images.pop("relation", a_relation())
    rows = {name: Row(relation, values) if values is not None else None for name, values in images.items()}
    return ChangeEvent(op=op, version=Version(Lsn(lsn), ordinal), xid=xid, commit_ts_us=1, relation=relation, **rows)


def fold_with(*manifests: Manifest) -> Fold:
    known = {m.document_id: m for m in manifests}
    return Fold(
        table=TABLE,
        manifest_of=known.get,
        documents_of=lambda oid: [d for d, m in known.items() if m.relation_oid == oid and not m.deleted],
    )


def manifest(key: str, **more: Any) -> Manifest:
    known: dict[str, Any] = {"version": Version(Lsn(100), 1), "xid": 10, "relation_oid": 1, **more}
    return Manifest(collection="docs", document_id=f"{TABLE}:{key}", **known)


KEY_ONLY = (b"1", UNCHANGED, UNCHANGED, UNCHANGED)


def test_values_that_were_not_sent_are_filled_from_an_earlier_change_and_never_become_null() -> None:
    fold = fold_with()

    fold.change(event(Op.CREATE, 1, after=(b"1", b"t", b"long", b"en")))
    fold.change(event(Op.UPDATE, 2, after=(b"1", None, UNCHANGED, b"de")))

    [pending] = fold.pending.values()
    assert pending.row is not None
    assert pending.row.raw == (b"1", None, b"long", b"de")


def test_values_that_were_not_sent_are_filled_from_the_old_row() -> None:
    fold = fold_with(manifest("1"))

    fold.change(event(Op.UPDATE, before=(b"1", b"s", b"long", b"en"), after=(b"1", b"t", UNCHANGED, b"de")))

    [pending] = fold.pending.values()
    assert pending.row is not None
    assert pending.row.raw == (b"1", b"t", b"long", b"de")


def test_what_nobody_sent_stays_unchanged() -> None:
    fold = fold_with(manifest("1"))

    fold.change(event(Op.UPDATE, 0, after=(b"1", b"s", UNCHANGED, b"en")))
    fold.change(event(Op.UPDATE, after=(b"1", b"t", UNCHANGED, b"de")))

    [pending] = fold.pending.values()
    assert pending.row is not None
    assert pending.row.raw[2] is UNCHANGED
    assert not pending.created


def test_a_number_that_was_not_sent_may_be_nan_and_is_not_filled_with_an_older_one() -> None:
    columns = (Column(name="id", type_oid=23), Column(name="price", type_oid=1700), Column(name="note", type_oid=25))
    relation = Relation(oid=1, root_oid=1, schema="public", name="docs", columns=columns, key=("id",))

    row = filled(Row(relation, (b"1", UNCHANGED, UNCHANGED)), [Row(relation, (b"1", b"1.5", b"n"))])

    assert row.raw == (b"1", UNCHANGED, b"n")


def test_columns_are_matched_by_name_when_the_table_changed_meanwhile() -> None:
    old = replace(a_relation(), columns=(Column(name="body", type_oid=25), Column(name="id", type_oid=23)))

    row = filled(Row(a_relation(), (b"1", b"t", UNCHANGED, UNCHANGED)), [Row(old, (b"long", b"1"))])

    assert row.raw == (b"1", b"t", b"long", UNCHANGED)


def test_a_row_that_moves_to_another_key_takes_its_values_along() -> None:
    fold = fold_with(manifest("1"), manifest("2", deleted=True))

    fold.change(event(Op.UPDATE, 1, after=(b"1", b"t", b"long", b"en")))
    fold.change(event(Op.UPDATE, 2, before=KEY_ONLY, after=(b"2", b"t", UNCHANGED, b"en")))

    assert fold.pending[f"{TABLE}:1"].row is None
    moved = fold.pending[f"{TABLE}:2"]
    assert moved.row is not None
    assert moved.row.raw == (b"2", b"t", b"long", b"en")
    assert moved.created


def test_where_a_row_came_from_and_went_to_is_known_until_it_goes_for_another_reason() -> None:
    # Given a row that moves from key 1 to key 2, and changes there
    fold = fold_with(manifest("1"))
    fold.change(event(Op.UPDATE, 1, before=KEY_ONLY, after=(b"2", b"t", b"long", b"en")))
    fold.change(event(Op.UPDATE, 2, after=(b"2", b"t", b"longer", b"en")))
    assert moves(fold) == {"1": (True, False), "2": (False, True)}

    # When it moves on to key 3
    fold.change(event(Op.UPDATE, 3, before=(b"2", None, None, None), after=(b"3", b"t", b"longer", b"en")))

    # Then it came to that one, and key 2 is merely left
    assert moves(fold) == {"1": (True, False), "2": (True, False), "3": (False, True)}

    # When another row comes to key 1 and is deleted, and so is the one at key 3
    fold.change(event(Op.CREATE, 4, after=(b"1", b"t", b"new", b"en")))
    fold.change(event(Op.DELETE, 5, before=KEY_ONLY))
    fold.change(event(Op.DELETE, 6, before=(b"3", None, None, None)))

    # Then those are gone for good.
    assert moves(fold) == {"1": (False, False), "2": (True, False), "3": (False, False)}


def moves(fold: Fold) -> dict[str, tuple[bool, bool]]:
    """Of each key, whether its row has moved away, and whether it came from another one."""
    return {pending.key[0]: (pending.moved_away, pending.moved_here) for pending in fold.pending.values()}


def test_a_row_that_moves_to_a_key_where_another_one_stood_takes_nothing_from_that() -> None:
    # Given a document at key 2, read anew after the row at key 1 had left
    seen = "60:60:"
    fold = fold_with(manifest("1", deleted=True, snapshot=seen, version=Version(Lsn(100), 1)), manifest("2"))

    # When the log comes to the move, which the index knows for key 1 already
    fold.change(event(Op.UPDATE, before=KEY_ONLY, after=(b"2", b"t", UNCHANGED, b"en")))

    # Then the new row at key 2 is whole, and not the old one with another title
    moved = fold.pending[f"{TABLE}:2"]
    assert moved.created
    assert moved.row is not None
    assert moved.row.raw[2] is UNCHANGED


def test_a_row_that_moves_to_where_another_one_still_stands_takes_nothing_from_that_either() -> None:
    # Given a key whose uniqueness is checked at the end of the transaction, and a row there whose values are known
    fold = fold_with(manifest("1", deleted=True, snapshot="60:60:"), manifest("2"))
    fold.change(event(Op.UPDATE, 1, after=(b"2", b"two", b"long two", b"en")))

    # When another row moves there, which the index knows to have left its place
    fold.change(event(Op.UPDATE, 2, before=KEY_ONLY, after=(b"2", b"one", UNCHANGED, b"en")))

    # Then it does not get the long value of the one that stood there
    moved = fold.pending[f"{TABLE}:2"]
    assert moved.row is not None
    assert moved.row.raw == (b"2", b"one", UNCHANGED, b"en")


WHOLE = (b"1", b"t", b"b", b"en")


def test_a_row_is_new_at_its_key_from_its_insert_until_it_is_gone() -> None:
    fold = fold_with(manifest("1"))
    images: dict[Op, Any] = {Op.CREATE: {"after": WHOLE}, Op.UPDATE: {"after": WHOLE}, Op.DELETE: {"before": KEY_ONLY}}
    seen = []
    for place, op in enumerate([Op.UPDATE, Op.CREATE, Op.UPDATE, Op.DELETE, Op.CREATE, Op.TRUNCATE, Op.CREATE], 1):
        fold.change(event(op, place, **images.get(op, {})))
        seen.append(fold.pending[f"{TABLE}:1"].created)
    fold.absent(replace(read("70:70:"), op=Op.MESSAGE, after=None), ("1",))

    assert seen == [False, True, True, False, True, False, True]
    assert not fold.pending[f"{TABLE}:1"].created


@pytest.mark.parametrize(
    ("born", "known", "changes"),
    [
        (True, [], [event(Op.CREATE, after=WHOLE)]),
        (False, [], [event(Op.UPDATE, after=WHOLE)]),
        (False, [manifest("1", deleted=True)], [event(Op.CREATE, after=WHOLE)]),
        (False, [], [event(Op.DELETE, before=KEY_ONLY), event(Op.CREATE, 2, after=WHOLE)]),
        (False, [], [event(Op.CREATE, after=WHOLE), event(Op.UPDATE, 2, after=WHOLE)]),
    ],
    ids=["an insert", "an update", "an insert over a tombstone", "a row that comes back", "an insert and an update"],
)
def test_a_document_is_born_when_nothing_but_one_insert_is_known_of_it(
    born: bool, known: list[Manifest], changes: list[ChangeEvent]
) -> None:
    # Everything else that ends outside of `where` needs a tombstone, which keeps older reads out
    fold = fold_with(*known)

    for change in changes:
        fold.change(change)

    assert fold.pending[f"{TABLE}:1"].born is born


def test_two_rows_that_change_places_do_not_mix() -> None:
    fold = fold_with(manifest("1"), manifest("2"))

    fold.change(event(Op.UPDATE, 1, after=(b"1", b"one", b"long one", b"en")))
    fold.change(event(Op.UPDATE, 2, after=(b"2", b"two", b"long two", b"en")))
    fold.change(event(Op.UPDATE, 3, before=KEY_ONLY, after=(b"0", b"one", UNCHANGED, b"en")))
    fold.change(event(Op.UPDATE, 4, before=(b"2", *KEY_ONLY[1:]), after=(b"1", b"two", UNCHANGED, b"en")))
    fold.change(event(Op.UPDATE, 5, before=(b"0", *KEY_ONLY[1:]), after=(b"2", b"one", UNCHANGED, b"en")))

    rows = {found: p.row.raw[1:3] if p.row else None for found, p in fold.pending.items()}
    assert rows == {f"{TABLE}:0": None, f"{TABLE}:1": (b"two", b"long two"), f"{TABLE}:2": (b"one", b"long one")}


def test_a_long_key_that_is_left_out_because_it_did_not_change_is_the_old_one() -> None:
    # When Postgres stores a key of two kilobytes out of line, it sends it as the old key only
    long = b"k" * 2_500
    fold = fold_with()

    fold.change(event(Op.UPDATE, before=(long, *KEY_ONLY[1:]), after=(UNCHANGED, b"t", b"b", b"en")))

    [pending] = fold.pending.values()
    assert pending.key == (long.decode(),)
    assert pending.row is not None
    assert pending.row.raw == (long, b"t", b"b", b"en")


def test_a_truncate_takes_what_the_index_has_and_what_is_pending_of_that_partition_alone() -> None:
    # Given documents in two partitions, and a row that has just moved from one to the other
    fold = fold_with(manifest("1"), manifest("2", relation_oid=2), manifest("3"))
    fold.change(event(Op.CREATE, 1, relation=a_relation(1), after=(b"4", b"t", b"b", b"en")))
    fold.change(event(Op.DELETE, 2, relation=a_relation(1), before=(b"3", *KEY_ONLY[1:])))
    fold.change(event(Op.CREATE, 3, relation=a_relation(2), after=(b"3", b"t", b"b", b"en")))

    # When the first partition is truncated
    fold.change(event(Op.TRUNCATE, 4, relation=a_relation(1)))

    # Then its documents are gone and no other
    assert {found[-1] for found, p in fold.pending.items() if p.touched and p.row is None} == {"1", "4"}
    assert fold.pending[f"{TABLE}:3"].row is not None


def test_a_row_that_left_the_partition_in_a_batch_under_way_survives_its_truncate() -> None:
    # Given a ledger that still has the document in partition 1, and an overlay that has it in partition 2
    overlay = manifest("1", relation_oid=2, version=Version(Lsn(400), 1))
    fold = Fold(table=TABLE, manifest_of=lambda _: overlay, documents_of=lambda _: [f"{TABLE}:1"])

    fold.change(event(Op.TRUNCATE, relation=a_relation(1)))

    assert not any(p.touched for p in fold.pending.values())


# -- reads ------------------------------------------------------------------------------------------------------


def read(snapshot: str, lsn: int = 900, key: bytes = b"1") -> ChangeEvent:
    row = Row(a_relation(), (key, b"read", b"b", b"en"))
    return ChangeEvent(
        op=Op.READ,
        version=Version(Lsn(lsn), 1),
        xid=80,
        commit_ts_us=1,
        relation=a_relation(),
        after=row,
        snapshot=snapshot,
        resync_id=3,
    )


def test_a_read_that_saw_the_last_change_wins() -> None:
    fold = fold_with(manifest("1", xid=10))

    fold.change(read("70:70:"), epoch=3)

    [pending] = fold.pending.values()
    assert pending.touched
    assert (pending.epoch, pending.snapshot, pending.xid, pending.from_resync) == (3, "70:70:", 0, True)


def test_a_read_takes_the_place_of_what_was_pending_and_a_change_behind_it_takes_its() -> None:
    fold = fold_with()
    fold.change(event(Op.CREATE, after=WHOLE))

    fold.change(read("70:70:"))

    [pending] = fold.pending.values()
    assert pending.row == read("70:70:").after
    assert (pending.created, pending.born, pending.from_resync) == (False, False, True)
    assert (pending.version, pending.commit_ts_us) == (Version(Lsn(900), 1), 1)

    fold.change(replace(event(Op.UPDATE, xid=75, lsn=950, relation=a_relation(2), after=WHOLE), commit_ts_us=9))
    assert (pending.from_resync, pending.snapshot, pending.xid, pending.relation_oid) == (False, None, 75, 2)
    assert (pending.first_commit_ts_us, pending.commit_ts_us) == (1, 9)


def test_what_is_to_be_written_anew_stays_so_whatever_is_read_behind() -> None:
    fold = fold_with(manifest("1", xid=60), manifest("2"))

    # Also when the read itself is too old to be taken
    fold.change(read("60:70:60"), rewrite=True)
    fold.change(read("80:80:", lsn=901))
    fold.change(read("80:80:", lsn=902, key=b"2"))

    assert [p.rewrite for p in fold.pending.values()] == [True, False]


def test_the_epoch_of_a_document_never_goes_back() -> None:
    fold = fold_with(manifest("1", epoch=5))

    fold.change(read("70:70:"), epoch=3)

    assert fold.pending[f"{TABLE}:1"].epoch == 5


def test_a_document_that_was_put_off_goes_on_from_where_it_stood() -> None:
    put_off = fold_with()
    put_off.change(event(Op.CREATE, after=(b"1", b"t", b"long", b"en")))
    fold = replace(fold_with(), resume=put_off.pending.get, pending={})

    fold.change(event(Op.UPDATE, 2, after=(b"1", b"t", UNCHANGED, b"de")))

    [pending] = fold.pending.values()
    assert pending.row is not None
    assert pending.row.raw == (b"1", b"t", b"long", b"de")


def test_a_read_that_missed_the_last_change_is_only_noted() -> None:
    # Given a change that was in the log, but not visible to the read
    fold = fold_with(manifest("1", xid=60))

    fold.change(read("60:70:60"), epoch=3)

    [pending] = fold.pending.values()
    assert not pending.touched
    assert pending.epoch == 3
    assert pending.version == Version(Lsn(100), 1)


@pytest.mark.parametrize(
    "unusable",
    [replace(read("70:70:"), after=None), replace(read("70:70:"), snapshot=None)],
    ids=["without a row", "without a snapshot"],
)
def test_a_read_that_says_too_little_is_left_out(unusable: ChangeEvent) -> None:
    fold = fold_with(manifest("1", xid=10))

    fold.change(unusable)

    assert fold.pending == {}


def test_a_read_that_missed_a_deletion_does_not_bring_the_row_back() -> None:
    fold = fold_with(manifest("1", xid=60, deleted=True))

    fold.change(read("60:70:60"))

    assert not any(p.touched for p in fold.pending.values())


def test_an_older_read_does_not_replace_a_newer_one() -> None:
    fold = fold_with(manifest("1", xid=0, snapshot="90:90:"))

    fold.change(read("70:70:"))

    assert not any(p.touched for p in fold.pending.values())


def test_a_newer_read_replaces_an_older_one() -> None:
    fold = fold_with(manifest("1", xid=0, snapshot="60:60:"), manifest("2", xid=0, snapshot="60:60:"))

    fold.change(read("70:70:"))
    fold.absent(replace(read("70:70:"), op=Op.MESSAGE, after=None), ("2",))

    assert [p.snapshot for p in fold.pending.values() if p.touched] == ["70:70:", "70:70:"]


def test_a_change_that_comes_again_is_left_out() -> None:
    fold = fold_with(manifest("1", version=Version(Lsn(500), 1)))

    fold.change(event(Op.UPDATE, 1, after=WHOLE))
    assert not fold.pending[f"{TABLE}:1"].touched

    fold.change(event(Op.UPDATE, 2, after=WHOLE))
    assert fold.pending[f"{TABLE}:1"].touched


def test_a_change_that_a_read_has_seen_is_skipped_and_the_next_one_is_not() -> None:
    fold = fold_with(manifest("1", xid=0, snapshot="55:60:55,57"))

    fold.change(event(Op.UPDATE, 1, xid=54, lsn=500, after=(b"1", b"seen", b"b", b"en")))
    assert not fold.pending[f"{TABLE}:1"].touched
    assert fold.pending[f"{TABLE}:1"].version == Version(Lsn(500), 1)
    assert fold.pending[f"{TABLE}:1"].xid == 54

    fold.change(event(Op.UPDATE, 1, xid=57, lsn=600, after=(b"1", b"not seen", b"b", b"en")))
    assert fold.pending[f"{TABLE}:1"].touched


def test_what_a_whole_resync_never_met_is_gone_unless_it_came_later() -> None:
    since = "50:50:"
    known = (
        manifest("1", xid=10, epoch=1),
        manifest("2", xid=10, epoch=3),
        manifest("3", xid=55, epoch=1),
        manifest("4", xid=0, epoch=1, snapshot="60:60:"),
        manifest("5", xid=10, epoch=1, deleted=True),
        manifest("6", xid=0, epoch=1, snapshot="40:40:"),
    )
    fold = fold_with(*known)
    done = replace(read(since), op=Op.MESSAGE, relation=None, after=None)

    for found in known:
        fold.gone(found.document_id, done, since=Snapshot.parse(since), epoch=3)

    assert [found[-1] for found, p in fold.pending.items() if p.touched] == ["1", "6"]


def test_what_changed_in_this_batch_is_gone_too_when_a_whole_resync_never_met_it() -> None:
    # Given a row that was put there and one that was deleted, in transactions that the resync could see
    fold = fold_with()
    fold.change(event(Op.CREATE, 1, after=WHOLE))
    fold.change(event(Op.DELETE, 2, before=(b"2", *KEY_ONLY[1:])))
    done = replace(read("60:60:"), op=Op.MESSAGE, after=None, relation=a_relation(2))

    for found in list(fold.pending):
        fold.gone(found, done, since=Snapshot.parse("60:60:"), epoch=1)

    there, deleted = fold.pending.values()
    assert (there.row, there.created, there.version) == (None, False, Version(Lsn(900), 1))
    assert deleted.version == Version(Lsn(500), 2)
    # A message names the table that the resync reads, and not the partition that the row was in
    assert there.relation_oid == 1


def test_a_key_that_a_resync_did_not_find_is_gone_if_it_could_have_seen_it() -> None:
    fold = fold_with(manifest("1", xid=10), manifest("2", xid=75))

    for key in ("1", "2", "3"):
        fold.absent(replace(read("70:80:75"), op=Op.MESSAGE, after=None), (key,))

    assert {found[-1]: p.touched for found, p in fold.pending.items()} == {"1": True, "2": False, "3": True}
    assert all(p.row is None for p in fold.pending.values())
    assert [(p.xid, p.snapshot) for p in fold.pending.values()] == [(0, "70:80:75"), (75, None), (0, "70:80:75")]


def test_a_key_that_was_not_found_in_an_unknown_state_is_not_gone() -> None:
    fold = fold_with(manifest("1", xid=10))

    fold.absent(replace(read("70:70:"), op=Op.MESSAGE, after=None, snapshot=None), ("1",))

    assert not fold.pending[f"{TABLE}:1"].touched


def test_a_key_that_a_resync_did_not_find_is_not_gone_if_a_later_read_did() -> None:
    fold = fold_with(manifest("1", xid=0, snapshot="90:90:"))

    fold.absent(replace(read("70:70:"), op=Op.MESSAGE, after=None), ("1",))

    assert not fold.pending[f"{TABLE}:1"].touched


def test_a_single_key_with_a_comma_is_the_one_that_was_sent() -> None:
    fold = fold_with(manifest("a,b"))

    # The table is emptied, for which the index knows no more than the id
    fold.change(event(Op.TRUNCATE, 1))
    assert [p.key for p in fold.pending.values()] == [("a", "b")]

    fold.change(event(Op.CREATE, 2, after=(b"a,b", b"t", b"b", b"en")))
    assert [p.key for p in fold.pending.values()] == [("a,b",)]


@given(st.lists(st.text("a,%2C5", max_size=6), min_size=2, max_size=4).map(tuple))
def test_a_composite_key_comes_back_from_its_document_id(key: tuple[str, ...]) -> None:
    assert key_of(document_id(TABLE, key)) == key


def test_a_single_key_comes_back_as_it_is() -> None:
    assert key_of(document_id(TABLE, ("a:b%2C",))) == ("a:b%2C",)
