"""One daemon per state folder: a lock that the kernel releases when the process ends, however it ends."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from cdc_agent.errors import ConfigError

__all__ = ["lock_state"]


def lock_state(folder: Path) -> IO[str]:
    """Hold the folder until the file that this returns is closed. Raises ``ConfigError`` when somebody else has it."""
    path = folder / "lock"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = path.open("a")
    except OSError as exc:
        raise ConfigError(
            f"state_dir {folder} cannot be used: {exc.strerror}", hint="check the path and its owner"
        ) from exc
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        held.close()
        raise ConfigError(
            f"another cdc-agent runs on state_dir {folder}", hint="stop it, or give this one a state_dir of its own"
        ) from exc
    return held
