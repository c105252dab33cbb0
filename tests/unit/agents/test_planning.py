"""Planning: what one document needs, and when its row must be read again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cdc_agent.agents.folding import Pending
from cdc_agent.agents.planning import Collection, Plan, chunk_metadata, expected, light_plan, needs_row, plan
from cdc_agent.documents.predicate import Predicate
from cdc_agent.documents.rendering import Template
from cdc_agent.errors import RenderError
from cdc_agent.events import UNCHANGED, Column, RawValue, Relation, Row
from cdc_agent.ledger.base import Manifest
from cdc_agent.lsn import Lsn, Version
from tests.support.scripted import a_collection

COLUMNS = {"id": 23, "title": 25, "body": 25, "lang": 25, "score": 701}


def a_row(columns: dict[str, int] = COLUMNS, **values: RawValue) -> Row:
    known: dict[str, RawValue] = {
        "id": b"1",
        "title": b"t",
        "body": b"one two three four",
        "lang": b"en",
        "score": b"1",
    }
    relation = Relation(
        oid=1,
        root_oid=1,
        schema="public",
        name="docs",
        columns=tuple(Column(name=n, type_oid=t) for n, t in columns.items()),
        key=("id",),
    )
    return Row(relation, tuple((known | values)[name] for name in columns))


def pending(row: Row | None, base: Manifest | None = None, **more: Any) -> Pending:
    known: dict[str, Any] = {"touched": True, "commit_ts_us": 5_000_000, **more}
    return Pending(
        document_id="public.docs:1",
        key=("1",),
        base=base,
        version=Version(Lsn(500), 1),
        xid=50,
        relation_oid=1,
        row=row,
        **known,
    )


COLLECTION = a_collection(max_tokens=2)


def indexed(row: Row, collection: Collection = COLLECTION, **more: Any) -> Manifest:
    """The manifest of a row that was indexed in an earlier batch."""
    made = plan(collection, pending(row, **more))
    return made.manifest([f"public.docs:1#1.{n}" for n in range(len(made.new))])


def replanned(row: Row | None, base: Manifest, collection: Collection = COLLECTION, **more: Any) -> Plan:
    tainted = more.pop("tainted", frozenset())
    return plan(collection, pending(row, base, **more), tainted=tainted)


# -- what is written --------------------------------------------------------------------------------------------


def test_a_new_document_is_written_whole() -> None:
    made = plan(COLLECTION, pending(a_row()))

    assert len(made.texts) > 1
    assert list(made.new) == list(range(len(made.texts)))
    assert (made.kept, made.moved, made.deleted) == ({}, {}, False)
    assert chunk_metadata(COLLECTION, made, 1) == {
        "lang": "en",
        "cdc_doc": "public.docs:1",
        "cdc_table": "public.docs",
        "cdc_chunk": 1,
        "cdc_lsn": 500,
        "cdc_commit_ts": "1970-01-01T00:00:05+00:00",
    }


def test_a_row_that_renders_the_same_costs_nothing() -> None:
    base = indexed(a_row())

    made = replanned(a_row(), base)

    assert (list(made.new), made.moved) == ([], {})
    assert made.same
    assert list(made.texts) == []
    assert made.manifest([]).chunks == base.chunks
    assert made.manifest([]).version == Version(Lsn(500), 1)


def test_new_metadata_alone_is_a_metadata_write_of_every_chunk() -> None:
    base = indexed(a_row())

    made = replanned(a_row(lang=b"de"), base)

    assert list(made.new) == []
    assert set(made.moved) == {chunk.id for chunk in base.chunks}
    assert {m["lang"] for m in made.moved.values()} == {"de"}
    assert sorted(int(str(m["cdc_chunk"])) for m in made.moved.values()) == list(range(len(base.chunks)))


def test_a_key_that_becomes_null_is_removed_from_the_metadata() -> None:
    made = replanned(a_row(lang=None), indexed(a_row()))

    assert {m["lang"] for m in made.moved.values()} == {None}


def test_a_chunk_that_moves_gets_its_new_place_and_keeps_its_vector() -> None:
    # Given paragraphs, and a new one in front of them
    collection = a_collection(max_tokens=3, template=Template("{body}"))
    base = indexed(a_row(body=b"a a a\n\nb b b"), collection)

    made = replanned(a_row(body=b"c c c\n\na a a\n\nb b b"), base, collection)

    assert [made.texts[i] for i in made.new] == ["c c c"]
    assert {i: m["cdc_chunk"] for i, m in made.moved.items()} == {base.chunks[0].id: 1, base.chunks[1].id: 2}
    assert all("lang" not in m for m in made.moved.values())


def test_chunks_of_equal_text_are_not_mixed_up() -> None:
    collection = a_collection(max_tokens=3, template=Template("{body}"))
    base = indexed(a_row(body=b"a a a\n\na a a\n\nb b b"), collection)

    made = replanned(a_row(body=b"a a a\n\nb b b"), base, collection)

    kept = [chunk.id for chunk in made.manifest([]).chunks]
    assert kept == [base.chunks[0].id, base.chunks[2].id]


@pytest.mark.parametrize("row", [None, a_row(lang=b"xx")], ids=["deleted", "outside of where"])
def test_a_document_that_is_gone_keeps_a_tombstone_with_its_version(row: Row | None) -> None:
    collection = a_collection(max_tokens=2, predicate=Predicate("lang <> 'xx'"))

    made = replanned(row, indexed(a_row(), collection), collection)

    found = made.manifest([])
    assert (found.deleted, found.chunks, found.version) == (True, (), Version(Lsn(500), 1))


def test_a_document_that_comes_back_is_written_whole() -> None:
    tombstone = replace(indexed(a_row()), deleted=True, chunks=())

    made = replanned(a_row(), tombstone)

    assert len(made.new) == len(made.texts) > 0


@pytest.mark.parametrize("row", [a_row(), a_row(lang=b"de"), a_row(body=b"one two three five")])
def test_what_is_to_be_written_anew_keeps_no_chunk(row: Row) -> None:
    made = replanned(row, indexed(a_row()), rewrite=True)

    assert (made.kept, made.moved) == ({}, {})
    assert list(made.new) == list(range(len(made.texts))) != []


def test_a_text_of_nothing_is_a_document_without_chunks() -> None:
    made = plan(COLLECTION, pending(a_row(title=b"", body=None)))

    assert (made.deleted, list(made.texts), list(made.new)) == (False, [], [])


def test_bookkeeping_alone_changes_nothing_but_the_books() -> None:
    base = indexed(a_row())

    made = replanned(None, base, touched=False, epoch=9, snapshot="1:2:")

    assert (list(made.new), made.moved) == ([], {})
    assert made.manifest([]) == replace(base, version=Version(Lsn(500), 1), xid=50, epoch=9, snapshot="1:2:")


def test_bookkeeping_of_what_is_not_known_leaves_a_tombstone() -> None:
    made = plan(COLLECTION, pending(None, None, touched=False))

    assert made.manifest([]).deleted


def test_what_is_compared_with_the_manifests_of_older_versions_is_as_it_was() -> None:
    # Another hash, and every document that there is would be written once more
    found = indexed(a_row())

    assert found.metadata_hash.hex() == "543a45b72ccf1fd1113a537548b81742"
    assert found.column_hashes.hex() == "20ff6949b3a574f888f567e51c10fbb9"
    assert found.chunks[0].text_hash.hex() == "883e609a05d85c187a019cad93c12237"


def test_bookkeeping_of_a_tombstone_does_not_bring_it_back() -> None:
    tombstone = replace(indexed(a_row()), deleted=True, chunks=())

    assert replanned(None, tombstone, touched=False).manifest([]).deleted


@pytest.mark.parametrize("row", [a_row(), a_row(lang=b"de")], ids=["nothing changed", "other metadata"])
def test_chunks_with_a_write_under_way_are_not_kept(row: Row) -> None:
    base = indexed(a_row())
    doubtful = base.chunks[0].id

    made = replanned(row, base, tainted=frozenset({doubtful}))

    assert doubtful not in made.kept.values()
    assert doubtful not in made.moved
    assert 0 in made.new
    assert made.hashes[0] == base.chunks[0].text_hash


@pytest.mark.parametrize("body", [b"one two three five", b"one two"], ids=["changed", "shorter"])
def test_new_metadata_beside_a_new_text_comes_with_new_chunks_alone(body: bytes) -> None:
    # Given a document of several chunks, of which one is to change or to go, and metadata that change with it
    base = indexed(a_row())

    made = replanned(a_row(body=body, lang=b"de"), base)

    # Then nothing is written in place: it would show before the rest does
    assert made.moved == {}
    assert list(made.new) == list(range(len(made.texts)))


def test_the_same_metadata_beside_a_new_text_keep_the_chunks_that_stay() -> None:
    base = indexed(a_row())

    made = replanned(a_row(body=b"one two three five"), base)

    assert made.kept
    assert made.moved == {}


# -- what was not sent ------------------------------------------------------------------------------------------


def test_the_same_text_columns_prove_that_a_long_one_gives_the_same_text() -> None:
    # Given a document, and a change that leaves out its long body
    base = indexed(a_row())
    row = a_row(body=UNCHANGED, lang=b"de")

    # Then the row is not read, and the metadata is written in place
    assert not needs_row(COLLECTION, pending(row, base), tainted=False)
    made = replanned(row, base)
    assert list(made.new) == []
    assert set(made.moved) == {chunk.id for chunk in base.chunks}
    assert made.manifest([]).column_hashes == base.column_hashes


BASE = indexed(a_row())
TOMBSTONE = replace(BASE, deleted=True, chunks=())
FORGETFUL = replace(BASE, column_hashes=b"")
WHERE = a_collection(max_tokens=2, predicate=Predicate("lang <> 'xx'"), metadata=())
NUMBER = a_collection(max_tokens=2, template=Template("{title} {score}"))
BOTH = a_collection(max_tokens=2, template=Template("{title} {lang}"))


@pytest.mark.parametrize(
    ("wanted", "collection", "row", "more"),
    [
        (False, COLLECTION, a_row(), {"base": BASE}),
        (False, COLLECTION, None, {"base": BASE}),
        (False, COLLECTION, a_row(body=UNCHANGED), {"base": BASE}),
        (False, COLLECTION, a_row(body=UNCHANGED, lang=b"de"), {"base": BASE}),
        (False, COLLECTION, a_row(score=UNCHANGED), {"base": BASE}),
        (False, COLLECTION, a_row(body=UNCHANGED), {"base": None, "touched": False}),
        (True, COLLECTION, a_row(body=UNCHANGED, title=b"other"), {"base": BASE}),
        (True, COLLECTION, a_row(body=UNCHANGED), {"base": None}),
        (True, COLLECTION, a_row(body=UNCHANGED), {"base": TOMBSTONE}),
        (True, COLLECTION, a_row(body=UNCHANGED), {"base": FORGETFUL}),
        (True, COLLECTION, a_row(body=UNCHANGED), {"base": BASE, "created": True}),
        (True, COLLECTION, a_row(body=UNCHANGED), {"base": BASE, "tainted": True}),
        (False, COLLECTION, a_row(), {"base": BASE, "tainted": True}),
        (True, COLLECTION, a_row(lang=UNCHANGED), {"base": BASE}),
        (True, WHERE, a_row(lang=UNCHANGED), {"base": indexed(a_row(), WHERE)}),
        (True, NUMBER, a_row(score=UNCHANGED), {"base": indexed(a_row(), NUMBER)}),
        (True, BOTH, a_row(lang=UNCHANGED), {"base": indexed(a_row(), BOTH)}),
        (True, COLLECTION, a_row(body=UNCHANGED), {"base": BASE, "rewrite": True}),
        (False, COLLECTION, a_row(), {"base": BASE, "rewrite": True}),
        (True, COLLECTION, None, {"base": BASE, "rewrite": True, "touched": False}),
        (False, COLLECTION, None, {"base": TOMBSTONE, "rewrite": True, "touched": False}),
        (False, COLLECTION, None, {"base": BASE, "touched": False}),
    ],
    ids=[
        "everything was sent",
        "the row is gone",
        "a long column of the text",
        "a long column of the text and other metadata",
        "a column that nobody needs",
        "nothing but bookkeeping",
        "another text column changed",
        "a document that is not indexed",
        "a document that was deleted",
        "a document whose last version was parked",
        "a row that was just created there",
        "a write in place may be under way",
        "the same, but everything was sent",
        "a metadata column",
        "a column of where",
        "a number that may be NaN",
        "a column of the text that is metadata, too",
        "all is to be written anew, and a long column is not here",
        "all is to be written anew, and everything was sent",
        "all is to be written anew, and the read was older than the index",
        "the same of a document that is gone",
        "nothing but bookkeeping of a document that is indexed",
    ],
)
def test_when_a_row_is_read_again(wanted: bool, collection: Collection, row: Row | None, more: dict[str, Any]) -> None:
    tainted = more.pop("tainted", False) if "tainted" in more else False

    assert needs_row(collection, pending(row, **more), tainted=tainted) is wanted


def test_an_unknown_column_hash_never_proves_anything() -> None:
    # Given a manifest of which one text column was not known
    base = replace(BASE, column_hashes=b"\0" * 8 + BASE.column_hashes[8:])

    assert needs_row(COLLECTION, pending(a_row(body=UNCHANGED), base), tainted=False)


def test_null_and_empty_are_different_values_of_a_column() -> None:
    base = indexed(a_row(title=None))

    assert needs_row(COLLECTION, pending(a_row(title=b"", body=UNCHANGED), base), tainted=False)


def test_a_long_column_that_nobody_needs_does_not_hide_that_the_text_changed() -> None:
    made = replanned(a_row(score=UNCHANGED, body=b"five six"), BASE)

    assert [made.texts[i] for i in made.new] == ["five six"]


# -- what needs no model ----------------------------------------------------------------------------------------

WHERE_BASE = indexed(a_row(), WHERE)
GONE = a_row({name: oid for name, oid in COLUMNS.items() if name != "title"})


@pytest.mark.parametrize(
    ("collection", "found"),
    [
        (COLLECTION, pending(a_row(lang=b"de"), BASE)),
        (COLLECTION, pending(a_row(body=UNCHANGED, lang=b"de"), BASE)),
        (COLLECTION, pending(None, BASE)),
        (WHERE, pending(a_row(lang=b"xx", body=b"five"), WHERE_BASE)),
    ],
    ids=[
        "other metadata",
        "other metadata, and a long column is not here",
        "gone",
        "outside of where, with other text",
    ],
)
def test_a_document_that_needs_no_model_is_planned_as_in_its_turn(collection: Collection, found: Pending) -> None:
    made = light_plan(collection, found, tainted=frozenset())

    assert made == plan(collection, found)
    assert made is not None
    assert list(made.new) == []


@pytest.mark.parametrize(
    ("found", "tainted"),
    [
        (pending(None, None), set()),
        (pending(None, TOMBSTONE), set()),
        (pending(a_row(lang=b"de"), BASE, rewrite=True), set()),
        (pending(None, BASE, rewrite=True, touched=False), set()),
        (pending(a_row(lang=UNCHANGED), BASE), set()),
        (pending(a_row(body=b"five"), BASE), set()),
        (pending(a_row(body=UNCHANGED), BASE), {BASE.chunks[0].id}),
        (pending(a_row(lang=b"de"), BASE), {BASE.chunks[0].id}),
        (pending(GONE, BASE), set()),
    ],
    ids=[
        "nothing to be removed",
        "it is gone already",
        "all is to be written anew",
        "all is to be written anew, and the read was older than the index",
        "the row is to be read again",
        "another text",
        "a write in place may be under way, and a long column is not here",
        "a write in place may be under way",
        "it cannot be rendered",
    ],
)
def test_a_document_that_needs_more_waits_for_its_turn(found: Pending, tainted: set[str]) -> None:
    assert light_plan(COLLECTION, found, tainted=frozenset(tainted)) is None


# -- what an audit compares with --------------------------------------------------------------------------------


def test_what_is_expected_of_a_row_is_what_is_planned_for_it() -> None:
    found, made = expected(WHERE, a_row()), plan(WHERE, pending(a_row()))

    assert found is not None
    assert (found.hashes, found.metadata, found.metadata_hash) == (made.hashes, made.metadata, made.metadata_hash)
    assert expected(WHERE, a_row(lang=b"xx")) is None


# -- what cannot be rendered ------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["title", "lang"])
def test_a_column_that_is_gone_is_an_error_with_its_name(missing: str) -> None:
    row = a_row({name: oid for name, oid in COLUMNS.items() if name != missing})

    assert not needs_row(COLLECTION, pending(row, BASE), tainted=False)
    with pytest.raises(RenderError, match=missing) as refused:
        replanned(row, BASE)
    assert refused.value.hint


def test_a_column_of_where_that_is_gone_is_an_error_and_not_a_deletion() -> None:
    row = a_row({name: oid for name, oid in COLUMNS.items() if name != "lang"})

    with pytest.raises(RenderError, match="lang"):
        replanned(row, indexed(a_row(), WHERE), WHERE)


def test_bytes_that_are_no_text_are_an_error() -> None:
    with pytest.raises(RenderError, match="title"):
        replanned(a_row(title=b"caf\xe9"), BASE)


def test_bytes_that_are_no_text_decide_no_where() -> None:
    with pytest.raises(RenderError, match=r"lang.*predicate cannot judge"):
        replanned(a_row(lang=b"caf\xe9"), WHERE_BASE, WHERE)
