"""Debezium's envelope, both ways."""

from __future__ import annotations

import json

import pytest

from cdc_agent.envelope import UNAVAILABLE_VALUE, from_debezium, to_debezium
from cdc_agent.events import UNCHANGED, ChangeEvent, Column, Op, Relation, Row
from cdc_agent.lsn import Lsn, Version

TYPES = {
    "id": (23, b"7"),
    "name": (25, b"caf\xc3\xa9"),
    "price": (1700, b"1.50"),
    "nan": (701, b"NaN"),
    "ok": (16, b"t"),
    "raw": (17, b"\\x00ff"),
    "tags": (1009, b'{a,NULL,"b \\"c\\""}'),
    "body": (3802, b'{"a": [1, 2]}'),
    "at": (1184, b"2026-11-22 10:00:00+00"),
    "forever": (1184, b"infinity"),
    "nothing": (25, None),
    "long": (25, UNCHANGED),
}
RELATION = Relation(
    oid=1,
    root_oid=1,
    schema="public",
    name="t",
    columns=tuple(Column(name=name, type_oid=oid) for name, (oid, _) in TYPES.items()),
    key=("id",),
)
ROW = Row(RELATION, tuple(raw for _, raw in TYPES.values()))


def event(op: Op, before: Row | None, after: Row | None) -> ChangeEvent:
    return ChangeEvent(
        op=op,
        version=Version(Lsn(0x16B374D848), 3),
        xid=729,
        commit_ts_us=1_763_800_000_123_456,
        relation=RELATION,
        before=before,
        after=after,
    )


@pytest.mark.parametrize(
    ("op", "before", "after"),
    [
        (Op.CREATE, None, ROW),
        (Op.UPDATE, ROW, ROW),
        (Op.DELETE, ROW, None),
        (Op.READ, None, ROW),
        (Op.TRUNCATE, None, None),
    ],
)
def test_an_event_comes_back_from_its_envelope_as_it_was(op: Op, before: Row | None, after: Row | None) -> None:
    # Given an event
    given = event(op, before, after)

    # When it travels as JSON in Debezium's envelope
    back = from_debezium(json.loads(json.dumps(to_debezium(given, "app"))), RELATION)

    # Then it is the same event, value by value
    assert (back.op, back.version, back.xid, back.commit_ts_us) == (
        given.op,
        given.version,
        given.xid,
        given.commit_ts_us,
    )
    for mine, theirs in ((given.before, back.before), (given.after, back.after)):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert [repr(v) for v in mine.values()] == [repr(v) for v in theirs.values()]


def test_a_value_that_was_not_sent_is_debeziums_placeholder_and_never_null() -> None:
    envelope = to_debezium(event(Op.UPDATE, None, ROW))

    assert envelope["after"]["long"] == UNAVAILABLE_VALUE
    assert envelope["after"]["nothing"] is None
    assert envelope["source"]["sequence"] == json.dumps([str(0x16B374D848), "3"])


def test_a_logical_message_keeps_its_bytes() -> None:
    given = ChangeEvent(
        op=Op.MESSAGE, version=Version(Lsn(5), 1), xid=1, commit_ts_us=0, message=("cdc_agent.x", b"\x00\xff")
    )

    assert from_debezium(to_debezium(given), None).message == given.message
