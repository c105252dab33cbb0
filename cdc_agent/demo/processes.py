"""Processes of a server that is not allowed to be root: who they run as, which of them live, and how they die together.

Owns what the operating system must be asked. Where there is no /proc, the answers are what ``kill`` alone can tell.
"""

from __future__ import annotations

import os
import pwd
import signal
import time
from pathlib import Path
from typing import Any

__all__ = ["POLL_S", "becomes_free", "clean_environment", "is_alive", "kill_family", "serves", "unprivileged_account"]

#: How often a process or its files are looked at while something is awaited.
POLL_S = 0.02
_HAS_PROC = Path("/proc/self/stat").exists()


def unprivileged_account() -> dict[str, Any]:
    """Postgres refuses to run as root: what ``subprocess`` needs to run it as ``nobody`` instead."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def clean_environment() -> dict[str, str]:
    """Ours without libpq's variables, which would change what the server does; English, because we read its log."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")} | {"LC_ALL": "C"}


def serves(pid: int, data_dir: Path) -> bool | None:
    """The process was started on ``data_dir``; None where there is no telling, and Postgres must judge for itself."""
    try:
        return os.fsencode(data_dir) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None


def kill_family(postmaster: int) -> None:
    """Kill a server and its backends; each backend is in a session of its own, so no process group holds them."""
    _send(postmaster, signal.SIGSTOP)  # From here on it starts no more of them.
    family = [postmaster, *_children_of(postmaster)]
    for pid in family:
        _send(pid, signal.SIGKILL)
    while _HAS_PROC and any(is_alive(pid) for pid in family):
        time.sleep(POLL_S)


def becomes_free(segment: int | None, timeout_s: float) -> bool:
    """Wait until nobody is attached to a System V shared memory segment; False if somebody still is."""
    deadline = time.monotonic() + timeout_s
    while _attached(segment) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return not _attached(segment)


def _attached(segment: int | None) -> int:
    # Columns: key shmid perms size cpid lpid nattch …
    lines = (line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:])
    return sum(int(words[6]) for words in lines if int(words[1]) == segment)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # It was quicker than we were.


def _children_of(parent: int) -> list[int]:
    numbers = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in numbers if _state_and_parent(pid)[1] == parent]


def is_alive(pid: int) -> bool:
    """A zombie is not: it holds nothing any more."""
    if _HAS_PROC:
        return _state_and_parent(pid)[0] not in ("", "Z", "X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _state_and_parent(pid: int) -> tuple[str, int]:
    try:
        # The name in parentheses may itself hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[1])
