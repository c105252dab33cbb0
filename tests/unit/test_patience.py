"""Who may wait for the ledger's server: the daemon's loops, and what they have done aside; nobody else."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cdc_agent.agents.aside import Aside
from cdc_agent.daemon.threads import Threads, in_a_loop
from cdc_agent.retry import Stopping


def told_in_a_loop(question: Callable[[], bool]) -> bool:
    """The answer of a thread of the daemon's own."""
    answers: list[bool] = []
    threads = Threads(threading.Event())
    threads.start("loop", lambda: answers.append(question()))
    assert threads.join(10) == []
    assert threads.failure is None
    return answers[0]


def test_a_loop_may_wait_and_nobody_else() -> None:
    answers: list[bool] = []
    other = threading.Thread(target=lambda: answers.append(in_a_loop()))
    other.start()
    other.join(10)

    assert (answers, in_a_loop(), told_in_a_loop(in_a_loop)) == ([False], False, True)


def test_what_a_loop_has_done_aside_may_wait_too() -> None:
    # Given two who have something done by the same thread aside: a loop, and one who may not wait
    aside = Aside("aside")

    def asked() -> bool:
        return aside.run(in_a_loop, meanwhile=lambda: None, every_s=1.0)

    # Then each is what it is, there as well
    assert (told_in_a_loop(asked), asked(), told_in_a_loop(asked)) == (True, False, True)
    aside.close()


def test_a_loop_that_stops_while_it_waits_has_not_failed() -> None:
    def stopping() -> None:
        raise Stopping

    stop = threading.Event()
    threads = Threads(stop)
    threads.start("loop", stopping)

    assert threads.join(10) == []
    assert threads.failure is None
    assert stop.is_set()
