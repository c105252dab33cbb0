"""The wal2json decoder: golden messages, what the format leaves out, tables that change, damage."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.errors import DecodeError
from cdc_agent.events import UNCHANGED, Change, Column, Relation
from cdc_agent.source.wal2json import Wal2JsonDecoder

COLUMNS = {
    "id": 23,
    "title": 25,
    "price": 1700,
    "score": 701,
    "raw": 17,
    "ok": 16,
    "tags": 1009,
    "body": 25,
}


def a_relation(columns: dict[str, int] = COLUMNS, name: str = "t") -> Relation:
    return Relation(
        oid=1,
        root_oid=1,
        schema="public",
        name=name,
        columns=tuple(Column(name=n, type_oid=oid) for n, oid in columns.items()),
        key=("id",),
    )


class Catalog:
    """What the server's catalog says now; a test may change it."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, str], Relation | None] = {("public", "t"): a_relation()}
        self.asked: list[tuple[str, str]] = []

    def named(self, schema: str, name: str, *_columns: object) -> Relation | None:
        self.asked.append((schema, name))
        return self.tables.get((schema, name))


@pytest.fixture
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def decoder(catalog: Catalog) -> Wal2JsonDecoder:
    return Wal2JsonDecoder(catalog.named)


BEGIN = b'{"action":"B","xid":7,"timestamp":"2026-11-22 15:04:05.678901+00","lsn":"0/100","nextlsn":"0/180"}'
COMMIT = b'{"action":"C","xid":7,"timestamp":"2026-11-22 15:04:05.678901+00","lsn":"0/100","nextlsn":"0/180"}'


def change(action: str, table: str = "t", **images: dict[str, Any]) -> bytes:
    """A row message; values are Python's, or a ``bytes`` that is put into the JSON as it is."""
    message = f'{{"action":"{action}","xid":7,"schema":"public","table":"{table}"'
    for image, values in images.items():
        items = ",".join(_column(n, v) for n, v in values.items())
        message += f',"{image}":[{items}]'
    return (message + "}").encode()


def _column(name: str, value: Any) -> str:
    return f'{{"name":{json.dumps(name)},"typeoid":{COLUMNS.get(name, 25)},"value":{_json(value)}}}'


def _json(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False)


def decoded(decoder: Wal2JsonDecoder, *payloads: bytes) -> list[Change]:
    decoder.feed(BEGIN)
    for payload in payloads:
        assert decoder.feed(payload) is None
    done = decoder.feed(COMMIT)
    assert done is not None
    return done.changes


def after(decoder: Wal2JsonDecoder, **values: Any) -> dict[str, Any]:
    """The new row of one update that sends these columns."""
    [found] = decoded(decoder, change("U", columns=values, identity={"id": 1}))
    assert found.relation is not None
    assert found.after is not None
    return dict(zip([c.name for c in found.relation.columns], found.after, strict=True))


# -- golden messages --------------------------------------------------------------------------------------------


def test_a_transaction_carries_what_its_begin_and_commit_say(decoder: Wal2JsonDecoder) -> None:
    # Given a server in its third epoch
    decoder.assembler.xid_reference = 2 * 2**32 + 100

    # When a transaction passes that touched nothing of ours
    assert decoder.feed(BEGIN) is None
    assert decoder.in_transaction
    done = decoder.feed(memoryview(COMMIT))

    # Then its times are exact to the microsecond, and its id is whole
    assert done is not None
    assert (done.commit_lsn, done.end_lsn, done.xid) == (0x100, 0x180, 2 * 2**32 + 7)
    assert done.commit_ts_us == 1_795_359_845_678_901
    assert not decoder.in_transaction


def test_every_kind_of_value_takes_postgres_own_text_form(decoder: Wal2JsonDecoder) -> None:
    [found] = decoded(
        decoder,
        change(
            "I",
            columns={
                "id": 7,
                "title": 'café "x"\n',
                "price": b"1.50",
                "score": b"1e-07",
                "raw": "00ff",
                "ok": True,
                "tags": '{a,"b c"}',
                "body": None,
            },
        ),
    )

    assert found.op == "c"
    assert found.before is None
    assert found.after == (
        b"7",
        'café "x"\n'.encode(),
        b"1.50",
        b"1e-07",
        b"\\x00ff",
        b"t",
        b'{a,"b c"}',
        None,
    )


