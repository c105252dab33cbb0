"""The queue between the reader of the log and the writer of the stream: bounded by bytes, and nobody sleeps through."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cdc_agent import metrics
from cdc_agent.capture import _QUEUE_BYTES, _Queue
from cdc_agent.events import Transaction
from cdc_agent.lsn import Lsn
from tests.support.wait import until

T = TypeVar("T")
#: Longer than any test may take: who waits so long has not been told.
LONG_S = 60.0


def sized(size_bytes: int) -> Transaction:
    return Transaction(xid=1, commit_lsn=Lsn(1), commit_ts_us=1, changes=[], end_lsn=Lsn(2), size_bytes=size_bytes)


def waiting(pool: ThreadPoolExecutor, queue: _Queue, act: Callable[[], T]) -> Future[T]:
    """``act`` on another thread, once it waits for something to change."""
    future = pool.submit(act)
    until(lambda: bool(queue._changed._waiters))
    return future


def soon(future: Future[T]) -> T:
    began = time.monotonic()
    result = future.result(LONG_S + 10)
    assert time.monotonic() - began < LONG_S / 2
    return result


def test_a_queue_that_is_full_refuses_until_what_was_taken_is_durable() -> None:
    queue = _Queue()
    first, second = sized(_QUEUE_BYTES), sized(10)
    assert queue.put([first], 0)
    assert not queue.put([second], 0)

    # Taken alone frees nothing: it is not durable yet
    assert queue.take(0) == [first]
    assert not queue.put([second], 0)

    queue.taken([first])
    assert queue.put([second], 0)
    assert queue.take(0) == [second]


def test_a_queue_with_a_byte_of_room_takes_one_more_of_any_size() -> None:
    queue = _Queue()

    assert queue.put([sized(_QUEUE_BYTES - 1)], 0)
    assert queue.put([sized(_QUEUE_BYTES * 3)], 0)


def test_the_metric_counts_what_is_not_durable_yet() -> None:
    queue = _Queue()
    items = [sized(1), sized(1)]

    queue.put(items, 0)
    queue.put(items, 0)
    assert metrics.QUEUE_TRANSACTIONS._value.get() == 4

    queue.taken(queue.take(0))
    assert metrics.QUEUE_TRANSACTIONS._value.get() == 0


def test_who_waits_for_items_or_for_room_or_for_the_end_is_told_at_once() -> None:
    queue = _Queue()
    full = sized(_QUEUE_BYTES)

    with ThreadPoolExecutor(1) as pool:
        taking = waiting(pool, queue, lambda: queue.take(LONG_S))
        queue.put([full], 0)
        assert soon(taking) == [full]

        putting = waiting(pool, queue, lambda: queue.put([sized(1)], LONG_S))
        queue.taken([full])
        assert soon(putting)

        queue.take(0)
        ending = waiting(pool, queue, lambda: queue.take(LONG_S))
        queue.close()
        assert soon(ending) == []
