"""Ports for what tests run: below those that `cdc_agent.demo.ports` draws from, and a stretch for each process, so that
what is stopped for a moment finds its port free when it comes back."""

from __future__ import annotations

import fcntl
import functools
import itertools
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_port"]

_FIRST, _STRETCHES, _LENGTH = 10_000, 10, 500


def free_port() -> int:
    """One that nobody listens on, and that this process has not handed out for a long time."""
    for port in itertools.islice(_ports(), _LENGTH):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no port of this process's stretch is free")


@functools.cache
def _ports() -> Iterator[int]:
    """Those of the first stretch that no other process has, round and round. It is ours while this process lives."""
    folder = Path(tempfile.gettempdir()) / "cdc-agent-ports"
    folder.mkdir(exist_ok=True)
    for number in range(_STRETCHES):
        lock = (folder / str(number)).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _held.append(lock)
        first = _FIRST + number * _LENGTH
        return itertools.cycle(range(first, first + _LENGTH))
    raise AssertionError(f"{_STRETCHES} processes have ports for tests already, see {folder}")


#: The lock goes with its file.
_held: list[object] = []
