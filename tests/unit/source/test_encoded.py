"""Both decoders against an encoder: whatever a server commits comes back, however it is cut and interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.errors import DecodeError
from cdc_agent.events import UNCHANGED, Change, Column, Relation, Transaction
from cdc_agent.lsn import Lsn
from cdc_agent.source import assembler
from cdc_agent.source.pgoutput import PgOutputDecoder
from cdc_agent.source.wal2json import Wal2JsonDecoder
from tests.support.wal import pgoutput_messages, wal2json_messages

OIDS = {"int": 23, "text": 25, "bool": 16}
VALUES = {
    23: st.integers(-(2**31), 2**31 - 1).map(lambda number: str(number).encode()),
    25: st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8).map(str.encode),
    16: st.sampled_from([b"t", b"f"]),
}


@st.composite
def relations(draw: st.DrawFn) -> list[Relation]:
    """One to three tables, each with a key of its first columns; some with replica identity full."""
    made = []
    for oid in range(1, 1 + draw(st.integers(1, 3))):
        kinds = draw(st.lists(st.sampled_from([23, 25, 16]), min_size=1, max_size=5))
        columns = tuple(Column(name=f"c{i} \"'é", type_oid=kind) for i, kind in enumerate(kinds))
        key = tuple(c.name for c in columns[: draw(st.integers(1, len(columns)))])
        identity = draw(st.sampled_from(["d", "f"]))
        made.append(
            Relation(
                oid=oid, root_oid=oid, schema="s", name=f"t{oid}", columns=columns, key=key, replica_identity=identity
            )
        )
    return made


@st.composite
def rows(draw: st.DrawFn, relation: Relation, *, whole: bool) -> tuple:
    """A new row; key columns have values, others may be NULL or, where the row need not be ``whole``, unsent."""
    row = []
    for column in relation.columns:
        value = VALUES[column.type_oid]
        other = st.one_of(value, st.none()) if whole else st.one_of(value, st.none(), st.just(UNCHANGED))
        row.append(draw(value if column.name in relation.key else other))
    return tuple(row)


@st.composite
def old_rows(draw: st.DrawFn, relation: Relation) -> tuple:
    row = draw(rows(relation, whole=True))
    if relation.replica_identity == "f":
        return row
    return tuple(v if c.name in relation.key else UNCHANGED for v, c in zip(row, relation.columns, strict=True))


@st.composite
def changes(draw: st.DrawFn, tables: Sequence[Relation]) -> Change:
    relation, op = draw(st.sampled_from(tables)), draw(st.sampled_from("cudtm"))
    if op == "m":
        return Change("m", None, 0, (b"cdc_agent.x", draw(VALUES[25])), None)
    before = draw(old_rows(relation)) if op == "d" or (op == "u" and draw(st.booleans())) else None
    after = draw(rows(relation, whole=op == "c")) if op in "cu" else None
    return Change(op, relation, 0, before, after)


@st.composite
def commits(draw: st.DrawFn) -> list[Transaction]:
    tables = draw(relations())
    made = []
    for number in range(1, 1 + draw(st.integers(1, 4))):
        found = draw(st.lists(changes(tables), max_size=8))
        made.append(
            Transaction(
                xid=1_000 + number,
                commit_lsn=Lsn(100 * number),
                commit_ts_us=draw(st.integers(0, 2**52)),
                changes=[change._replace(ordinal=i) for i, change in enumerate(found, start=1)],
                end_lsn=Lsn(100 * number + 8),
            )
        )
    return made


class Pgoutput:
    """A decoder that knows the tables as they are, and the messages of a new connection."""

    def __init__(self, tables: Iterable[Relation]) -> None:
        by_oid = {relation.oid: relation for relation in tables}
        self.decoder = PgOutputDecoder(lambda message: by_oid.get(message.oid))

    def connection(self, commits: Sequence[Transaction]) -> list[bytes]:
        described: set[int] = set()
        return [message for tx in commits for message in pgoutput_messages(tx, described)]


class Wal2Json:
    def __init__(self, tables: Iterable[Relation]) -> None:
        by_name = {relation.name: relation for relation in tables}
        self.decoder = Wal2JsonDecoder(lambda _schema, name, *_: by_name.get(name))

    def connection(self, commits: Sequence[Transaction]) -> list[bytes]:
        return [message for tx in commits for message in wal2json_messages(tx)]


def tables_of(commits: Sequence[Transaction]) -> list[Relation]:
    return [change.relation for tx in commits for change in tx.changes if change.relation is not None]


def joined(parts: Iterable[Transaction]) -> list[Transaction]:
    """Parts of a commit put together again; their sizes are estimates."""
    made: list[Transaction] = []
    for part in parts:
        if made and made[-1].end_lsn is None:
            made[-1] = replace(made[-1], changes=made[-1].changes + part.changes, end_lsn=part.end_lsn)
        else:
            made.append(replace(part, size_bytes=0))
    return made


PLUGINS = pytest.mark.parametrize("plugin", [Pgoutput, Wal2Json], ids=["pgoutput", "wal2json"])


@PLUGINS
@given(sent=commits(), most=st.integers(1, 6))
def test_whatever_is_committed_comes_back_in_parts_of_any_size(
    plugin: Callable[..., Pgoutput | Wal2Json], sent: list[Transaction], most: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(assembler, "PART_CHANGES", most)
        end = plugin(tables_of(sent))

        parts = [part for message in end.connection(sent) if (part := end.decoder.feed(message)) is not None]

    assert joined(parts) == sent
    assert all(len(part.changes) <= most for part in parts)
    assert not end.decoder.in_transaction


@PLUGINS
@given(sent=commits(), data=st.data())
def test_a_connection_that_breaks_anywhere_leaves_nothing_behind(
    plugin: Callable[..., Pgoutput | Wal2Json], sent: list[Transaction], data: st.DataObject
) -> None:
    # Given a connection that ends behind any message
    end = plugin(tables_of(sent))
    messages = end.connection(sent)
    for message in messages[: data.draw(st.integers(0, len(messages)))]:
        end.decoder.feed(message)

    # When all of it is sent again on the next one
    end.decoder.reset()
    again = [part for message in end.connection(sent) if (part := end.decoder.feed(message)) is not None]

    # Then it is as if there had been no other
    assert joined(again) == sent


@PLUGINS
@given(sent=commits(), data=st.data())
def test_a_message_cut_short_or_flipped_is_refused_or_understood_and_never_anything_else(
    plugin: Callable[..., Pgoutput | Wal2Json], sent: list[Transaction], data: st.DataObject
) -> None:
    end = plugin(tables_of(sent))
    messages = end.connection(sent)
    hurt = data.draw(st.integers(0, len(messages) - 1))
    whole = messages[hurt]
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    messages[hurt] = data.draw(st.sampled_from([whole[:at], flipped]))

    try:
        for message in messages:
            end.decoder.feed(message)
    except DecodeError:
        return
