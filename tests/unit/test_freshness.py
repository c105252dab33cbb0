"""The history of freshness: honest quantiles of any span of the last hour, in a bounded place."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.freshness import BUCKET_S, FreshnessHistory


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_before_anything_was_found_there_is_nothing() -> None:
    history = FreshnessHistory()

    assert history.history() == []
    assert history.over(60) is None
    assert history.newest() is None


@given(st.lists(st.floats(0.0, 100_000.0), min_size=1, max_size=300))
def test_quantiles_are_at_most_two_percent_above_the_true_ones(ages: list[float]) -> None:
    history = FreshnessHistory(clock=Clock())

    history.observe(ages)

    found = history.over(60)
    assert found is not None
    assert found.count == len(ages)
    assert found.max_s == pytest.approx(max(0.001, *ages))
    for share, quantile in ((0.5, found.p50_s), (0.99, found.p99_s)):
        true = max(0.001, sorted(ages)[math.ceil(share * len(ages)) - 1])
        assert true * 0.999 <= quantile <= true * 1.021


def test_a_span_counts_its_documents_and_not_its_buckets() -> None:
    # Given a bucket with one slow document and one with ninety-nine quick ones
    clock = Clock()
    history = FreshnessHistory(clock=clock)
    history.observe([50.0])
    clock.now += BUCKET_S
    history.observe([0.1] * 99)

    # Then the median of both is quick, which no average of two medians would say
    both = history.over(60)
    assert both is not None
    assert both.p50_s == pytest.approx(0.1, rel=0.03)
    assert both.max_s == 50.0
    assert [bucket.count for bucket in history.history()] == [1, 99]


def test_an_hour_later_it_is_forgotten_but_for_when_it_was_last() -> None:
    clock = Clock()
    history = FreshnessHistory(clock=clock)
    history.observe([0.2])

    clock.now += 3_700

    assert history.history() == []
    assert history.over(60) is None
    newest = history.newest()
    assert newest is not None
    assert newest.count == 1


def test_a_day_of_traffic_takes_the_place_of_an_hour() -> None:
    clock = Clock()
    history = FreshnessHistory(clock=clock)
    for _ in range(24 * 360):
        history.observe([0.1])
        clock.now += BUCKET_S

    assert len(history._buckets) == 360
    assert 359 <= len(history.history()) <= 360
