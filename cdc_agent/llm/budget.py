"""What a model may cost: tokens of a day (UTC), of all agents together and of each.

Counted are the calls that are recorded, read once when a day is first looked at, and since then every call of this
process, whether its handler ended well or not. So a restart forgets only calls that no handler committed.
"""

from __future__ import annotations

import collections
import datetime as dt
import threading
from collections.abc import Callable, Iterable

from cdc_agent.errors import BudgetSpent
from cdc_agent.events import Event

__all__ = ["Budget"]

#: Facts since a moment.
Facts = Callable[[dt.datetime], Iterable[Event]]


class Budget:
    """Safe to use from several threads. ``name`` is whose calls among the facts are counted."""

    def __init__(self, name: str, *, daily_tokens: int | None, daily_tokens_per_agent: int | None) -> None:
        self._name = name
        self._most = daily_tokens
        self._most_per_agent = daily_tokens_per_agent
        self._lock = threading.Lock()
        self._day: dt.date | None = None
        self._spent: collections.Counter[str] = collections.Counter()

    def reserve(self, agent: str, tokens: int, now: dt.datetime, facts: Facts) -> dt.date:
        """Set this many aside; returns the day they belong to. Raises ``BudgetSpent`` where they are too many."""
        with self._lock:
            self._look_back(now.astimezone(dt.UTC), facts)
            assert self._day is not None
            self._check(self._spent.total(), tokens, self._most, "all agents")
            self._check(self._spent[agent], tokens, self._most_per_agent, f"agent {agent}")
            self._spent[agent] += tokens
            return self._day

    def settle(self, agent: str, day: dt.date, reserved: int, used: int) -> None:
        """So many were used of what was set aside that day."""
        with self._lock:
            if day == self._day:
                self._spent[agent] += used - reserved

    def _look_back(self, now: dt.datetime, facts: Facts) -> None:
        if self._day == now.date():
            return
        spent: collections.Counter[str] = collections.Counter()
        if self._most is not None or self._most_per_agent is not None:
            for fact in facts(now.replace(hour=0, minute=0, second=0, microsecond=0)):
                if fact.data["llm"] == self._name:
                    spent[fact.data["agent"]] += fact.data["prompt_tokens"] + fact.data["completion_tokens"]
        self._day, self._spent = now.date(), spent

    def _check(self, spent: int, tokens: int, most: int | None, whose: str) -> None:
        if most is not None and spent + tokens > most:
            raise BudgetSpent(
                f"{self._name}: {whose} used {spent} of {most} tokens for today, and this call may need {tokens}",
                hint="it begins anew at midnight UTC; or raise the budget, or let the handler do without the model",
            )
