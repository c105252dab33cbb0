"""What happens in which cycle, drawn from the seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Cycle", "schedule"]

#: How often each death is drawn.
_WEIGHTS = {"kill": 8, "kill_starting": 2, "failpoint": 8, "sigterm": 2, "takeover": 1, "rival": 1}
#: A disturbance every few cycles.
_DISTURBED = 0.45


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """One life of the daemon: what it must live through, if anything, and how it ends. ``seed`` is for the details."""

    number: int
    death: str
    disturbance: str | None
    seed: str

    def rng(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}:{what}")


def schedule(seed: int, cycles: int, deaths: Sequence[str], disturbances: Sequence[str]) -> Iterator[Cycle]:
    """Disturbances come from a bag that is emptied before any comes twice."""
    rng = random.Random(f"{seed}:schedule")
    weights = [_WEIGHTS[name] for name in deaths]
    bag: list[str] = []
    for number in range(1, cycles + 1):
        disturbance = None
        if disturbances and (not deaths or rng.random() < _DISTURBED):
            if not bag:
                bag = rng.sample(list(disturbances), len(disturbances))
            disturbance = bag.pop()
        death = rng.choices(list(deaths), weights)[0] if deaths else "kill"
        # Who is to die at a failpoint may do so at once: nothing else is tried on it.
        if disturbance is not None and death in ("failpoint", "kill_starting"):
            death = "kill" if "kill" in deaths else death
        yield Cycle(number=number, death=death, disturbance=disturbance, seed=f"{seed}:{number}")
