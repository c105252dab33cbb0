"""Reads along what the server sends, and counts the transactions that it sent more than once."""

from __future__ import annotations

import re
from collections import Counter

__all__ = ["Tap"]

#: Type and length of a message; then, in XLogData, its own type and three 64-bit numbers.
_HEAD = 5
_XLOG_HEAD = 25
_WAL2JSON_BEGIN = re.compile(rb'\{"action":"B","xid":(\d+)')


class Tap:
    """``begun`` counts how often each transaction was begun to be sent. One ``Session`` for each connection."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def session(self) -> Session:
        return Session(self)

    @property
    def redelivered(self) -> int:
        """Transactions that came again, each time counted."""
        return sum(self.begun.values()) - len(self.begun)


class Session:
    """The bytes of one connection from the server, in pieces as they come."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._rest = b""
        self._fresh = True

    def __call__(self, piece: bytes) -> None:
        # Before the first message stands the answer to a request for TLS: one byte.
        if self._fresh and piece[:1] == b"N":
            piece = piece[1:]
        self._fresh = False
        data = self._rest + piece
        at = 0
        while len(data) - at >= _HEAD:
            end = at + 1 + int.from_bytes(data[at + 1 : at + _HEAD])
            if end > len(data):
                break
            if data[at : at + 1] == b"d" and data[at + _HEAD : at + _HEAD + 1] == b"w":
                self._note(data[at + _HEAD + _XLOG_HEAD : end])
            at = end
        self._rest = data[at:]

    def _note(self, message: bytes) -> None:
        """Begin of pgoutput: B, final LSN, time, xid; of wal2json: an object."""
        if message[:1] == b"B" and len(message) == 21:
            self._tap.begun[int.from_bytes(message[17:21])] += 1
        elif found := _WAL2JSON_BEGIN.match(message):
            self._tap.begun[int(found[1])] += 1
