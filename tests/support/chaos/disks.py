"""Small file systems of our own that can be full: one each under stream, ledger and store. Needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = ["Disk", "disks"]

_SIZE = 1 << 30
_PAGE = 4096


class Disk:
    """A tmpfs at ``path``. Memory is used only for what lies on it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """From now on nothing more fits."""
        found = os.statvfs(self.path)
        self._resize((found.f_blocks - found.f_bfree) * found.f_frsize)

    def free(self) -> None:
        self._resize(_SIZE)

    def _resize(self, size: int) -> None:
        # 0 would mean no limit at all.
        _run("mount", "-o", f"remount,size={max(size, _PAGE)}", str(self.path))


@contextmanager
def disks(folder: Path, *names: str) -> Iterator[dict[str, Disk] | str]:
    """One for each name, or the reason why there can be none."""
    with ExitStack() as mounted:
        made: dict[str, Disk] = {}
        for name in names:
            path = folder / name
            path.mkdir()
            try:
                _run("mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "cdc-agent-chaos", str(path))
            except (OSError, subprocess.CalledProcessError):
                break
            mounted.callback(_run, "umount", "--lazy", str(path))
            made[name] = Disk(path)
        yield made if len(made) == len(names) else "no tmpfs can be mounted here, which takes root"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
