"""Explores every state that a small model can reach, breadth first, and tells the shortest way to a violation.

A model is a start, a function that lists the steps which are possible in a state, and a function that says what is
wrong with a state (None: nothing). States are hashable. No time, no chance: the answer is the same each time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Generic[S]):
    """``steps`` yields ``(what happens, state after it)``."""

    start: S
    steps: Callable[[S], Iterator[tuple[str, S]]]
    wrong: Callable[[S], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """``violation`` is None when every reachable state is right; ``trace`` then is empty."""

    states: int
    violation: str | None = None
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        steps = "".join(f"\n  {number}. {step}" for number, step in enumerate(self.trace, start=1))
        return f"{self.states} states, {self.violation or 'nothing wrong'}{steps}"


def explore(model: Model[S], *, limit: int = 1_000_000) -> Explored:
    """Visit every reachable state, or stop at the first that is wrong. A model beyond ``limit`` states is an error."""
    came_from: dict[S, tuple[S, str] | None] = {model.start: None}
    waiting = deque([model.start])
    while waiting:
        state = waiting.popleft()
        violation = model.wrong(state)
        if violation is not None:
            return Explored(states=len(came_from), violation=violation, trace=_trace(came_from, state))
        for step, after in model.steps(state):
            if after not in came_from:
                came_from[after] = (state, step)
                waiting.append(after)
        if len(came_from) > limit:
            raise AssertionError(f"the model has more than {limit} states")
    return Explored(states=len(came_from))


def _trace(came_from: dict[S, tuple[S, str] | None], state: S) -> tuple[str, ...]:
    steps: list[str] = []
    while (arrival := came_from[state]) is not None:
        state, step = arrival
        steps.append(step)
    return tuple(reversed(steps))
