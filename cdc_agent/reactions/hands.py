"""What agents have in hand right now, in a small file that outlives the process: so that an event which kills the
process every time it is handled is known for it, and parked, instead of killing the daemon for ever.

Written without a sync: it is to survive the process, not the machine. A lost or torn file is an empty one.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import msgspec

__all__ = ["Hands"]

log = logging.getLogger(__name__)


class _Held(msgspec.Struct, frozen=True, kw_only=True):
    agent: str
    number: int
    crashes: int = 0
    #: False for one that was in hand when the process died, and has not been taken up again.
    in_hand: bool = True


class Hands:
    """For many threads. ``path`` None: nothing outlives the process."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._file = None if path is None else os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._held = {(held.agent, held.number): held for held in map(_after_death, self._read())}
        for held in self._held.values():
            log.warning(
                "in hand when the process died agent=%s entry=%d times=%d", held.agent, held.number, held.crashes
            )
        self._write()

    def crashes(self, agent: str, number: int) -> int:
        """How often the process has died in a row while this was being handled."""
        with self._lock:
            held = self._held.get((agent, number))
            return held.crashes if held else 0

    def take(self, agent: str, number: int) -> None:
        """It is being handled from now on."""
        with self._lock:
            held = self._held.get((agent, number)) or _Held(agent=agent, number=number)
            self._held[agent, number] = msgspec.structs.replace(held, in_hand=True)
            self._write()

    def put(self, agent: str, number: int) -> None:
        """Whatever came of it, the process lives."""
        with self._lock:
            self._held.pop((agent, number), None)
            self._write()

    def close(self) -> None:
        """The process ends as it should: what is still in hand is not to blame."""
        with self._lock:
            if self._file is None:
                return
            self._held = {place: held for place, held in self._held.items() if not held.in_hand}
            self._write()
            os.close(self._file)
            self._file = None

    def _read(self) -> list[_Held]:
        if self._file is None:
            return []
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        try:
            return msgspec.json.decode(content, type=list[_Held])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return []

    def _write(self) -> None:
        if self._file is None:
            return
        content = msgspec.json.encode(list(self._held.values()))
        os.pwrite(self._file, content, 0)
        os.ftruncate(self._file, len(content))


def _after_death(held: _Held) -> _Held:
    return msgspec.structs.replace(held, crashes=held.crashes + held.in_hand, in_hand=False)
