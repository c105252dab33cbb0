"""Entries of a stream on JetStream by offset: fetched in runs, the last of which are kept for who comes again."""

from __future__ import annotations

import bisect
import collections
import threading
from dataclasses import dataclass

from cdc_agent.errors import StreamError
from cdc_agent.stream import codec
from cdc_agent.stream.nats_log import AT_ONCE, NatsLog, Stored

__all__ = ["Entry", "NatsPages", "entries_of"]

#: Runs are a window of messages each; several readers at different places share them.
_RUNS = 8
#: Places whose number is known without looking for it.
_PLACES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Offsets ``first`` to ``head``; before them comes ``after``. The message behind it has number ``next``."""

    first: int
    head: int
    after: int
    next: int
    block: codec.Block


class NatsPages:
    """Safe to use from any thread."""

    def __init__(self, log: NatsLog) -> None:
        self._log = log
        self._runs: collections.deque[list[Entry]] = collections.deque(maxlen=_RUNS)
        self._numbers: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._lock = threading.Lock()

    def forget(self) -> None:
        """What was known may be another stream's."""
        with self._lock:
            self._runs.clear()
            self._numbers.clear()

    def appended(self, offset: int, number: int) -> None:
        """What comes after ``offset`` has this number."""
        with self._lock:
            self._note(offset, number)

    def after(self, offset: int, *, first: int, last: int) -> Entry:
        """The entry that holds what comes after ``offset``; the stream has numbers ``first`` to ``last``.

        Raises ``StreamError`` when it is not there any more.
        """
        with self._lock:
            for run in self._runs:
                if run[0].after <= offset < run[-1].head:
                    return run[bisect.bisect_right(run, offset, key=lambda entry: entry.head)]
            # A replica may be behind; the leader is not.
            run = self._fetched(offset, first, last, direct=True) or self._fetched(offset, first, last, direct=False)
            if not run:
                raise StreamError(
                    f"entries after offset {offset} are not in the stream any more",
                    hint="retention removed them or the stream is another one; run `cdc-agent resync`",
                )
            self._runs.appendleft(run)
            self._note(run[-1].head, run[-1].next)
            return run[0]

    def _note(self, offset: int, number: int) -> None:
        self._numbers[offset] = number
        self._numbers.move_to_end(offset)
        while len(self._numbers) > _PLACES:
            self._numbers.popitem(last=False)

    def _fetched(self, offset: int, first: int, last: int, *, direct: bool) -> list[Entry]:
        """A run of entries, the first of which comes right after ``offset``; empty when that is not there."""
        number = self._numbers.get(offset) or self._number_of(offset, first, last)
        waiting: list[Stored] = []
        while 0 < number <= last:
            waiting += self._log.messages(number, last, direct=direct)
            if entries := entries_of(waiting, offset):
                return entries if entries[0].after <= offset else []
            number += AT_ONCE
        return []

    def _number_of(self, offset: int, first: int, last: int) -> int:
        found = self._log.first_entries(lambda mark: mark.head > offset, first, last)
        return found.sequence - found.mark.part if found else 0


def entries_of(messages: list[Stored], offset: int) -> list[Entry]:
    """The entries after ``offset`` of consecutive messages, up to the first gap. Fragments without an end were never
    acknowledged, and come again."""
    entries: list[Entry] = []
    parts: list[bytes] = []
    for message in (one for one in messages if one.has_entries):
        mark = message.mark
        parts = [*parts, message.payload] if mark.part else [message.payload]
        if mark.part != mark.parts - 1 or mark.head <= offset:
            continue
        if entries and mark.after != entries[-1].head:
            break
        if len(parts) == mark.parts:
            block = codec.decode(b"".join(parts))
            entries.append(
                Entry(first=mark.first, head=mark.head, after=mark.after, next=message.sequence + 1, block=block)
            )
    return entries
