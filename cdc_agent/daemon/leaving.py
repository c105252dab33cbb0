"""How an agent gives up its place in the log: nobody waits for it, and none of its index passes for complete."""

from __future__ import annotations

from collections.abc import Sequence

from cdc_agent.ledger.base import Generation, Ledger
from cdc_agent.stream.base import Stream

__all__ = ["give_up_place"]


def give_up_place(ledger: Ledger, stream: Stream, agent: str, generations: Sequence[Generation]) -> None:
    """Retention waits no longer for ``agent``, which keeps these generations and does not run. Should it come back it
    begins at the head of the stream, and they are read again as if for the first time.

    In this order a crash in between leaves a place that is held, or one that counts as never read.
    """
    for generation in generations:
        ledger.leave_collection(generation)
    stream.forget(agent)
    ledger.forget_agent(agent)
