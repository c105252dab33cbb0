"""One daemon per state folder: a lock that the kernel releases when the process ends, however it ends.

A second daemon on the same folder waits as a standby, and takes over.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from pathlib import Path
from typing import IO

from cdc_agent.daemon.notify import notify
from cdc_agent.errors import ConfigError

__all__ = ["hold_state", "try_state"]

log = logging.getLogger(__name__)

#: How often a standby looks whether the folder is free.
_POLL_S = 0.25


def hold_state(folder: Path, stop: threading.Event) -> IO[str] | None:
    """Hold the folder until the file that this returns is closed; waits while somebody else does.

    Returns None when ``stop`` is set first. Raises ``ConfigError`` when the folder cannot be used.
    """
    lock = _opened(folder)
    if not _taken(lock):
        _say_standby(folder, lock)
        while not _taken(lock):
            notify("WATCHDOG=1")
            if stop.wait(_POLL_S):
                lock.close()
                return None
        log.info("taking over state_dir=%s", folder)
        notify("STATUS=taking over")
    _sign(lock)
    return lock


def try_state(folder: Path) -> IO[str] | None:
    """Hold the folder if nobody does."""
    lock = _opened(folder)
    if _taken(lock):
        _sign(lock)
        return lock
    lock.close()
    return None


def _opened(folder: Path) -> IO[str]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A link there could lead to a file that we would empty.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        return os.fdopen(os.open(folder / "lock", flags, 0o600), "a+")
    except OSError as exc:
        raise ConfigError(
            f"state_dir {folder} cannot be used: {exc.strerror}", hint="check the path and its owner"
        ) from exc


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(lock: IO[str]) -> None:
    """For a standby to say whom it waits for."""
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()


def _say_standby(folder: Path, lock: IO[str]) -> None:
    lock.seek(0)
    holder = lock.read().strip() or "unknown"
    log.warning("standby: another cdc-agent runs on state_dir=%s pid=%s, taking over when it ends", folder, holder)
    notify(f"READY=1\nSTATUS=standby: process {holder} runs on the same state_dir")
