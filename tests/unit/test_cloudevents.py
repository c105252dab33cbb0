"""An event and its CloudEvent say the same."""

from __future__ import annotations

import datetime as dt
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.cloudevents import from_cloudevent, published, to_cloudevent
from cdc_agent.events import Event, Kind

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
events = st.builds(
    Event,
    id=text.filter(bool),
    source=text.filter(bool),
    type=text.filter(bool),
    key=text,
    time=st.datetimes(timezones=st.just(dt.UTC)),
    data=json_values,
    correlation_id=text,
    causation_id=text,
    hops=st.integers(0, 100),
    kind=st.sampled_from(Kind),
    trail=st.lists(st.from_regex(r"[a-z]{1,9}:[0-9a-f]{8}", fullmatch=True), max_size=3).map(tuple),
)


@given(events)
def test_an_event_comes_back_from_its_cloudevent(event: Event) -> None:
    assert from_cloudevent(orjson.loads(orjson.dumps(to_cloudevent(event)))) == event


def test_a_change_is_published_with_debeziums_attributes_in_an_order_that_sorts() -> None:
    # Given changes of one transaction, and of one after it
    source = {"connector": "postgresql", "schema": "public", "table": "docs", "db": "app", "snapshot": "false"}
    changes = [
        Event(
            id=id_,
            source="postgresql/app",
            kind=Kind.CHANGE,
            type="public.docs",
            key="42",
            time=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            data={"op": "u", "before": None, "after": {"id": 42}, "ts_ms": 5, "source": source | {"lsn": 7, "txId": 9}},
        )
        for id_ in ("2A-2", "2A-10", "100-1")
    ]

    told = [published(change) for change in changes]

    assert told[0] == {
        "specversion": "1.0",
        "id": "2A-2",
        "source": "postgresql/app",
        "type": "io.debezium.connector.postgresql.DataChangeEvent",
        "subject": "public.docs/42",
        "time": "2026-01-01T00:00:00+00:00",
        "kind": "change",
        "hops": 0,
        "datacontenttype": "application/json",
        "data": changes[0].data,
        "partitionkey": "public.docs/42",
        "sequence": "000000000000002A-000002",
        "iodebeziumop": "u",
        "iodebeziumconnector": "postgresql",
        "iodebeziumtsms": "5",
        "iodebeziumdb": "app",
        "iodebeziumschema": "public",
        "iodebeziumtable": "docs",
        "iodebeziumlsn": "7",
        "iodebeziumtxid": "9",
        "iodebeziumsnapshot": "false",
    }
    sequences = [one["sequence"] for one in told]
    assert sorted(sequences) == sequences


def test_names_of_attributes_are_as_the_specification_wants_them() -> None:
    event = Event(
        id="e",
        source="s",
        type="t",
        time=dt.datetime.now(dt.UTC),
        data={},
        correlation_id="c",
        causation_id="d",
        key="k",
    )

    assert all(name.isascii() and name.isalnum() and name.islower() for name in to_cloudevent(event))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "specversion"),
        ({"specversion": "1.0"}, "id"),
        ({"specversion": "1.0", "id": "", "source": "s", "type": "t"}, "id"),
        ({"specversion": "1.0", "id": "e", "source": 5, "type": "t"}, "source"),
        ({"specversion": "1.0", "id": "e", "source": "s", "type": "t"}, "time"),
        ({"specversion": "1.0", "id": "e", "source": "s", "type": "t", "subject": 5}, "subject"),
        ({"specversion": "1.0", "id": "e", "source": "s", "type": "t", "hops": True}, "hops"),
    ],
)
def test_what_is_no_cloudevent_names_the_attribute(body: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        from_cloudevent(body)
