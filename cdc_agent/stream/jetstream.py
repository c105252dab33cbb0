"""The stream on NATS JetStream: one writer, readers of the same process, every message acknowledged by the server.

An acknowledgement of JetStream is not on a disk yet, unless the server is told to be so careful: what it took counts
as taken, and ``acknowledgeable`` follows when it is safe from a loss of power, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from cdc_agent.errors import IdentityMismatch, StreamError, StreamFull, StreamUnavailable
from cdc_agent.events import ChangeEvent, Transaction
from cdc_agent.lsn import Lsn
from cdc_agent.stream import marks, progress
from cdc_agent.stream.base import Batch, Position
from cdc_agent.stream.hold_back import HoldBack
from cdc_agent.stream.marks import Mark, Message
from cdc_agent.stream.nats_link import NatsLink, NatsPlace
from cdc_agent.stream.nats_log import NatsLog, State
from cdc_agent.stream.nats_pages import NatsPages
from cdc_agent.stream.nats_places import NatsPlaces
from cdc_agent.stream.news import News

__all__ = ["JetStream", "remove"]

#: The state of a stream that is not the one that we left.
_LOST = "STREAM_LOST"
LOST_HINT = (
    "look who removed or changed it; with CDC_AGENT_SOURCE__ON_MISMATCH=resync it is begun anew and every table is "
    "read again, and only what differs is embedded"
)
#: How often old messages are looked for, in seconds.
_PRUNE_INTERVAL_S = 30.0
#: Of what the server takes in one message, this much is left for its header.
_HEADER_BYTES = 16 * 1024
#: A stream that lacks what it acknowledged is looked at again for this long before that is believed.
_DOUBT_S = 5.0


class JetStream:
    """See ``stream.base.Stream``. ``hold_s``: how long after an acknowledgement power may still take it back.

    Raises ``StreamUnavailable`` while the server does not answer, and goes on by itself when it is back.
    """

    def __init__(
        self,
        place: NatsPlace,
        name: str,
        *,
        replicas: int = 1,
        hold_s: float,
        max_bytes: int = 4 << 30,
        retention_s: float = 86_400.0,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._max_bytes = max_bytes
        self._retention_s = retention_s
        self._wall_clock = wall_clock
        #: What was found to be another stream while it was in use.
        self.damage: IdentityMismatch | None = None
        self._clock = clock
        self._behind_since: float | None = None
        self._held = HoldBack(hold_s, clock)
        self._news = News()
        self._write_lock = threading.Lock()
        self._at = Mark()
        self._last = 0
        self._first = self._first_offset = 1
        self._bytes_before = 0
        #: The server may have more than we know of: look before the next write.
        self._uncertain = True
        self._refused = False
        self._next_prune = 0.0
        self._link = NatsLink(place)
        try:
            self._log = NatsLog(self._link, name, replicas=replicas, max_bytes=max_bytes)
            self._pages = NatsPages(self._log)
            self._readers = NatsPlaces(self._link, bucket_of(name), replicas=replicas)
            self._open()
        except BaseException:
            self._link.close()
            raise

    def _open(self) -> None:
        self._log.make()
        readers_are_new = self._readers.make()
        self._look()
        if readers_are_new and self._at.ledger:
            raise self._lost("has no record of its readers any more")

    # -- where it is -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See where the stream is, by its newest message. What is there and was not acknowledged to us counts."""
        state = self._log.state()
        if state is None:
            raise self._lost("was removed")
        newest = self._log.message(state.last) if state.first <= state.last else None
        mark = newest.mark if newest is not None else Mark()
        self._compare(state, mark)
        if state.last != self._last:
            self._pages.forget()
        self._last = state.last
        self._uncertain = False
        self._move(mark, ago_s=state.age_s)
        self._drop_void(state)
        self._look_below()

    def _compare(self, state: State, mark: Mark) -> None:
        """Raise unless what is there now has come from what was there before."""
        if self._last and self._at.ledger not in ("", mark.ledger):
            raise self._lost("belongs to another ledger now")
        if mark.head >= self._at.head and state.last >= self._last:
            self._behind_since = None
            return
        if self._behind_since is None:
            self._behind_since = self._clock()
        if self._clock() - self._behind_since < _DOUBT_S:
            raise StreamUnavailable(
                f"the stream {self._name} on JetStream is behind what it has acknowledged",
                hint="a new leader of a cluster may be for a moment; it is looked at again",
            )
        self.damage = IdentityMismatch(
            "STREAM_BEHIND",
            f"the stream {self._name} on JetStream has lost what it had acknowledged: its server lost its power, or "
            "was put back from an older copy",
            hint="start again: what it lacks comes again from Postgres, or every table is to be read again",
        )
        raise self.damage

    def _move(self, mark: Mark, *, ago_s: float = 0.0) -> None:
        self._at = mark
        self._held.took(mark.position.captured_lsn, self._last, ago_s=ago_s)
        self._news.tell(mark.position, mark.head)

    def _look_below(self) -> None:
        """See where the stream begins, by its oldest message."""
        state = self._log.state()
        oldest = self._log.message(state.first) if state is not None else None
        mark = oldest.mark if oldest is not None else self._at.moved(self._at.position, 0.0)
        self._first = state.first if state is not None else self._last + 1
        self._first_offset = mark.first
        self._bytes_before = mark.bytes - mark.size

    def _drop_void(self, state: State) -> None:
        """What a rebase left behind whose life ended before it was done."""
        oldest = self._log.message(state.first) if self._at.void else None
        if oldest is None or oldest.mark.void == self._at.void:
            return
        valid = self._log.first_entries(lambda mark: mark.void == self._at.void, state.first, state.last)
        self._log.purge(state.last if valid is None else valid.sequence - valid.mark.part)

    def _lost(self, what: str) -> IdentityMismatch:
        self.damage = IdentityMismatch(_LOST, f"the stream {self._name} on JetStream {what}", hint=LOST_HINT)
        return self.damage

    def check(self, after_offset: int) -> None:
        """Of what is to be read no message is missing; the server knows a damaged one by its checksum, and has it no
        more."""
        if max(after_offset, self._at.void) >= self._at.head:
            return
        state = self._log.state()
        oldest = self._log.entries_at(state.first) if state is not None else None
        if state is None or oldest is None or oldest.mark.after > max(after_offset, self._at.void):
            raise self._lost("lacks messages that were not read yet")
        missing = self._at.messages - oldest.mark.messages + 1 - state.entries
        if missing:
            raise self._lost(f"lacks {missing} of its messages")

    # -- what it belongs to ------------------------------------------------------------------------------------

    def ledger(self) -> str:
        return self._at.ledger

    def tie(self, ledger: str) -> None:
        with self._write_lock:
            if self._known().ledger != ledger:
                self._publish([Message(mark=replace(self._here(), ledger=ledger))])

    def begin_at(self, offset: int) -> None:
        with self._write_lock:
            if (head := self._known().head) > offset:
                raise StreamError(f"the stream is at {head} already", hint="it cannot count backward")
            mark = replace(self._here(), first=offset + 1, head=offset, after=offset, void=offset)
            self._publish([Message(mark=mark)])
            self._look_below()

    def rebase(self, captured_lsn: Lsn) -> None:
        with self._write_lock:
            at = self._known().moved(Position(captured_lsn=captured_lsn), self._wall_clock())
            self._held.begin_anew()
            self._publish([Message(mark=replace(at, void=at.head))])
            self._log.purge(self._last)
            self._pages.forget()
            self._look_below()

    def _known(self) -> Mark:
        """Where the stream is; asks the server after anything that may have gone wrong."""
        if self._uncertain:
            self._look()
        return self._at

    def _here(self) -> Mark:
        """The mark of a message that changes nothing."""
        return self._at.moved(self._at.position, self._wall_clock())

    # -- writing -----------------------------------------------------------------------------------------------

    def append(self, transactions: Sequence[Transaction], captured_lsn: Lsn | None = None) -> Position:
        with self._write_lock:
            at, now = self._known(), self._wall_clock()
            new, position = progress.fresh(transactions, at.position)
            if captured_lsn is not None:
                position = progress.reached(position, captured_lsn)
            messages = list(marks.messages_of(new, at, now=now, most_bytes=self._most_bytes()))
            then = messages[-1].mark if messages else at
            if position != then.position:
                messages.append(Message(mark=then.moved(position, now)))
            if messages:
                self._make_room(then.bytes - at.bytes)
                self._publish(messages)
            return position

    def _most_bytes(self) -> int:
        return min(marks.MOST_BYTES, self._link.max_payload_bytes - _HEADER_BYTES)

    def _publish(self, messages: Sequence[Message]) -> None:
        self._uncertain = True
        try:
            self._log.publish(messages, self._last)
        except StreamFull:
            self._refused = True
            raise
        self._uncertain = False
        self._pages.appended(self._at.head, self._last + 1)
        self._last += len(messages)
        self._move(messages[-1].mark)

    def _make_room(self, wanted: int) -> None:
        full = self._refused or self.size_bytes() + wanted > self._max_bytes
        if not full and self._wall_clock() < self._next_prune:
            return
        self._next_prune = self._wall_clock() + _PRUNE_INTERVAL_S
        self._prune(self._max_bytes if self._refused else self.size_bytes() + wanted - self._max_bytes)
        self._refused = False
        if wanted and self.size_bytes() + wanted > self._max_bytes and self.size_bytes() > 0:
            raise StreamFull(
                f"the stream holds {self.size_bytes()} of {self._max_bytes} bytes that an agent has not read",
                hint="see what holds the agents up in /readyz, or raise stream.max_bytes",
            )

    def _prune(self, needed_bytes: int) -> None:
        """Remove released messages that are old, and as many more as are needed. One whose position outlives a loss of
        power always stays."""
        released = min(self._readers.all().values(), default=0)
        horizon = self._wall_clock() - self._retention_s
        before = self._bytes_before

        def stays(mark: Mark) -> bool:
            young = mark.written_at > horizon and mark.bytes - mark.size - before >= needed_bytes
            return mark.head > released or young

        if self.size_bytes():
            oldest = self._log.first_entries(stays, self._first, self._last)
            if oldest is None:
                self._publish([Message(mark=self._here())])
            cut = self._last if oldest is None else oldest.sequence - oldest.mark.part
            if (below := min(cut, self._held.settled()[1])) > self._first:
                self._log.purge(below)
        if below := self._held.settled()[1]:
            self._log.purge_positions(below)
        self._look_below()

    def acknowledgeable(self) -> Lsn:
        return self._held.settled()[0]

    # -- readers -----------------------------------------------------------------------------------------------

    def release(self, consumer: str, offset: int) -> None:
        self._readers.advance(consumer, offset)

    def consumers(self) -> list[str]:
        return sorted(self._readers.all())

    def released(self, consumer: str) -> int:
        return self._readers.all().get(consumer, 0)

    def forget(self, consumer: str) -> None:
        self._readers.forget(consumer)

    # -- reading -----------------------------------------------------------------------------------------------

    def position(self) -> Position:
        return self._news.position

    def head_offset(self) -> int:
        return self._news.head

    def first_offset(self) -> int:
        return self._first_offset

    def size_bytes(self) -> int:
        return self._at.bytes - self._bytes_before

    def read(self, after_offset: int, *, limit: int, wait_s: float) -> Batch:
        position, head = self._news.wait(after_offset, wait_s)
        events: list[ChangeEvent] = []
        applied = Lsn(0)
        offset = max(after_offset, self._at.void)
        while len(events) < limit and offset < head:
            entry = self._pages.after(offset, first=self._first, last=self._last)
            start = max(0, offset + 1 - entry.first)
            stop = min(len(entry.block), start + limit - len(events))
            events.extend(entry.block.events(start, stop, entry.first))
            applied = max(applied, entry.block.complete_lsn(stop))
            offset = entry.first + stop - 1
        if wait_s > 0 and not events:
            # Nobody may have written, or nobody could.
            self._link.check_connected()
        if offset >= head:
            applied = max(applied, position.captured_lsn)
        return Batch(events=events, next_offset=offset, applied_lsn=applied, head_offset=head)

    def wake(self) -> None:
        self._news.wake()

    def close(self) -> None:
        self._link.close()


def remove(place: NatsPlace, name: str) -> None:
    """Remove a stream and the places of its readers."""
    link = NatsLink(place)
    try:
        NatsLog(link, name, max_bytes=0).remove()
        NatsPlaces(link, bucket_of(name)).remove()
    finally:
        link.close()


def bucket_of(name: str) -> str:
    return f"{name}_readers"
