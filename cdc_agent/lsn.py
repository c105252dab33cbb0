"""Positions in the write-ahead log: ``Lsn`` (one byte position) and ``Version`` (a total order of changes).

An event's own LSN is neither unique nor ordered (COPY writes many rows at one LSN, transactions interleave), so
nothing here compares event LSNs. Only ``(commit_lsn, ordinal)`` is a total order.
https://www.postgresql.org/docs/current/datatype-pg-lsn.html
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Lsn", "Version"]

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class Lsn(int):
    """A byte position in the WAL, written ``16/B374D848``."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read ``high/low`` in hexadecimal. Raises ``ValueError`` for anything else."""
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"not an LSN: {text!r} (expected hexadecimal like 16/B374D848)")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"


class Version(NamedTuple):
    """Where a change stands in the only total order there is: commits, then places inside one commit."""

    commit_lsn: Lsn
    ordinal: int

    def __str__(self) -> str:
        return f"{Lsn(self.commit_lsn)}.{self.ordinal}"


#: Before every change.
ZERO = Version(Lsn(0), 0)
