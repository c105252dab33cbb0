"""How calls of a stream are repeated: one that is full and one whose server is away are problems of their own names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cdc_agent.errors import StreamFull, StreamUnavailable
from cdc_agent.retry import Backoff, Retrier

__all__ = ["until_answered", "until_taken"]

T = TypeVar("T")
#: Whoever waits for a commit waits for this as well, once the server is back.
_BACKOFF = Backoff(initial_s=0.1, maximum_s=2.0)


def until_answered(retrier: Retrier, call: Callable[[], T]) -> T:
    """What a question returns, however long its server is away. Raises ``Stopping``, or any other error."""
    return retrier.paced(_BACKOFF).until_done("stream_server", call, (StreamUnavailable,))


def until_taken(retrier: Retrier, call: Callable[[], T]) -> T:
    """The same for what is written, which needs room, too."""
    return until_answered(retrier, lambda: retrier.until_done("stream", call, (StreamFull,)))
