"""Searches overtake batches, one at a time passes, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cdc_agent.embedding import turnstile as room
from cdc_agent.embedding.turnstile import Turnstile
from tests.support.wait import until


class Crowd:
    """Threads that pass a turnstile, in an order that a test arranges."""

    def __init__(self) -> None:
        self.turnstile = Turnstile()
        self.passed: list[str] = []
        self._threads: list[threading.Thread] = []

    def batch(self, name: str) -> None:
        self._send(name, self.turnstile.for_batch, lambda: self.turnstile.waiting[1])

    def query(self, name: str) -> None:
        self._send(name, self.turnstile.for_query, lambda: self.turnstile.waiting[0])

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self._threads)

    def _send(self, name: str, enter: Callable, waiting: Callable[[], int]) -> None:
        """Start a thread and return when it waits; the turnstile must be held."""
        before = waiting()

        def go() -> None:
            with enter():
                self.passed.append(name)

        self._threads.append(threading.Thread(target=go, daemon=True))
        self._threads[-1].start()
        until(lambda: waiting() == before + 1, what=f"{name} to wait")


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


def test_a_search_overtakes_batches_that_came_before_it(crowd: Crowd) -> None:
    # Given a batch that holds the turnstile, and another batch and two searches that wait
    with crowd.turnstile.for_batch():
        crowd.batch("batch")
        crowd.query("search 1")
        crowd.query("search 2")

    # When the batch leaves
    crowd.join()

    # Then the searches passed first
    assert set(crowd.passed[:2]) == {"search 1", "search 2"}
    assert crowd.passed[2:] == ["batch"]


def test_a_flood_of_searches_does_not_stop_a_batch(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given patience for two searches, and a batch that waits with five of them
    monkeypatch.setattr(room, "PATIENCE", 2)
    with crowd.turnstile.for_query():
        crowd.batch("batch")
        for number in range(5):
            crowd.query(f"search {number}")

    # When all have passed
    crowd.join()

    # Then two searches overtook the batch, no more
    assert crowd.passed.index("batch") == 2
    assert len(crowd.passed) == 6


def test_one_at_a_time_passes(crowd: Crowd) -> None:
    # Given threads that look around while they are inside
    inside: list[int] = []
    most: list[int] = []

    def pass_often(enter: Callable) -> None:
        for _ in range(200):
            with enter():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    enters = [crowd.turnstile.for_batch, crowd.turnstile.for_query] * 2
    threads = [threading.Thread(target=pass_often, args=(enter,)) for enter in enters]

    # When they all want to pass
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # Then nobody ever met anybody
    assert max(most) == 1
    assert len(most) == 800


def test_the_turnstile_is_free_again_after_an_error(crowd: Crowd) -> None:
    # When the work inside fails
    with pytest.raises(ZeroDivisionError), crowd.turnstile.for_batch():
        _ = 1 / 0

    # Then the next one passes
    with crowd.turnstile.for_query():
        pass
    assert crowd.turnstile.waiting == (0, 0)


def test_it_knows_whether_somebody_searched_lately() -> None:
    # Given a turnstile that nobody has searched through
    now = [100.0]
    turnstile = Turnstile(clock=lambda: now[0])
    assert not turnstile.queried_within(60.0)

    # When somebody does
    with turnstile.for_query():
        pass

    # Then it knows for as long as it is asked about; batches do not count
    now[0] = 159.9
    assert turnstile.queried_within(60.0)
    now[0] = 160.0
    with turnstile.for_batch():
        assert not turnstile.queried_within(60.0)
