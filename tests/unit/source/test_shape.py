"""What is a difference between two moments of a table, and what is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.source.shape import ColumnShape, Difference, RelationShape, TableShape, compare

USED = frozenset({"body", "kind"})


def column(number: int, name: str, type_oid: int = 25, typmod: int = -1) -> ColumnShape:
    return ColumnShape(number=number, name=name, type_oid=type_oid, typmod=typmod, generated="")


def relation(oid: int, name: str, file: int = 1) -> RelationShape:
    columns = (column(1, "id", 23), column(2, "body"), column(3, "kind"), column(4, "other"))
    return RelationShape(
        oid=oid, schema="public", name=name, file=file, link=0, columns=columns, identity="d", index=9, key=(1,)
    )


PLAIN = TableShape(root=relation(10, "docs"), members=frozenset({77}))
PARTS = TableShape(
    root=relation(10, "docs", file=0),
    partitions=(relation(11, "docs_a"), relation(12, "docs_b")),
    members=frozenset({77}),
)


def with_root(shape: TableShape, **changes: object) -> TableShape:
    return replace(shape, root=replace(shape.root, **changes))  # type: ignore[arg-type]


def with_columns(shape: TableShape, *columns: ColumnShape) -> TableShape:
    return with_root(shape, columns=columns)


ID, BODY, KIND, OTHER = PLAIN.root.columns

CASES = [
    (PLAIN, PLAIN, set()),
    (PLAIN, None, {Difference.DROPPED}),
    (PLAIN, with_root(PLAIN, oid=99, file=5), {Difference.REPLACED}),
    (PLAIN, with_root(PLAIN, name="papers"), {Difference.RENAMED}),
    (PLAIN, with_root(PLAIN, schema="archive"), {Difference.RENAMED}),
    (PLAIN, with_root(PLAIN, file=2), {Difference.REWRITTEN}),
    (PLAIN, with_root(PLAIN, identity="f"), {Difference.IDENTITY}),
    (PLAIN, with_root(PLAIN, index=8, key=(1, 3)), {Difference.IDENTITY}),
    (PARTS, replace(PARTS, partitions=PARTS.partitions[:1]), {Difference.PARTITIONS}),
    (PARTS, replace(PARTS, partitions=(*PARTS.partitions, relation(13, "docs_c"))), {Difference.PARTITIONS}),
    (
        PARTS,
        replace(PARTS, partitions=(PARTS.partitions[0], relation(12, "docs_b", file=8))),
        {Difference.REWRITTEN},
    ),
    (PLAIN, replace(PLAIN, members=frozenset()), {Difference.LEFT_PUBLICATION}),
    (PLAIN, replace(PLAIN, members=frozenset({78})), {Difference.REJOINED_PUBLICATION}),
    (replace(PLAIN, members=frozenset()), PLAIN, {Difference.REJOINED_PUBLICATION}),
    # Held by one membership all the time, while another came or went.
    (PLAIN, replace(PLAIN, members=frozenset({77, 78})), set()),
    (replace(PLAIN, members=frozenset({77, 78})), PLAIN, set()),
]


@pytest.mark.parametrize(("before", "now", "wanted"), CASES)
def test_each_difference_has_its_name(before: TableShape, now: TableShape | None, wanted: set[Difference]) -> None:
    assert compare(before, now, USED) == wanted


COLUMN_CASES = [
    ((ID, BODY, KIND, column(4, "other", 23)), set()),
    ((ID, BODY, KIND), set()),
    ((ID, BODY, KIND, OTHER, column(5, "fresh")), set()),
    ((ID, BODY, KIND, column(4, "another")), set()),
    ((ID, column(2, "body", 1043), KIND, OTHER), {Difference.COLUMNS}),
    ((ID, column(2, "body", typmod=20), KIND, OTHER), {Difference.COLUMNS}),
    # Dropped and added again: another column under the same name.
    ((ID, BODY, OTHER, column(5, "kind")), {Difference.COLUMNS}),
    # Another one has taken the name.
    ((ID, BODY, column(3, "was_kind"), column(4, "kind")), {Difference.COLUMNS}),
    ((ID, BODY, OTHER), {Difference.COLUMNS}),
]


@pytest.mark.parametrize(("columns", "wanted"), COLUMN_CASES)
def test_only_columns_that_are_used_count(columns: tuple[ColumnShape, ...], wanted: set[Difference]) -> None:
    assert compare(PLAIN, with_columns(PLAIN, *columns), USED) == wanted


def test_several_differences_are_all_named() -> None:
    now = with_root(replace(PLAIN, members=frozenset()), file=9, name="papers", identity="n")

    assert compare(PLAIN, now, USED) == {
        Difference.LEFT_PUBLICATION,
        Difference.REWRITTEN,
        Difference.RENAMED,
        Difference.IDENTITY,
    }


names = st.text(min_size=1, max_size=8)
columns = st.builds(
    ColumnShape,
    number=st.integers(1, 1600),
    name=names,
    type_oid=st.integers(1, 2**32 - 1),
    typmod=st.integers(-1, 2**31 - 1),
    generated=st.sampled_from(["", "s", "v"]),
)
relations = st.builds(
    RelationShape,
    oid=st.integers(1, 2**32 - 1),
    schema=names,
    name=names,
    file=st.integers(0, 2**32 - 1),
    link=st.integers(0, 2**32 - 1),
    columns=st.lists(columns, max_size=4).map(tuple),
    identity=st.sampled_from("dfni"),
    index=st.integers(0, 2**32 - 1),
    key=st.lists(st.integers(1, 1600), max_size=3).map(tuple),
)
shapes = st.builds(
    TableShape,
    root=relations,
    partitions=st.lists(relations, max_size=3).map(tuple),
    members=st.frozensets(st.integers(1, 2**32 - 1), max_size=3),
)


@given(shapes)
def test_a_shape_survives_as_text(shape: TableShape) -> None:
    text = shape.to_json()

    assert TableShape.from_json(text) == shape
    assert TableShape.from_json(text).to_json() == text


@given(shapes)
def test_nothing_differs_from_itself(shape: TableShape) -> None:
    published = replace(shape, members=shape.members | {1})

    assert compare(published, published, USED) == set()