@pytest.mark.parametrize(
    "digits",
    [
        "12345678901234567890123456789012345678901234567890",
        "-12345678901234567890123456789012345678901234567890",
        "0.12345678901234567890123456789012345678901234567890",
        "123456789012345678901234567890.10",
        "1.000000000000000000000000",
        "1e+400",
        "18446744073709551616",
    ],
)
def test_a_number_keeps_every_digit(decoder: Wal2JsonDecoder, digits: str) -> None:
    assert after(decoder, id=1, price=digits.encode())["price"] == digits.encode()


def test_a_column_that_was_not_sent_is_unchanged_and_one_that_is_null_is_null(decoder: Wal2JsonDecoder) -> None:
    row = after(decoder, id=1, title=None, ok=False)

    assert row["body"] is UNCHANGED
    assert row["title"] is None
    assert row["ok"] == b"f"


@pytest.mark.fault("strange-numbers")
def test_a_null_number_may_have_been_nan_and_is_not_believed(decoder: Wal2JsonDecoder) -> None:
    # When wal2json writes null for a float and a numeric: NULL, NaN and infinity look alike
    row = after(decoder, id=1, price=None, score=None)

    # Then both count as not sent, so that who needs them reads the row
    assert row["price"] is UNCHANGED
    assert row["score"] is UNCHANGED


def test_updates_and_deletes_carry_the_old_key(decoder: Wal2JsonDecoder) -> None:
    moved, gone = decoded(
        decoder,
        change("U", columns={"id": 2, "title": "a"}, identity={"id": 1}),
        change("D", identity={"id": 2}),
    )

    assert moved.before is not None
    assert (moved.op, moved.before[0], moved.before[1]) == ("u", b"1", UNCHANGED)
    assert gone.before is not None
    assert (gone.op, gone.before[0], gone.after) == ("d", b"2", None)


def test_a_truncate_has_a_table_and_no_rows(decoder: Wal2JsonDecoder) -> None:
    [found] = decoded(decoder, change("T"))

    assert (found.op, found.before, found.after) == ("t", None, None)
    assert found.relation is not None


def test_foreign_tables_and_messages_are_dropped_but_counted(decoder: Wal2JsonDecoder, catalog: Catalog) -> None:
    # When rows of ours stand between those of others
    changes = decoded(
        decoder,
        change("I", table="foreign", columns={"x": 1}),
        change("I", columns={"id": 1}),
        b'{"action":"M","transactional":true,"prefix":"other","content":"x"}',
        change("T", table="foreign"),
        change("D", identity={"id": 1}),
    )

    # Then ours keep their places, and the catalog was asked once for each table
    assert [c.ordinal for c in changes] == [2, 5]
    assert catalog.asked == [("public", "foreign"), ("public", "t")]


def test_our_messages_are_kept(decoder: Wal2JsonDecoder) -> None:
    content = json.dumps({"token": "é"}, ensure_ascii=False)

    [found] = decoded(
        decoder,
        json.dumps({"action": "M", "transactional": True, "prefix": "cdc_agent.resync", "content": content}).encode(),
    )

    assert found == Change("m", None, 1, (b"cdc_agent.resync", content.encode()), None)


@pytest.mark.fault("logical-messages")
def test_a_message_outside_transactions_has_no_place(decoder: Wal2JsonDecoder) -> None:
    payload = b'{"action":"M","transactional":false,"prefix":"cdc_agent.x","content":"x"}'

    assert decoder.feed(payload) is None
    assert not decoder.in_transaction


def test_a_foreign_message_that_is_no_text_takes_its_place_and_nothing_else(decoder: Wal2JsonDecoder) -> None:
    [found] = decoded(
        decoder,
        b'{"action":"M","xid":7,"transactional":true,"prefix":"other","content":"\xff\xfe"}',
        change("I", columns={"id": 1}),
    )

    assert found.op == "c"


# -- tables that change -----------------------------------------------------------------------------------------


def test_a_new_column_makes_us_look_again(decoder: Wal2JsonDecoder, catalog: Catalog) -> None:
    # Given a row, then a column that is added
    decoder.feed(BEGIN)
    decoder.feed(change("I", columns={"id": 1}))
    catalog.tables["public", "t"] = a_relation({**COLUMNS, "extra": 25})

    # When the next row carries it
    decoder.feed(change("I", columns={"id": 2, "extra": "1.50"}))
    done = decoder.feed(COMMIT)

    # Then it is known
    assert done is not None
    first, second = done.changes
    assert first.relation is not None
    assert second.relation is not None
    assert second.after is not None
    assert "extra" not in first.relation.index
    assert second.after[second.relation.index["extra"]] == b"1.50"


