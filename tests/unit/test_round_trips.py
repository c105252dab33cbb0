"""What is written can be read: blocks of the stream, rows of the ledger, Debezium's envelope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.envelope import from_debezium, to_debezium
from cdc_agent.errors import StreamError
from cdc_agent.events import UNCHANGED, Change, ChangeEvent, Column, Op, Relation, Row, Transaction
from cdc_agent.ledger import rows
from cdc_agent.ledger.base import ChunkRef, DeadLetter, Generation, Manifest, Resync, SourceIdentity
from cdc_agent.lsn import Lsn, Version
from cdc_agent.stream import codec

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
POSITIONS = st.integers(0, 2**63 - 1).map(Lsn)
VERSIONS = st.builds(Version, POSITIONS, st.integers(0, 2**31))
RAW = st.one_of(st.binary(max_size=6), st.none(), st.just(UNCHANGED))


@st.composite
def relations(draw: st.DrawFn) -> Relation:
    names = draw(st.lists(TEXTS, min_size=1, max_size=4, unique=True))
    return Relation(
        oid=draw(st.integers(0, 2**32 - 1)),
        root_oid=draw(st.integers(0, 2**32 - 1)),
        schema=draw(TEXTS),
        name=draw(TEXTS),
        columns=tuple(Column(name=name, type_oid=draw(st.sampled_from([23, 25, 17]))) for name in names),
        key=tuple(names[: draw(st.integers(0, len(names)))]),
        replica_identity=draw(st.sampled_from("dfin")),
    )


@st.composite
def transactions(draw: st.DrawFn) -> list[Transaction]:
    tables = draw(st.lists(relations(), min_size=1, max_size=3))
    return draw(
        st.lists(
            st.builds(
                Transaction,
                xid=st.integers(0, 2**63 - 1),
                commit_lsn=POSITIONS,
                commit_ts_us=st.integers(-(2**53), 2**53),
                changes=st.lists(changes(tables), max_size=5),
                end_lsn=st.one_of(st.none(), POSITIONS),
                snapshot=st.one_of(st.none(), st.just("10:20:11,12")),
                resync_id=st.integers(0, 2**31),
            ),
            max_size=4,
        )
    )


@st.composite
def changes(draw: st.DrawFn, tables: Sequence[Relation]) -> Change:
    op, ordinal = draw(st.sampled_from("cudrtm")), draw(st.integers(0, 2**31))
    if op == "m":
        return Change("m", None, ordinal, (draw(TEXTS).encode(), draw(st.binary(max_size=9))), None)
    relation = draw(st.sampled_from(tables))
    row = st.one_of(st.none(), st.tuples(*[RAW] * len(relation.columns)))
    return Change(op, relation, ordinal, draw(row), draw(row))


@given(transactions())
def test_a_block_gives_back_every_change_in_its_place(sent: list[Transaction]) -> None:
    block = codec.decode(codec.encode(sent))
    events = list(block.events(0, len(block), 7))

    wanted = [(tx, change) for tx in sent for change in tx.changes]
    assert [event.offset for event in events] == list(range(7, 7 + len(wanted)))
    for event, (tx, change) in zip(events, wanted, strict=True):
        assert (event.op, event.version) == (change.op, Version(tx.commit_lsn, change.ordinal))
        assert (event.xid, event.commit_ts_us, event.snapshot) == (tx.xid, tx.commit_ts_us, tx.snapshot)
        assert (event.relation, event.resync_id) == (change.relation, tx.resync_id)
        if change.op == "m":
            assert event.message == (change.before[0].decode(), change.before[1])  # type: ignore[index,union-attr]
        else:
            assert (_raw(event.before), _raw(event.after)) == (change.before, change.after)


def _raw(row: Row | None) -> Any:
    return None if row is None else row.raw


@given(transactions(), st.data())
def test_a_damaged_block_is_refused_or_read_and_never_anything_else(
    sent: list[Transaction], data: st.DataObject
) -> None:
    whole = codec.encode(sent)
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]

    try:
        block = codec.decode(data.draw(st.sampled_from([whole[:at], flipped])))
        list(block.events(0, len(block), 1))
    except StreamError:
        return


def test_a_block_of_another_format_says_so_whatever_it_looks_like() -> None:
    with pytest.raises(StreamError, match="stream format 2 is unknown"):
        codec.decode(msgspec.msgpack.encode([2, {"relations": "by name"}]))


@given(
    st.builds(
        Manifest,
        collection=TEXTS,
        document_id=TEXTS,
        version=VERSIONS,
        xid=st.integers(0, 2**63 - 1),
        relation_oid=st.integers(0, 2**32 - 1),
        chunks=st.lists(st.builds(ChunkRef, TEXTS, st.binary(min_size=16, max_size=16)), max_size=3).map(tuple),
        column_hashes=st.binary(max_size=16),
        metadata_hash=st.binary(max_size=16),
        snapshot=st.one_of(st.none(), st.just("1:2:")),
        epoch=st.integers(0, 2**31),
        deleted=st.booleans(),
    ),
    st.data(),
)
def test_a_manifest_comes_back_from_its_row_and_no_other_row_passes_for_it(m: Manifest, data: st.DataObject) -> None:
    collection, document_id, *row = rows.manifest_row(m)
    # What is stored besides, for counting, is not read.
    count = row.pop(5)

    assert rows.manifest(collection, document_id, row) == m
    assert count == len(m.chunks)

    place = data.draw(st.integers(0, len(row) - 1))
    other = (
        row[place] + (b"x" if isinstance(row[place], bytes) else "x" if isinstance(row[place], str) else 1)
        if (row[place] is not None)
        else "1:1:"
    )
    with pytest.raises(rows.Damaged):
        rows.manifest(collection, document_id, [*row[:place], other, *row[place + 1 :]])


@given(st.binary(max_size=64), st.data())
def test_a_vector_comes_back_and_no_flipped_bit_passes(vector: bytes, data: st.DataObject) -> None:
    sealed = rows.sealed_vector(vector)
    at = data.draw(st.integers(0, len(sealed) - 1))

    assert rows.vector(sealed) == vector
    assert rows.vector(sealed[:at] + bytes([sealed[at] ^ data.draw(st.integers(1, 255))]) + sealed[at + 1 :]) is None


KEYS = st.lists(TEXTS, min_size=1, max_size=3).map(tuple)


@given(
    st.builds(
        DeadLetter,
        id=st.integers(1, 2**31),
        agent=TEXTS,
        collection=TEXTS,
        document_id=TEXTS,
        table=TEXTS,
        key=KEYS,
        version=VERSIONS,
        reason=TEXTS,
        error=TEXTS,
        attempts=st.integers(0, 9),
        parked_at=st.floats(0, 2e9),
    )
)
def test_a_dead_letter_comes_back_from_its_row(letter: DeadLetter) -> None:
    assert rows.dead_letter((letter.id, *rows.dead_letter_row(letter))) == letter


@given(
    st.builds(
        Resync,
        id=st.integers(1, 2**31),
        table=TEXTS,
        collections=st.lists(TEXTS, max_size=2).map(tuple),
        keys=st.lists(KEYS, max_size=3).map(tuple),
        predicate=TEXTS,
        rewrite=st.booleans(),
        reason=TEXTS,
        state=st.sampled_from(["running", "paused", "done", "failed", "cancelled"]),
        snapshot=st.one_of(st.none(), st.just("1:2:")),
        last_key=st.one_of(st.none(), KEYS),
        rows_done=st.integers(0, 2**31),
        rows_estimated=st.integers(0, 2**31),
        started_at=st.floats(0, 2e9),
        finished_at=st.one_of(st.none(), st.floats(0, 2e9)),
        error=TEXTS,
    )
)
def test_a_resync_comes_back_from_its_row(resync: Resync) -> None:
    assert rows.resync((resync.id, *rows.resync_row(resync))) == resync


@given(
    st.builds(
        Generation,
        collection=TEXTS,
        number=st.integers(1, 99),
        physical=TEXTS,
        agent=TEXTS,
        fingerprint=TEXTS,
        spec=TEXTS,
        state=TEXTS,
        created_at=st.floats(0, 2e9),
        switched_at=st.one_of(st.none(), st.floats(0, 2e9)),
    )
)
def test_a_generation_comes_back_from_its_row(generation: Generation) -> None:
    assert rows.generation(rows.generation_row(generation)) == generation


@given(
    st.builds(
        SourceIdentity,
        system_id=TEXTS,
        timeline=st.integers(1, 99),
        database_oid=st.integers(0, 2**32 - 1),
        slot_name=TEXTS,
        plugin=TEXTS,
        slot_ready=st.booleans(),
        publication_oid=st.integers(0, 2**32 - 1),
    )
)
def test_an_identity_comes_back_from_its_row(identity: SourceIdentity) -> None:
    assert rows.identity(rows.identity_row(identity)) == identity


# -- Debezium's envelope ----------------------------------------------------------------------------------------

ENVELOPED = Relation(
    oid=1,
    root_oid=1,
    schema="public",
    name="t",
    columns=tuple(
        Column(name=name, type_oid=oid) for name, oid in (("i", 23), ("t", 25), ("b", 16), ("a", 17), ("n", 1700))
    ),
    key=("i",),
)
VALUES = st.tuples(
    st.integers(-(2**31), 2**31 - 1).map(lambda i: str(i).encode()),
    *[
        st.one_of(st.none(), st.just(UNCHANGED), value)
        for value in (
            TEXTS.map(str.encode),
            st.sampled_from([b"t", b"f"]),
            st.binary(max_size=5).map(lambda b: b"\\x" + b.hex().encode()),
            st.decimals(-1000, 1000, places=2).map(lambda d: str(d).encode()),
        )
    ],
)


@given(
    st.builds(
        ChangeEvent,
        op=st.sampled_from([Op.CREATE, Op.UPDATE, Op.DELETE, Op.READ]),
        version=VERSIONS,
        xid=st.integers(0, 2**40),
        commit_ts_us=st.integers(0, 2**52),
        relation=st.just(ENVELOPED),
        before=st.one_of(st.none(), VALUES.map(lambda raw: Row(ENVELOPED, raw))),
        after=st.one_of(st.none(), VALUES.map(lambda raw: Row(ENVELOPED, raw))),
    )
)
def test_an_event_comes_back_from_its_envelope(event: ChangeEvent) -> None:
    again = from_debezium(to_debezium(event), ENVELOPED)

    assert (again.op, again.version, again.xid) == (event.op, event.version, event.xid)
    assert again.commit_ts_us == event.commit_ts_us
    assert (_raw(again.before), _raw(again.after)) == (_raw(event.before), _raw(event.after))
