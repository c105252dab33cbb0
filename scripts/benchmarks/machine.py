"""What the kernel says: load, CPU time and memory of processes. Linux only."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["PeakMemory", "children", "cpu_seconds", "load_average", "say"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def say(line: str) -> None:
    """A line for whoever watches, at once."""
    print(line, flush=True)


def load_average() -> float:
    """Of the last minute."""
    return os.getloadavg()[0]


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads that the process has or had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def children(pid: int) -> list[int]:
    """Processes that this one started and that still run."""
    return [
        int(child)
        for tasks in Path(f"/proc/{pid}/task").iterdir()
        for child in (tasks / "children").read_text().split()
    ]


def resident_mb(pid: int) -> float:
    """Memory of the process that is in RAM and not merely a mapped file."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} does not say how much memory it has")


class PeakMemory:
    """Looks at a process often while the block runs: ``growth_mb`` is how far it rose above where it began."""

    def __init__(self, pid: int, interval_s: float = 0.02) -> None:
        self._pid = pid
        self._interval_s = interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before_mb = self.peak_mb = resident_mb(pid)

    @property
    def growth_mb(self) -> float:
        return self.peak_mb - self.before_mb

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._interval_s):
            self.peak_mb = max(self.peak_mb, resident_mb(self._pid))
