"""What an agent is: a name, what it listens to, the function that handles it, and how patiently. Facts only."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cdc_agent.errors import ConfigError
from cdc_agent.events import Event, Kind

__all__ = ["OPS", "Agent", "Fuse", "Handler", "Retries", "Trigger"]

#: Kinds of change that an agent may ask for, as Debezium spells them.
OPS = frozenset("cudt")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")

#: Called with the event and a ``Context``; may be a coroutine function. What it returns is ignored.
Handler = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often an event is tried in all, and the seconds between: doubling, with jitter."""

    attempts: int = 5
    initial_s: float = 1.0
    maximum_s: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 < self.initial_s <= self.maximum_s:
            raise ConfigError(
                f"retries of {self.attempts} attempts, {self.initial_s} s to {self.maximum_s} s make no sense",
                hint="at least one attempt, and 0 < initial_s <= maximum_s",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuse:
    """At most so many events of one key in a window: a loop that leaves no trace in its events ends here."""

    events: int = 1_000
    window_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """What wakes an agent: events of a kind and of these types. A type may end in ``*``: then it is how types begin.

    Of changes only the ``ops``, and those that the agent wrote itself only with ``own``.
    """

    kind: Kind
    types: tuple[str, ...]
    ops: frozenset[str] = OPS
    own: bool = False

    def wants(self, kind: str, type_: str) -> bool:
        """Whether such events are worth a look."""
        return kind == self.kind and any(_matches(wanted, type_) for wanted in self.types)

    def matches(self, agent: str, event: Event) -> bool:
        """Whether this one is to be handled."""
        if event.kind is not Kind.CHANGE:
            return True
        written_by = event.trail[-1].partition(":")[0] if event.trail else ""
        return event.data["op"] in self.ops and (self.own or written_by != agent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """``when`` narrows what is handled. ``key`` says what an event is about: events of one key are handled in order,
    one at a time; those of others meanwhile, up to ``concurrency`` at once. An attempt takes ``timeout_s`` at most.
    ``revisits``: how often the agent may meet the same type and key again in one chain of causes.
    """

    name: str
    trigger: Trigger
    handler: Handler
    when: Callable[[Event], bool] | None = None
    key: Callable[[Event], str] | None = None
    retries: Retries = field(default_factory=Retries)
    timeout_s: float = 60.0
    concurrency: int = 4
    fuse: Fuse | None = field(default_factory=Fuse)
    revisits: int = 0
    from_start: bool = False
    every_s: float = 0.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} is no name for an agent", hint="letters, digits, _ . and -; at most 63 of them"
            )
        if self.timeout_s <= 0 or self.concurrency < 1 or self.revisits < 0:
            raise ConfigError(
                f"agent {self.name}: timeout_s, concurrency or revisits is too small",
                hint="timeout_s above 0, concurrency from 1, revisits from 0",
            )

    def key_of(self, event: Event) -> str:
        """What the event is about, to this agent. Raises what the agent's own function raises."""
        return event.key if self.key is None else str(self.key(event))


def _matches(wanted: str, type_: str) -> bool:
    return type_.startswith(wanted[:-1]) if wanted.endswith("*") else type_ == wanted
