"""The loop guard: what must not be handled, because the same agents would wake each other for ever. Pure but for the
fuse, which counts."""

from __future__ import annotations

import collections
from collections.abc import Callable
from zlib import crc32

from cdc_agent.events import Event
from cdc_agent.reactions.agent import Agent, Fuse

__all__ = ["MAX_HOPS", "FuseBox", "refusal", "step_of"]

#: Most events between an event and the one that began it all.
MAX_HOPS = 16
#: Keys that are counted at a time; of more, those that have been quiet longest are forgotten.
_MAX_KEYS = 10_000


def step_of(agent: str, event: Event) -> str:
    """How an event that this agent handles is remembered in the trail of those that come of it: the agent, and what
    it was about, in no more than is needed to know it again."""
    return f"{agent}:{crc32(f'{event.type} {event.key}'.encode('utf-8', 'surrogatepass')):08x}"


def refusal(agent: Agent, event: Event) -> tuple[str, str] | None:
    """The name of what speaks against handling the event, and a sentence; None if nothing does."""
    if event.hops > MAX_HOPS:
        return "hop_limit", f"{event.hops} events led to this one, at most {MAX_HOPS} may: {_told(event)}"
    if event.trail.count(step_of(agent.name, event)) > agent.revisits:
        return "loop", f"the agent has handled an event of this type and key on the way here: {_told(event)}"
    return None


def _told(event: Event) -> str:
    return " > ".join(step.partition(":")[0] for step in event.trail) or "(no trail)"


class FuseBox:
    """Counts what comes of each key. For one thread at a time. ``clock`` gives seconds."""

    def __init__(self, fuse: Fuse, clock: Callable[[], float]) -> None:
        self._fuse = fuse
        self._clock = clock
        self._seen: collections.OrderedDict[str, collections.deque[float]] = collections.OrderedDict()

    def blows(self, key: str) -> bool:
        """Count one more event of ``key``; whether that is one too many. An event about nothing is not counted."""
        if not key:
            return False
        now = self._clock()
        times = self._seen.setdefault(key, collections.deque())
        self._seen.move_to_end(key)
        if len(self._seen) > _MAX_KEYS:
            self._seen.popitem(last=False)
        while times and times[0] <= now - self._fuse.window_s:
            times.popleft()
        if len(times) >= self._fuse.events:
            return True
        times.append(now)
        return False
