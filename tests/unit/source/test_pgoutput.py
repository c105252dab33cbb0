"""The pgoutput decoder: golden bytes, every cut, every kind of damage."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdc_agent.errors import DecodeError
from cdc_agent.events import UNCHANGED, Change, Column, RawRow, Relation, Transaction
from cdc_agent.source.pgoutput import PG_EPOCH_US, PgOutputDecoder, RelationMessage

OID, OTHER_OID, FOREIGN_OID = 16_385, 16_386, 16_387

# -- a tiny encoder, written from the documentation of the format ---------------------------------------------------


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def begin(commit_lsn: int, *, ts_us: int = PG_EPOCH_US, xid: int = 700) -> bytes:
    return b"B" + struct.pack("!QqI", commit_lsn, ts_us - PG_EPOCH_US, xid)


def commit(commit_lsn: int, end_lsn: int) -> bytes:
    return b"C" + struct.pack("!BQQq", 0, commit_lsn, end_lsn, 0)


def relation(
    oid: int,
    columns: Sequence[tuple[str, int]],
    *,
    key: Sequence[str] = ("id",),
    name: str = "t",
    schema: str = "public",
    identity: str = "d",
) -> bytes:
    described = b"".join(bytes([c in key]) + text(c) + struct.pack("!Ii", type_oid, -1) for c, type_oid in columns)
    head = b"R" + struct.pack("!I", oid) + text(schema) + text(name) + identity.encode()
    return head + struct.pack("!H", len(columns)) + described


def row(values: RawRow) -> bytes:
    packed = struct.pack("!H", len(values))
    for value in values:
        if value is None:
            packed += b"n"
        elif value is UNCHANGED:
            packed += b"u"
        else:
            packed += b"t" + struct.pack("!I", len(value)) + value
    return packed


def insert(oid: int, values: RawRow) -> bytes:
    return b"I" + struct.pack("!I", oid) + b"N" + row(values)


def update(oid: int, values: RawRow, *, old: RawRow | None = None, kind: str = "K") -> bytes:
    before = b"" if old is None else kind.encode() + row(old)
    return b"U" + struct.pack("!I", oid) + before + b"N" + row(values)


def delete(oid: int, old: RawRow, *, kind: str = "K") -> bytes:
    return b"D" + struct.pack("!I", oid) + kind.encode() + row(old)


def truncate(*oids: int) -> bytes:
    return b"T" + struct.pack("!IB", len(oids), 0) + b"".join(struct.pack("!I", oid) for oid in oids)


def message(prefix: str, content: bytes, *, transactional: bool = True) -> bytes:
    return b"M" + struct.pack("!BQ", transactional, 99) + text(prefix) + struct.pack("!I", len(content)) + content


COLUMNS = (("id", 23), ("title", 25), ("body", 25))


def describe(found: RelationMessage) -> Relation | None:
    if found.oid == FOREIGN_OID:
        return None
    return Relation(
        oid=found.oid,
        root_oid=OID,
        schema=found.schema,
        name=found.name,
        columns=found.columns,
        key=found.key,
        replica_identity=found.replica_identity,
    )


@pytest.fixture
def decoder() -> PgOutputDecoder:
    """In a transaction, with our table and a foreign one described."""
    return begun()


def begun() -> PgOutputDecoder:
    made = PgOutputDecoder(describe)
    for payload in (begin(0x100), relation(OID, COLUMNS), relation(FOREIGN_OID, COLUMNS, name="foreign")):
        assert made.feed(payload) is None
    return made


def decoded(decoder: PgOutputDecoder, *payloads: bytes) -> list[Change]:
    """The changes of the open transaction once ``payloads`` are in it."""
    for payload in payloads:
        assert decoder.feed(payload) is None
    done = decoder.feed(commit(0x100, 0x180))
    assert done is not None
    return done.changes


# -- golden messages --------------------------------------------------------------------------------------------


def test_a_transaction_carries_what_its_begin_and_commit_say(decoder: PgOutputDecoder) -> None:
    # Given a transaction of three changes
    made = PgOutputDecoder(describe)
    made.assembler.xid_reference = 5 * 2**32

    # When its messages arrive
    results = [
        made.feed(payload)
        for payload in (
            begin(0x200, ts_us=1_763_800_000_123_456, xid=7),
            relation(OID, COLUMNS),
            insert(OID, (b"1", b"a", b"b")),
            commit(0x200, 0x280),
        )
    ]

    # Then there is one transaction, at the end
    assert results[:-1] == [None, None, None]
    done = results[-1]
    assert isinstance(done, Transaction)
    assert (done.commit_lsn, done.end_lsn, done.xid, done.commit_ts_us) == (
        0x200,
        0x280,
        5 * 2**32 + 7,
        1_763_800_000_123_456,
    )
    assert not made.in_transaction


def test_the_bytes_of_an_insert_as_postgres_sends_them() -> None:
    # Given the bytes of a Relation and an Insert message
    described = bytes.fromhex("52000040017075626c69630074006400020169640000000017ffffffff")
    described += bytes.fromhex("00626f64790000000019ffffffff")
    inserted = bytes.fromhex("49000040014e00027400000001377400000003c3a921")
    made = PgOutputDecoder(describe)
    made.feed(begin(1))

    # When they are decoded
    [change] = decoded(made, described, inserted)

    # Then it is row 7 of public.t
    assert (change.op, change.after, change.before, change.ordinal) == ("c", (b"7", "é!".encode()), None, 1)
    assert change.relation is not None
    assert change.relation.qualified_name == "public.t"
    assert change.relation.columns == (Column(name="id", type_oid=23), Column(name="body", type_oid=25))
    assert change.relation.key == ("id",)


def test_null_is_null_and_what_was_not_sent_is_unchanged(decoder: PgOutputDecoder) -> None:
    [change] = decoded(decoder, update(OID, (b"1", None, UNCHANGED)))

    assert (change.op, change.before, change.after) == ("u", None, (b"1", None, UNCHANGED))


def test_an_old_key_says_nothing_of_the_other_columns(decoder: PgOutputDecoder) -> None:
    # When a row moves to another key: Postgres sends nulls in place of the columns outside the key
    [change] = decoded(decoder, update(OID, (b"2", b"a", b"b"), old=(b"1", None, None)))

    # Then those are not known, and not NULL
    assert change.before == (b"1", UNCHANGED, UNCHANGED)


def test_a_whole_old_row_keeps_its_nulls(decoder: PgOutputDecoder) -> None:
    moved, gone = decoded(
        decoder,
        update(OID, (b"2", b"a", UNCHANGED), old=(b"1", None, b"b"), kind="O"),
        delete(OID, (b"2", None, b"b"), kind="O"),
    )

    assert moved.before == (b"1", None, b"b")
    assert (gone.op, gone.before, gone.after) == ("d", (b"2", None, b"b"), None)


def test_a_delete_carries_the_key(decoder: PgOutputDecoder) -> None:
    [change] = decoded(decoder, delete(OID, (b"9", None, None)))

    assert (change.op, change.before, change.after) == ("d", (b"9", UNCHANGED, UNCHANGED), None)


def test_a_truncate_names_each_table_and_foreign_ones_take_their_place(decoder: PgOutputDecoder) -> None:
    decoder.feed(relation(OTHER_OID, COLUMNS, name="t_part"))

    changes = decoded(decoder, truncate(OID, FOREIGN_OID, OTHER_OID), insert(OID, (b"1", b"", b"")))

    assert [(c.op, c.relation.oid if c.relation else 0, c.ordinal) for c in changes] == [
        ("t", OID, 1),
        ("t", OTHER_OID, 3),
        ("c", OID, 4),
    ]


def test_rows_of_foreign_tables_are_dropped_but_counted(decoder: PgOutputDecoder) -> None:
    foreign = (b"1", b"x", b"y")

    changes = decoded(
        decoder,
        insert(FOREIGN_OID, foreign),
        insert(OID, foreign),
        update(FOREIGN_OID, foreign),
        delete(FOREIGN_OID, foreign),
        message("somebody.else", b"x"),
        insert(OID, foreign),
    )

    assert [c.ordinal for c in changes] == [2, 6]


@pytest.mark.fault("logical-messages")
def test_our_messages_are_kept_byte_by_byte_and_others_only_counted(decoder: PgOutputDecoder) -> None:
    changes = decoded(decoder, message("pg_other", b"x"), message("cdc_agent.resync", b"\x00\xff"))

    assert changes == [Change("m", None, 2, (b"cdc_agent.resync", b"\x00\xff"), None)]


@pytest.mark.fault("logical-messages")
def test_a_message_outside_transactions_has_no_place() -> None:
    made = PgOutputDecoder(describe)

    assert made.feed(message("cdc_agent.x", b"x", transactional=False)) is None
    assert not made.in_transaction


def test_a_table_that_changes_is_described_again_before_its_next_row(decoder: PgOutputDecoder) -> None:
    first, second = decoded(
        decoder,
        insert(OID, (b"1", b"a", b"b")),
        relation(OID, (*COLUMNS, ("extra", 25))),
        insert(OID, (b"1", b"a", b"b", b"c")),
    )

    assert first.relation is not None
    assert second.relation is not None
    assert len(first.relation.columns) == 3
    assert second.relation.columns[3].name == "extra"


def test_types_and_origins_are_of_no_interest(decoder: PgOutputDecoder) -> None:
    payloads = [b"Y" + struct.pack("!I", 1) + text("public") + text("mood"), b"O" + struct.pack("!Q", 1) + text("node")]

    assert decoded(decoder, *payloads) == []


def test_a_lost_connection_takes_the_open_transaction_and_the_descriptions_with_it(decoder: PgOutputDecoder) -> None:
    decoder.feed(insert(OID, (b"1", b"a", b"b")))

    decoder.reset()

    assert not decoder.in_transaction
    decoder.feed(begin(0x100))
    with pytest.raises(DecodeError, match="before its description"):
        decoder.feed(insert(OID, (b"1", b"a", b"b")))


def test_truncating_thousands_of_tables_at_once_loses_none() -> None:
    # Given more tables than a part of a transaction holds
    oids = range(20_000, 32_000)
    made = PgOutputDecoder(describe)
    made.feed(begin(1))
    for oid in oids:
        made.feed(relation(oid, (("id", 23),)))

    # When one statement truncates them all
    part = made.feed(truncate(*oids))
    rest = made.feed(commit(1, 2))

    # Then every one of them is in what was handed over, once and in order
    assert part is not None
    assert rest is not None
    changes = [*part.changes, *rest.changes]
    assert [c.relation.oid for c in changes if c.relation] == list(oids)
    assert [c.ordinal for c in changes] == list(range(1, 12_001))


# -- round trip -------------------------------------------------------------------------------------------------

VALUES = st.one_of(st.none(), st.just(UNCHANGED), st.binary(max_size=20))


@given(data=st.data(), width=st.integers(1, 8), key_width=st.integers(0, 8))
def test_every_row_comes_back_as_it_was_sent(data: st.DataObject, width: int, key_width: int) -> None:
    # Given a table of some columns, and an old and a new row
    columns = [(f"column {i}", data.draw(st.integers(1, 2**32 - 1))) for i in range(width)]
    key = [name for name, _ in columns[:key_width]]
    new, old = (tuple(data.draw(st.lists(VALUES, min_size=width, max_size=width))) for _ in range(2))
    made = PgOutputDecoder(describe)
    made.feed(begin(1))

    # When they travel in each kind of message
    changes = decoded(
        made,
        relation(OID, columns, key=key),
        insert(OID, new),
        update(OID, new),
        update(OID, new, old=old),
        update(OID, new, old=old, kind="O"),
        delete(OID, old),
        delete(OID, old, kind="O"),
    )

    # Then they are the same rows; of an old key only the key counts
    only_key = tuple(value if i < key_width else UNCHANGED for i, value in enumerate(old))
    assert [(c.op, c.before, c.after) for c in changes] == [
        ("c", None, new),
        ("u", None, new),
        ("u", only_key, new),
        ("u", old, new),
        ("d", only_key, None),
        ("d", old, None),
    ]
    assert changes[0].relation is not None
    assert changes[0].relation.columns == tuple(Column(name=n, type_oid=t) for n, t in columns)


# -- damage -----------------------------------------------------------------------------------------------------

WHOLE = {
    "begin": begin(5),
    "commit": commit(0x100, 0x180),
    "relation": relation(OID, COLUMNS),
    "insert": insert(OID, (b"1", None, UNCHANGED)),
    "insert of text": insert(OID, (b"1", b"ab", b"cd")),
    "update": update(OID, (b"1", b"a", UNCHANGED)),
    "update of a key": update(OID, (b"1", b"a", b"b"), old=(b"2", None, None)),
    "update of a whole row": update(OID, (b"1", b"a", b"b"), old=(b"2", b"x", None), kind="O"),
    "delete": delete(OID, (b"2", None, None)),
    "truncate": truncate(OID, OTHER_OID),
    "message": message("cdc_agent.x", b"content"),
}


@pytest.mark.parametrize("payload", WHOLE.values(), ids=list(WHOLE))
def test_a_message_that_was_cut_anywhere_is_refused(payload: bytes) -> None:
    for length in range(len(payload)):
        made = PgOutputDecoder(describe) if payload[:1] == b"B" else begun()
        with pytest.raises(DecodeError):
            made.feed(payload[:length])
            pytest.fail(f"{length} of {len(payload)} bytes were taken for a message")


@given(st.sampled_from(list(WHOLE.values())), st.data())
@example(WHOLE["truncate"], None)
def test_damage_raises_a_decode_error_and_nothing_else(payload: bytes, data: st.DataObject | None) -> None:
    # Given a message with some of its bytes changed
    damaged = bytearray(payload)
    if data is not None:
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))

    # When it is decoded
    made = begun()
    try:
        made.feed(bytes(damaged))
        done = made.feed(commit(0x100, 0x180)) if made.in_transaction else None
    except DecodeError:
        return

    # Then it was refused, or what came out of it is whole
    for change in done.changes if done else ():
        for image in (change.before, change.after):
            if change.relation is not None and image is not None:
                assert len(image) == len(change.relation.columns)


@given(st.binary(max_size=60))
@example(b"")
def test_noise_raises_a_decode_error_and_nothing_else(noise: bytes) -> None:
    with contextlib.suppress(DecodeError):
        begun().feed(noise)


@pytest.mark.parametrize(
    "payloads",
    [
        [insert(OID, (b"1", b"a", b"b"))],
        [begin(1), begin(2)],
        [commit(1, 2)],
        [begin(1), insert(12_345, (b"1",))],
        [begin(1), b"S"],
    ],
    ids=["change outside", "begin inside", "commit outside", "row before its description", "unknown kind"],
)
def test_messages_out_of_order_are_refused(payloads: list[bytes]) -> None:
    made = PgOutputDecoder(describe)

    with pytest.raises(DecodeError):
        for payload in payloads:
            made.feed(payload)
