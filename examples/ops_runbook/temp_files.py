"""Temporary files of one folder, found and removed without ever leaving it.

Folders are opened one below the other, each relative to the one before and never through a link, and files are removed
relative to the folder that is open. So neither ``..`` nor a link, even one that is put there meanwhile, leads outside.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Unsafe", "remove", "temporary_files"]

SUFFIX = ".tmp"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Unsafe(Exception):
    """What was named does not lie in the sandbox, or is no plain folder."""


def temporary_files(sandbox: Path, folder: str, *, before: float) -> list[str]:
    """Names of the plain ``.tmp`` files in a folder below the sandbox that were last written before this time."""
    with _opened(sandbox, folder) as descriptor, os.scandir(descriptor) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries if entry.name.endswith(SUFFIX)]
    return sorted(name for name, facts in found if stat.S_ISREG(facts.st_mode) and facts.st_mtime < before)


def remove(sandbox: Path, folder: str, names: Sequence[str]) -> int:
    """Remove these files of the folder; how many are gone, those that were gone already among them."""
    for name in names:
        if "/" in name or not name.endswith(SUFFIX):
            raise Unsafe(f"{name!r} is no temporary file of that folder")
    with _opened(sandbox, folder) as descriptor:
        for name in names:
            try:
                os.unlink(name, dir_fd=descriptor)
            except FileNotFoundError:
                continue
    return len(names)


@contextmanager
def _opened(sandbox: Path, folder: str) -> Iterator[int]:
    descriptor = _descend(sandbox, folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _descend(sandbox: Path, folder: str) -> int:
    parts = folder.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise Unsafe(f"{folder!r} is no path below the sandbox")
    descriptor = os.open(sandbox, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts:
        try:
            below = os.open(part, _FOLDER, dir_fd=descriptor)
        except (OSError, ValueError) as exc:
            # Of a link O_NOFOLLOW says that it is no folder.
            raise Unsafe(f"{folder!r} is no plain folder in the sandbox") from exc
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor
