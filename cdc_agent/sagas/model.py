"""What a saga is: named steps, each with what undoes it, and approvals between them. Declarations only, checked when
they are made."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from cdc_agent.errors import ConfigError

__all__ = ["START", "Approval", "Function", "OnTimeout", "Refused", "Saga", "Step", "is_name"]

#: Called with a ``StepContext``; may be a coroutine function. What it returns is JSON.
Function = Callable[[Any], Any]
OnTimeout: TypeAlias = Literal["compensate", "continue"]

#: How the type of the command that begins a saga begins; its name follows.
START = "saga.start."
_MOST_S = 315_360_000.0
#: Without a colon: names are parts of idempotency keys.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


class Refused(Exception):
    """Raised by a step: the world said no, nothing was done, and to ask again is no use. The next alternative is
    tried, or the saga is compensated without undoing this step."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that is done in the world, and undone when a later step fails.

    ``do`` is tried ``attempts`` times, each at most ``timeout_s``, with ``backoff_s`` between, doubling; after that
    each of ``alternatives``, in the same way. ``undo`` is tried until it succeeds. It is called, too, for a step that
    failed or was cut short otherwise than by ``Refused``, and so may have been done: it has to bear that nothing was.
    """

    name: str
    do: Function
    undo: Function | None = None
    attempts: int = 3
    backoff_s: float = 1.0
    alternatives: Sequence[Function] = ()
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "alternatives", tuple(self.alternatives))
        _check_name(self.name, "step")
        for function in (*self.ways, *((self.undo,) if self.undo is not None else ())):
            if not callable(function):
                raise ConfigError(f"step {self.name}: {function!r} is no function", hint="def reserve(context): …")
        if not isinstance(self.attempts, int) or self.attempts < 1:
            raise ConfigError(f"step {self.name}: attempts is {self.attempts!r}", hint="1 or more")
        _check_seconds(self.backoff_s, f"step {self.name}: backoff_s", least_s=0)
        _check_seconds(self.timeout_s, f"step {self.name}: timeout_s")

    @property
    def ways(self) -> tuple[Function, ...]:
        """Every way to do it, in the order in which they are tried."""
        return (self.do, *self.alternatives)


@dataclass(frozen=True, slots=True)
class Approval:
    """Somebody has to say yes before the saga goes on. Who says no, or nobody in time, makes it compensate, unless
    ``on_timeout`` is ``continue``: then silence is a yes."""

    name: str
    timeout_s: float = 86_400.0
    on_timeout: OnTimeout = "compensate"

    def __post_init__(self) -> None:
        _check_name(self.name, "approval")
        _check_seconds(self.timeout_s, f"approval {self.name}: timeout_s")
        if self.on_timeout not in get_args(OnTimeout):
            raise ConfigError(
                f"approval {self.name}: on_timeout is {self.on_timeout!r}", hint='"compensate" or "continue"'
            )


@dataclass(frozen=True, slots=True)
class Saga:
    """Steps and approvals in order. ``on_stuck`` is called once with a ``StepContext`` when something could not be
    undone several times in a row: tell a human."""

    name: str
    steps: Sequence[Step | Approval]
    on_stuck: Function | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        _check_name(self.name, "saga")
        if not any(isinstance(step, Step) for step in self.steps):
            raise ConfigError(f"saga {self.name} has no steps", hint='Saga("refund", [Step("reserve", reserve)])')
        for step in self.steps:
            if not isinstance(step, Step | Approval):
                raise ConfigError(f"saga {self.name}: {step!r} is no step", hint="Step(…) or Approval(…)")
        names = [step.name for step in self.steps]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"saga {self.name} has two steps named {twice[0]}", hint="give each its own name")
        if self.on_stuck is not None and not callable(self.on_stuck):
            raise ConfigError(f"saga {self.name}: on_stuck is no function", hint="def alert(context): …")

    @property
    def shape(self) -> tuple[str, ...]:
        """What a saga under way remembers of its declaration, and what must not change meanwhile: names, which of them
        are approvals (``?``), and which can be undone (``~``)."""
        return tuple(_shape(step) for step in self.steps)


def is_name(name: object) -> bool:
    """Whether something may be called so."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _shape(step: Step | Approval) -> str:
    if isinstance(step, Approval):
        return f"{step.name}?"
    return step.name if step.undo is None else f"{step.name}~"


def _check_seconds(value: object, what: str, *, least_s: float = 0.001) -> None:
    # Written so that NaN is refused, too.
    if not isinstance(value, int | float) or not least_s <= value <= _MOST_S:
        raise ConfigError(f"{what} is {value!r}", hint="seconds, at most ten years; a day is 86400")


def _check_name(name: object, what: str) -> None:
    if not is_name(name):
        raise ConfigError(f"{name!r} is no name for a {what}", hint="letters, digits, _ . and -; at most 63 of them")