def test_a_column_that_the_catalog_has_lost_is_ignored_and_asked_for_once(
    decoder: Wal2JsonDecoder, catalog: Catalog
) -> None:
    # When rows from before a DROP COLUMN are decoded after it
    rows = [change("I", columns={"id": n, "old": "x", "title": "t"}) for n in range(5)]
    changes = decoded(decoder, *rows)

    # Then the other columns are right
    assert [(c.after or ())[:2] for c in changes] == [(str(n).encode(), b"t") for n in range(5)]
    assert len(catalog.asked) == 1


def test_columns_in_another_order_are_matched_by_name(decoder: Wal2JsonDecoder) -> None:
    values = {name: f"{name}!" for name in reversed(COLUMNS)} | {"id": 5, "ok": True}

    [found] = decoded(decoder, change("I", columns=values))

    assert found.after is not None
    assert dict(zip(COLUMNS, found.after, strict=True))["title"] == b"title!"
    assert found.after[0] == b"5"


def test_a_new_connection_asks_again(decoder: Wal2JsonDecoder, catalog: Catalog) -> None:
    decoded(decoder, change("I", columns={"id": 1}))
    decoder.feed(BEGIN)

    decoder.reset()

    assert not decoder.in_transaction
    decoded(decoder, change("I", columns={"id": 1}))
    assert len(catalog.asked) == 2


# -- round trip and damage --------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.one_of(st.none(), TEXTS), min_size=1, max_size=6), st.data())
def test_every_text_comes_back_as_it_was_sent(values: list[str | None], data: st.DataObject) -> None:
    # Given a row of texts of which some are not sent
    columns = {"id": 23, **{f"c{i}": 25 for i in range(len(values))}}
    decoder = Wal2JsonDecoder(lambda *_: a_relation(columns))
    sent = {f"c{i}": v for i, v in enumerate(values) if data.draw(st.booleans())}

    # When it travels
    [found] = decoded(decoder, change("U", columns={"id": 1, **sent}, identity={"id": 1}))

    # Then each is its bytes, NULL, or unchanged
    wanted = [UNCHANGED if f"c{i}" not in sent else v if v is None else v.encode() for i, v in enumerate(values)]
    assert list((found.after or ())[1:]) == wanted


WHOLE: dict[str, Callable[[], bytes]] = {
    "begin": lambda: BEGIN,
    "commit": lambda: COMMIT,
    "insert": lambda: change("I", columns={"id": 1, "title": "a", "price": b"1.5"}),
    "update": lambda: change("U", columns={"id": 1, "title": "a"}, identity={"id": 1}),
    "delete": lambda: change("D", identity={"id": 1}),
    "truncate": lambda: change("T"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_message_that_was_cut_anywhere_is_refused(kind: str) -> None:
    payload = WHOLE[kind]()
    for length in range(len(payload)):
        decoder = Wal2JsonDecoder(Catalog().named)
        if kind != "begin":
            decoder.feed(BEGIN)
        with pytest.raises(DecodeError):
            decoder.feed(payload[:length])
            pytest.fail(f"{payload[:length]!r} was taken for a message")


@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damage_raises_a_decode_error_and_nothing_else(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(WHOLE[kind]())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    decoder = Wal2JsonDecoder(Catalog().named)
    if kind != "begin":
        decoder.feed(BEGIN)

    with contextlib.suppress(DecodeError):
        decoder.feed(bytes(damaged))


@pytest.mark.parametrize(
    "payload",
    [
        b'{"action":"B","xid":7,"timestamp":"yesterday","lsn":"0/1","nextlsn":"0/2"}',
        b'{"action":"B","xid":7,"timestamp":"2026-11-22 15:04:05+00","lsn":"somewhere","nextlsn":"0/2"}',
        b'{"action":"B"}',
        b'{"action":"X"}',
        b'{"action":7}',
        b"[]",
        b"",
        b'{"action":"I","schema":"public","table":"t","columns":[{"name":"title","value":"\xff"}]}',
    ],
)
def test_what_cannot_be_read_is_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        Wal2JsonDecoder(Catalog().named).feed(payload)
