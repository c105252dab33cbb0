"""What each message of a stream on JetStream says about itself and about everything before it. Pure.

A message holds a part of one transaction: at most a hundred changes and half a megabyte. Its header ``Cdc-Agent`` is a
mark, which tells how far the stream is with it: so the position is never on a disk without the changes that it speaks
of, and whoever sees the newest message knows all. A message without changes only moves the position. A single change
that is larger than the server takes lies in fragments, of which only the last one counts.

The mark is a JSON array: the number of its format, then the fields of ``Mark`` in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from cdc_agent.errors import StreamError
from cdc_agent.events import Transaction
from cdc_agent.lsn import Lsn, Version
from cdc_agent.stream import codec, progress
from cdc_agent.stream.base import Position

__all__ = ["HEADER", "Mark", "Message", "messages_of", "read_mark", "write_mark"]

HEADER = "Cdc-Agent"
_FORMAT = 1
#: A message is cut at this many changes, and at about this many bytes.
_MOST_CHANGES = 100
MOST_BYTES = 512 * 1024


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """How far the stream is with a message.

    Its entries are ``first`` to ``head``; none for ``first`` = ``head`` + 1. The entry before them is ``after``, or
    was, before the stream began to count on from elsewhere. ``part`` is the place of a fragment among ``parts``.
    Up to ``void`` entries tell of a history that never happened. ``size`` is that of its entries, ``bytes`` that of all
    that ever were, and ``messages`` how many messages those were.
    """

    first: int = 1
    head: int = 0
    after: int = 0
    part: int = 0
    parts: int = 1
    captured: int = 0
    partial_lsn: int | None = None
    partial_ordinal: int | None = None
    void: int = 0
    size: int = 0
    bytes: int = 0
    messages: int = 0
    written_at: float = 0.0
    ledger: str = ""

    @property
    def position(self) -> Position:
        partial = None
        if self.partial_lsn is not None and self.partial_ordinal is not None:
            partial = Version(Lsn(self.partial_lsn), self.partial_ordinal)
        return Position(captured_lsn=Lsn(self.captured), partial=partial)

    def moved(self, position: Position, written_at: float) -> Mark:
        """The mark of a message that has no entries."""
        lsn, ordinal = position.partial or (None, None)
        return msgspec.structs.replace(
            self,
            first=self.head + 1,
            after=self.head,
            part=0,
            parts=1,
            captured=int(position.captured_lsn),
            partial_lsn=None if lsn is None else int(lsn),
            partial_ordinal=ordinal,
            size=0,
            written_at=written_at,
        )

    def grown(self, count: int, size: int, messages: int) -> Mark:
        """The same with entries."""
        return msgspec.structs.replace(
            self,
            head=self.head + count,
            size=size,
            bytes=self.bytes + size,
            messages=self.messages + messages,
        )


_Packed = tuple[int, int, int, int, int, int, int, int | None, int | None, int, int, int, int, float, str]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Packed).decode


def write_mark(mark: Mark) -> str:
    return _encode((_FORMAT, *msgspec.structs.astuple(mark))).decode()


def read_mark(text: str) -> Mark:
    """Raises ``StreamError`` for a message that is not ours, or of a later version."""
    try:
        packed = _decode(text)
    except msgspec.DecodeError as exc:
        raise StreamError(
            "a message of the stream is not of this version of us", hint="it is another's, or of a newer cdc-agent"
        ) from exc
    return Mark(**dict(zip(Mark.__struct_fields__, packed[1:], strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is published: ``id`` is empty for a message without entries."""

    mark: Mark
    payload: bytes = b""
    id: str = ""


def messages_of(
    transactions: Sequence[Transaction], at: Mark, *, now: float, most_bytes: int = MOST_BYTES
) -> Iterator[Message]:
    """The messages of transactions that are all new to a stream that is at ``at``."""
    for tx in transactions:
        if not tx.changes:
            # The next message tells of it, or the writer does.
            at = at.moved(progress.after(at.position, tx), now)
        for part, payload in _packed(tx, most_bytes):
            pieces = [payload[start : start + most_bytes] for start in range(0, len(payload), most_bytes)]
            then = at.moved(progress.after(at.position, part), now).grown(len(part.changes), len(payload), len(pieces))
            name = f"{at.void:x}-{part.commit_lsn:X}-{part.changes[0].ordinal}"
            yield from _fragments(name, pieces, at, then)
            at = then


def _packed(tx: Transaction, most_bytes: int, most_changes: int = _MOST_CHANGES) -> Iterator[tuple[Transaction, bytes]]:
    """A transaction cut to size, each part packed."""
    for start in range(0, len(tx.changes), most_changes):
        changes = tx.changes[start : start + most_changes]
        is_last = start + most_changes >= len(tx.changes)
        part = replace(tx, changes=changes, end_lsn=tx.end_lsn if is_last else None)
        payload = codec.encode([part])
        if len(payload) <= most_bytes or len(changes) == 1:
            yield part, payload
        else:
            yield from _packed(part, most_bytes, (len(changes) + 1) // 2)


def _fragments(name: str, pieces: Sequence[bytes], at: Mark, then: Mark) -> Iterator[Message]:
    """Before the last one the stream is where it was."""
    before = at.moved(at.position, then.written_at)
    for part, piece in enumerate(pieces):
        mark = then if part == len(pieces) - 1 else before
        number = at.messages + part + 1
        yield Message(
            mark=msgspec.structs.replace(mark, part=part, parts=len(pieces), messages=number),
            payload=piece,
            id=f"{name}-{part}",
        )
