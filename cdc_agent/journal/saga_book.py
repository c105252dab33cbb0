"""The contract of every saga book: where each saga is, in the journal's own transactions, so that what a step emits
and the step counting as done become durable together."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cdc_agent.events import Event
from cdc_agent.journal.base import Entry

__all__ = ["ENDED", "SagaBook", "SagaRecord", "SagaState"]


class SagaState(enum.StrEnum):
    #: Its steps are being done, one after the other.
    RUNNING = "running"
    #: Somebody is to approve or reject.
    WAITING = "waiting"
    #: What was done is being undone, the last first.
    COMPENSATING = "compensating"
    #: Compensating, but something cannot be undone so far; it is tried again for ever.
    STUCK = "stuck"
    COMPLETED = "completed"
    COMPENSATED = "compensated"


ENDED = frozenset({SagaState.COMPLETED, SagaState.COMPENSATED})


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaRecord:
    """A saga, as it is. ``start`` is the command that began it; ``steps`` the shape of its declaration by then (``?``
    after the name of an approval, ``~`` after what can be undone); ``cursor`` the place in it of what is at hand.

    ``attempt`` counts how often that has failed, ``alternative`` which way of doing it is being tried; ``doubtful``:
    an attempt that failed may have had an effect. ``due_us`` is when it goes on (of an approval: when nobody may
    answer any more), None at its end. ``version`` counts its transitions, of
    which to begin is the first. ``orphaned``: nobody declares these steps.
    """

    id: str
    name: str
    state: SagaState
    start: Event
    steps: tuple[str, ...]
    due_us: int | None
    started_us: int
    changed_us: int
    cursor: int = 0
    alternative: int = 0
    attempt: int = 0
    doubtful: bool = False
    results: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    error: str = ""
    version: int = 0
    orphaned: bool = False
    number: int = 0

    @property
    def key(self) -> str:
        """What it is about."""
        return self.start.key or self.id

    @property
    def step(self) -> str:
        """The name of what is at hand; empty at the end."""
        names = self.step_names
        return names[self.cursor] if self.state not in ENDED and self.cursor < len(names) else ""

    @property
    def step_names(self) -> tuple[str, ...]:
        return tuple(step.rstrip("?~") for step in self.steps)

    @property
    def source(self) -> str:
        """Under which name its events are in the journal."""
        return f"saga/{self.name}"


class SagaBook(Protocol):
    """Safe to call from several threads. Whatever writes raises ``JournalFull``, and nothing was written then."""

    def begin(self, agent: str, reached: int, begun: Sequence[tuple[SagaRecord, Sequence[Event]]]) -> int:
        """Record new sagas, their events, and that ``agent`` has read the journal up to ``reached``, in one
        transaction. What it had read before, or a saga that is there, is left as it is. Returns how many were new."""
        ...

    def save(self, record: SagaRecord, events: Sequence[Event]) -> bool:
        """Record what became of a saga, and its events, in one transaction. ``record.version`` is that of before; it
        is counted up. False, and nothing is recorded, when somebody else was quicker."""
        ...

    def load(self, saga_id: str) -> SagaRecord | None: ...

    def find(self, *, state: str = "", name: str = "", after: int = 0, limit: int = 100) -> list[SagaRecord]:
        """Sagas in the order in which they began. ``state`` may also be ``open`` or ``orphaned``."""
        ...

    def due(self, now_us: int, *, limit: int, without: Collection[str]) -> list[SagaRecord]:
        """Those that can go on, the longest due first, without these and without orphans."""
        ...

    def next_due(self, *, without: Collection[str], waiting: bool = True) -> int | None:
        """When the next of them is due; not ``waiting``: of those that wait for nobody's approval."""
        ...

    def declare(self, declared: Mapping[str, Sequence[str]]) -> list[SagaRecord]:
        """These sagas have these steps: whoever is under way with others is an orphan from now on, whoever fits is
        none any more. Returns those that began while nobody declared any steps for them."""
        ...

    def counts(self) -> dict[str, int]:
        """How many are under way, by state; orphans count as ``orphaned``."""
        ...

    def history(self, record: SagaRecord) -> list[Entry]:
        """Everything that the saga has said, in order."""
        ...
