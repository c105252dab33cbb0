"""Trying again: for as long as it takes, and not a moment longer than the process lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.errors import EmbedderUnavailable, SourceError, SourceUnavailable, StoreUnavailable
from cdc_agent.health import Health
from cdc_agent.retry import Backoff, Retrier, Stopping


class Waits(threading.Event):
    """A stop signal that notes how long it was waited on, and waits for nothing."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        super().__init__()
        self.delays: list[float] = []
        self._stop_at = stop_at

    def wait(self, timeout: float | None = None) -> bool:
        self.delays.append(timeout or 0.0)
        if len(self.delays) == self._stop_at:
            self.set()
        return self.is_set()


def failing(*errors: Exception, result: str = "done") -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return result

    return call


@pytest.fixture
def health() -> Health:
    return Health()


def test_a_call_is_repeated_until_it_succeeds_and_health_hears_of_it(health: Health) -> None:
    # Given a store that is away twice
    stop = Waits()
    retrier = Retrier(stop, health, Backoff())
    seen: list[list[str]] = []
    call = failing(StoreUnavailable("away", hint="start it"), StoreUnavailable("still away"))

    def watched() -> str:
        seen.append([f"{p.name}: {p.message}" for p in health.problems()])
        return call()

    # When it is called
    assert retrier.until_done("store", watched, (StoreUnavailable,)) == "done"

    # Then the problem stood while it lasted, and is gone
    assert seen == [[], ["store: away"], ["store: still away"]]
    assert health.problems() == []
    assert len(stop.delays) == 2


def test_an_error_that_nobody_named_is_raised_at_once(health: Health) -> None:
    stop = Waits()

    with pytest.raises(StoreUnavailable):
        Retrier(stop, health, Backoff()).until_done("x", failing(StoreUnavailable("away")), (SourceError,))
    assert stop.delays == []


def test_an_error_that_is_not_retryable_is_raised_at_once_even_if_its_kind_was_named(health: Health) -> None:
    stop = Waits()

    with pytest.raises(SourceError, match="syntax"):
        Retrier(stop, health, Backoff()).until_done("x", failing(SourceError("syntax")), (SourceError,))
    assert stop.delays == []


def test_a_stop_ends_the_waiting_and_leaves_the_problem_standing(health: Health) -> None:
    # Given a source that never comes back, and a stop during the third wait
    stop = Waits(stop_at=3)
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        raise SourceUnavailable("away")

    # When it is called
    with pytest.raises(Stopping):
        Retrier(stop, health, Backoff()).until_done("source", call, (SourceError,))

    # Then it was not called again
    assert calls == 3
    assert [p.name for p in health.problems()] == ["source"]


def test_nothing_is_begun_after_the_stop(health: Health) -> None:
    stop = threading.Event()
    stop.set()

    with pytest.raises(Stopping):
        Retrier(stop, health, Backoff()).until_done("x", lambda: pytest.fail("it was called"), ())


def test_a_stop_interrupts_a_long_delay(health: Health) -> None:
    # Given a delay of an hour
    stop = threading.Event()
    retrier = Retrier(stop, health, Backoff(initial_s=3600, maximum_s=3600))
    ended = threading.Event()
    waiting = threading.Event()

    def call() -> None:
        waiting.set()
        raise SourceUnavailable("away")

    def body() -> None:
        with pytest.raises(Stopping):
            retrier.until_done("source", call, (SourceError,))
        ended.set()

    thread = threading.Thread(target=body)
    thread.start()
    assert waiting.wait(10)

    # When the process is to stop
    began = time.monotonic()
    stop.set()

    # Then it ends at once
    assert ended.wait(10)
    assert time.monotonic() - began < 5
    thread.join(10)


def test_an_endpoint_that_names_a_time_is_not_asked_before_it(health: Health) -> None:
    stop = Waits()
    retrier = Retrier(stop, health, Backoff(initial_s=0.1, maximum_s=1.0))

    retrier.until_done(
        "embedding", failing(EmbedderUnavailable("slow down", retry_after_s=42.0)), (EmbedderUnavailable,)
    )

    assert stop.delays == [42.0]


@given(initial=st.floats(0.01, 2), factor=st.floats(1, 100), attempt=st.integers(1, 5_000))
def test_delays_grow_from_the_first_to_the_longest_and_never_overflow(
    initial: float, factor: float, attempt: int
) -> None:
    maximum = initial * factor
    backoff = Backoff(initial_s=initial, maximum_s=maximum)

    assert initial * 0.999 <= backoff.delay_s(attempt) <= maximum * 1.001
    if attempt > 20:
        assert backoff.delay_s(attempt) == pytest.approx(maximum)


def test_two_that_fail_together_do_not_come_back_together() -> None:
    backoff = Backoff(initial_s=1.0, maximum_s=30.0)

    assert len({backoff.delay_s(2) for _ in range(20)}) > 1
