"""What is ended from outside is ended where it may be, and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cdc_agent.reactions.overdue import Interruptible, Overdue


def for_ever() -> None:
    while True:
        pass


def keep_to_oneself() -> None:
    try:
        for_ever()
    except BaseException:
        return


@pytest.mark.parametrize(("work", "raises"), [(for_ever, True), (keep_to_oneself, False)])
def test_work_that_computes_for_ever_is_ended_and_the_thread_goes_on(work: Callable[[], None], raises: bool) -> None:
    began = threading.Event()
    made: list[Interruptible] = []

    def worker() -> bool:
        made.append(Interruptible())
        began.set()
        try:
            made[0].run(work)
        except Overdue:
            return True
        return False

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(worker)
        assert began.wait(10)
        made[0].interrupt()

        assert ended.result(30) is raises
        # The same thread, which nothing is thrown into any more
        assert pool.submit(lambda: sum(range(1_000))).result(30) == 499_500


def test_nothing_is_thrown_behind_the_work_however_late_somebody_wants_to_end_it() -> None:
    # Given a thread that does one short piece of work after the other, and uses a lock of others behind each
    lock = threading.Condition()
    pieces: list[Interruptible] = []
    outcomes = {"done": 0, "ended": 0}

    def worker() -> None:
        while sum(outcomes.values()) < 20_000:
            piece = Interruptible()
            pieces.append(piece)
            try:
                piece.run(lambda: sum(range(20)))
            except Overdue:
                outcomes["ended"] += 1
            else:
                outcomes["done"] += 1
            with lock:
                lock.notify_all()

    # When somebody ends them at any moment
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(worker)
        while not working.done():
            if pieces:
                pieces[-1].interrupt()

        # Then it has lived through all of it, and nobody has gone away with the lock
        working.result(0)
    assert lock.acquire(timeout=1)
    assert outcomes["ended"] > 0
