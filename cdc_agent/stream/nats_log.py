"""A stream on JetStream as messages with numbers: made once, published to by one, read by number, purged from below.

Every message says which number it expects to come behind. So nothing is ever stored twice, out of order, or by two
writers: what comes late from a connection that was given up is refused by the server.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import nats.js.errors
from nats.js import api

from cdc_agent.errors import StreamError, StreamUnavailable
from cdc_agent.stream.marks import HEADER, Mark, Message, read_mark, write_mark
from cdc_agent.stream.nats_link import NatsLink

__all__ = ["AT_ONCE", "NatsLog", "State", "Stored"]

#: Publish acknowledgements that may be outstanding.
_MOST_OUTSTANDING = 1_000
#: Messages asked for at the same time.
AT_ONCE = 64
#: Kept in the metadata of the stream: what it was made for, and into how many partitions it was cut.
_FORMAT_KEY, _PARTITIONS_KEY = "cdc_agent.format", "cdc_agent.partitions"
#: The server's limit leaves room for headers and positions; ours is the one that is meant to be met.
_SPARE_BYTES = 64 << 20
_WRONG_LAST_SEQUENCE = 10071


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """``first`` and ``last`` are numbers of messages; ``first`` is behind ``last`` when there are none. ``entries`` is
    how many have entries, ``age_s`` how long ago the newest was stored, by the server's own clock."""

    first: int
    last: int
    entries: int = 0
    age_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One message in the stream. ``has_entries``: it is no mere position."""

    sequence: int
    mark: Mark
    payload: bytes
    has_entries: bool


class NatsLog:
    """Raises ``StreamUnavailable`` when the server does not answer, ``StreamFull`` when it has no room."""

    def __init__(self, link: NatsLink, name: str, *, replicas: int = 1, max_bytes: int) -> None:
        self._link = link
        self._name = name
        self._replicas = replicas
        self._max_bytes = max_bytes + max_bytes // 4 + _SPARE_BYTES
        self._data = f"{name}.0"
        self._position = f"{name}.position"
        self._inbox = ""
        self._asked: dict[str, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()

    # -- the stream as a whole -----------------------------------------------------------------------------------

    def make(self) -> None:
        """Make the stream unless it is there. Raises ``StreamError`` for one that somebody made for something else."""
        self._link.call(self._make)

    async def _make(self) -> None:
        js = self._link.js
        wanted = api.StreamConfig(
            name=self._name,
            subjects=[f"{self._name}.*"],
            storage=api.StorageType.FILE,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW,
            max_bytes=self._max_bytes,
            num_replicas=self._replicas,
            allow_direct=True,
            metadata={_FORMAT_KEY: "1", _PARTITIONS_KEY: "1"},
        )
        try:
            found = (await js.stream_info(self._name)).config
        except nats.js.errors.NotFoundError:
            await js.add_stream(wanted)
            return
        metadata = found.metadata or {}
        if (metadata.get(_FORMAT_KEY), metadata.get(_PARTITIONS_KEY)) != ("1", "1"):
            raise StreamError(
                f"JetStream has a stream {self._name} that this version of cdc-agent did not make",
                hint="choose another stream.name",
            )
        if (found.max_bytes, found.num_replicas) != (self._max_bytes, self._replicas):
            found.max_bytes, found.num_replicas = self._max_bytes, self._replicas
            await js.update_stream(found)

    def remove(self) -> None:
        """Remove the stream with all that is in it."""

        async def remove() -> None:
            try:
                await self._link.js.delete_stream(self._name)
            except nats.js.errors.NotFoundError:
                pass

        self._link.call(remove)

    def state(self) -> State | None:
        """Where the stream begins and ends; None when there is no such stream."""
        return self._link.call(self._state)

    async def _state(self) -> State | None:
        self._link.check_connected()
        question = json.dumps({"subjects_filter": self._data}).encode()
        reply = await self._link.client.request(
            f"$JS.API.STREAM.INFO.{self._name}", question, timeout=self._link.place.timeout_s
        )
        found = json.loads(reply.data)
        if "error" in found:
            if found["error"].get("code") == 404:
                return None
            raise nats.js.errors.APIError.from_error(found["error"])
        state = found["state"]
        first, last = int(state["first_seq"]), int(state["last_seq"])
        if not state["messages"]:
            return State(first=last + 1, last=last)
        age = _moment(found["ts"]) - _moment(state["last_ts"])
        entries = (state.get("subjects") or {}).get(self._data, 0)
        return State(first=first, last=last, entries=entries, age_s=max(0.0, age.total_seconds()))

    # -- writing -------------------------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], last: int) -> None:
        """Append behind number ``last``; every one is acknowledged on return. After an error some of them, from the
        first on, may be there."""
        self._link.call(self._publish, messages, last)

    async def _publish(self, messages: Sequence[Message], last: int) -> None:
        pending: list[asyncio.Future[Any]] = []
        acknowledged = 0
        await self._listen()
        try:
            for number, message in enumerate(messages):
                self._link.check_connected()
                pending.append(await self._send(message, last + number))
                while acknowledged < len(pending) and (
                    pending[acknowledged].done() or len(pending) - acknowledged >= _MOST_OUTSTANDING
                ):
                    await self._acknowledged(pending[acknowledged], last + acknowledged + 1)
                    acknowledged += 1
            for future in pending[acknowledged:]:
                await self._acknowledged(future, last + acknowledged + 1)
                acknowledged += 1
        finally:
            # What comes in late is nobody's answer any more.
            self._asked.clear()

    async def _listen(self) -> None:
        """One subject for all acknowledgements. (The client's own way loses those that are refusals.)"""
        if not self._inbox:
            self._inbox = self._link.client.new_inbox()
            await self._link.client.subscribe(f"{self._inbox}.*", cb=self._hear)

    async def _hear(self, reply: Any) -> None:
        future = self._asked.pop(reply.subject.rpartition(".")[2], None)
        if future is not None and not future.done():
            future.set_result(reply)

    async def _send(self, message: Message, behind: int) -> asyncio.Future[Any]:
        headers = {
            HEADER: write_mark(message.mark),
            "Nats-Expected-Stream": self._name,
            "Nats-Expected-Last-Sequence": str(behind),
        }
        if message.id:
            headers["Nats-Msg-Id"] = message.id
        subject = self._data if message.id else self._position
        number = str(next(self._numbers))
        self._asked[number] = future = asyncio.get_running_loop().create_future()
        await self._link.client.publish(subject, message.payload, reply=f"{self._inbox}.{number}", headers=headers)
        return future

    async def _acknowledged(self, future: asyncio.Future[Any], sequence: int) -> None:
        reply = await asyncio.wait_for(future, self._link.place.timeout_s)
        if (reply.headers or {}).get("Status") == "503":
            raise nats.js.errors.NoStreamResponseError
        answer = json.loads(reply.data)
        error = answer.get("error") or {}
        if error.get("err_code") == _WRONG_LAST_SEQUENCE or (
            not error and (answer.get("duplicate") or answer["seq"] != sequence)
        ):
            raise _not_where_we_thought()
        if error:
            nats.js.errors.APIError.from_error(error)

    def purge(self, below: int) -> None:
        """Remove every message whose number is smaller than ``below``."""
        self._link.call(self._link.js.purge_stream, self._name, seq=below)

    def purge_positions(self, below: int) -> None:
        """The same for messages that only tell a position."""
        self._link.call(self._link.js.purge_stream, self._name, subject=self._position, seq=below)

    # -- reading -------------------------------------------------------------------------------------------------

    def message(self, sequence: int) -> Stored | None:
        """One message, as the leader has it."""
        return self._link.call(self._message, sequence, direct=False)

    def entries_at(self, sequence: int) -> Stored | None:
        """The first message with entries from a number on."""
        return self._link.call(self._message, sequence, direct=False, next=True, subject=self._data)

    def messages(self, first: int, last: int, *, direct: bool = True) -> list[Stored]:
        """What is there of a range of numbers, in order. ``direct``: of any replica, which may be behind."""
        return self._link.call(self._messages, range(first, min(last, first + AT_ONCE - 1) + 1), direct=direct)

    async def _messages(self, numbers: range, *, direct: bool) -> list[Stored]:
        found = await asyncio.gather(*(self._message(number, direct=direct) for number in numbers))
        return [one for one in found if one is not None]

    async def _message(self, sequence: int, **how: Any) -> Stored | None:
        self._link.check_connected()
        try:
            found = await self._link.js.get_msg(self._name, seq=sequence, **how)
        except nats.js.errors.NotFoundError:
            return None
        mark = read_mark((found.headers or {}).get(HEADER, ""))
        return Stored(
            sequence=int(found.seq),
            mark=mark,
            payload=bytes(found.data or b""),
            has_entries=found.subject == self._data,
        )

    def first_entries(self, wanted: Callable[[Mark], bool], first: int, last: int) -> Stored | None:
        """The first message with entries whose mark is ``wanted``, by halving: where one is, all behind it are."""
        found = None
        while first <= last:
            middle = (first + last) // 2
            looked_at = self.entries_at(middle)
            if looked_at is None or looked_at.sequence > last:
                last = middle - 1
            elif wanted(looked_at.mark):
                found, last = looked_at, middle - 1
            else:
                first = looked_at.sequence + 1
        return found


def _not_where_we_thought() -> StreamError:
    return StreamUnavailable(
        "the stream is not where we left it: what was sent before came late, or somebody else wrote",
        hint="it is looked at again; only one daemon may use a stream.name",
    )


def _moment(text: str) -> dt.datetime:
    """NATS writes nanoseconds, which ``datetime`` does not take."""
    return dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).replace("Z", "+00:00"))
