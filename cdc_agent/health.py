"""What is wrong right now, by component: the rooms report, ``/readyz`` reads."""

from __future__ import annotations

import threading
from dataclasses import dataclass

__all__ = ["Health", "Problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: where, what, and what to do. A ``serious`` one keeps the daemon from being ready."""

    name: str
    message: str
    hint: str = ""
    serious: bool = True


class Health:
    """The current problems; safe to use from any thread."""

    def __init__(self) -> None:
        self._problems: dict[str, Problem] = {}
        self._lock = threading.Lock()

    def report(self, name: str, error: Exception | str, hint: str = "") -> None:
        """``name`` has a problem; replaces what it had before."""
        message = getattr(error, "message", None) or str(error)
        found = Problem(name=name, message=message, hint=getattr(error, "hint", "") or hint)
        with self._lock:
            self._problems[name] = found

    def clear(self, name: str) -> None:
        with self._lock:
            self._problems.pop(name, None)

    def problems(self) -> list[Problem]:
        with self._lock:
            return [self._problems[name] for name in sorted(self._problems)]
