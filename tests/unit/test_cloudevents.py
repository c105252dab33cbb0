"""An event and its CloudEvent say the same."""

from __future__ import annotations

import datetime as dt
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.cloudevents import from_cloudevent, to_cloudevent
from cdc_agent.events import Event

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
)


@given(events)
def test_an_event_comes_back_from_its_cloudevent(event: Event) -> None:
    assert from_cloudevent(orjson.loads(orjson.dumps(to_cloudevent(event)))) == event


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
