"""The replication protocol over psycopg's ``pgconn``: COPY BOTH, XLogData, keepalives, standby status updates.

psycopg 3 has no replication API; its libpq wrapper is enough. One thread owns a ``ReplicationFeed``. The traps that
shaped this file (each was measured) are in docs/DECISIONS.md.
https://www.postgresql.org/docs/current/protocol-replication.html
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import pq, sql

from cdc_agent.errors import SourceError, SourceUnavailable
from cdc_agent.events import Transaction
from cdc_agent.failpoints import hit
from cdc_agent.lsn import Lsn
from cdc_agent.source.base import Decoder
from cdc_agent.source.connection import classify, connect, error_of_result
from cdc_agent.source.pgoutput import PG_EPOCH_US

__all__ = ["Alarm", "ReplicationFeed", "ServerIdentity", "plugin_options"]

_XLOGDATA = struct.Struct("!QQq").unpack_from
_KEEPALIVE = struct.Struct("!QqB").unpack_from
_STATUS = struct.Struct("!cQQQqB")
_XLOGDATA_TAG, _KEEPALIVE_TAG = ord("w"), ord("k")

#: Bytes taken from the socket before decoded transactions are handed over, so that hand-over keeps pace.
_HANDOVER_BYTES = 4 << 20
#: Progress is reported this often at most.
_REPORT_INTERVAL_S = 1.0
#: Status updates without any sign of life from the server before the connection counts as dead.
_SILENT_INTERVALS = 3
#: How long a server that shuts down is kept waiting for what is not durable with us yet.
_SHUTDOWN_PATIENCE_S = 3.0
#: Demands for an answer that are further apart are none of a shutdown: that asks again at once.
_INSISTENCE_S = 1.0


#: SQLSTATEs by which the server says that it cannot read on from a slot: it, or the publication at that place of the
#: log, does not exist; or its WAL is gone.
_REFUSALS = frozenset({"42704", "55000"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """Who the server is and how it came about.

    ``ended`` says where each earlier timeline of its history ended. ``refused`` is the SQLSTATE with which it has
    twice running refused to stream from the same place, whatever the catalog says.
    """

    system_id: str
    timeline: int
    flush_lsn: Lsn
    ended: Mapping[int, Lsn] = field(default_factory=dict)
    refused: str = ""


class Alarm:
    """Wakes a thread that waits on a socket: ``ring`` from anywhere, ``fd`` into its poll."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def fd(self) -> int:
        return self._fd

    def ring(self) -> None:
        os.eventfd_write(self._fd, 1)

    def clear(self) -> bool:
        """Forget past rings; True if there were any."""
        try:
            return os.eventfd_read(self._fd) > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._fd)


def plugin_options(plugin: str, *, publication_name: str, schemas: frozenset[str]) -> dict[str, str]:
    """The options of START_REPLICATION for one plugin."""
    if plugin == "pgoutput":
        name = '"' + publication_name.replace('"', '""') + '"'
        return {"proto_version": "1", "publication_names": name, "messages": "true"}
    return {
        "format-version": "2",
        "include-xids": "true",
        "include-timestamp": "true",
        "include-lsn": "true",
        "include-types": "false",
        # A column may have got another name or type since: its number says which it was.
        "include-type-oids": "true",
        "include-column-positions": "true",
        # Whole schemas, so that new partitions and renamed tables are not lost; other tables are dropped by us.
        "add-tables": ",".join(sorted(f"{_escaped(schema)}.*" for schema in schemas)),
    }


def _escaped(name: str) -> str:
    """wal2json's own escaping of a name in a table list: a backslash before anything special."""
    return "".join("\\" + c if c in " ,.*\\'\"" else c for c in name)


class ReplicationFeed:
    """One streaming connection. Everything here runs in one thread; ``alarm`` is how others get its attention."""

    def __init__(
        self,
        dsn: str,
        *,
        slot_name: str,
        decoder: Decoder,
        options: Mapping[str, str],
        status_interval_s: float = 10.0,
        connect_timeout_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dsn = dsn
        self._slot_name = slot_name
        self._decoder = decoder
        self._options = dict(options)
        self._status_interval_s = status_interval_s
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock
        self._connection: psycopg.Connection[Any] | None = None
        self._dry = False
        self.alarm = Alarm()
        #: Highest position that the server has told us of.
        self.received_lsn = Lsn(0)
        #: The server has sent everything up to here; valid to acknowledge once all that was handed over is durable.
        self.idle_lsn = Lsn(0)
        #: Keepalives seen; tells whether a question was answered.
        self.keepalives = 0
        self._flushed_lsn = Lsn(0)
        self._reported_lsn = Lsn(0)
        self._last_status = 0.0
        self._unanswered = 0
        #: Since when, and when last, the server insisted on an answer.
        self._pressed = (0.0, 0.0)
        self._start_lsn = Lsn(0)
        #: Where the server last refused to stream, with what, and how often running.
        self._refused: tuple[Lsn, str, int] = (Lsn(0), "", 0)

    # -- lifetime ---------------------------------------------------------------------------------------------

    def use_options(self, options: Mapping[str, str]) -> None:
        """Stream with these options of the plugin from the next ``start`` on."""
        self._options = dict(options)

    def open(self) -> ServerIdentity:
        """Connect and ask who the server is. Nothing streams yet."""
        self.close()
        self._decoder.reset()
        self._connection = connect(self._dsn, replication=True, connect_timeout_s=self._connect_timeout_s)
        try:
            row = self._connection.execute("IDENTIFY_SYSTEM").fetchone()
            assert row is not None
            _refuse_standby(self._connection)
            self._limit_status_interval(self._connection)
            ended = _ended_timelines(self._connection, int(row[1]))
        except psycopg.Error as exc:
            raise classify(exc) from exc
        _, sqlstate, times = self._refused
        return ServerIdentity(
            system_id=row[0],
            timeline=int(row[1]),
            flush_lsn=Lsn.parse(row[2]),
            ended=ended,
            refused=sqlstate if times > 1 else "",
        )

    def start(self, start_lsn: Lsn, *, acknowledged: Lsn) -> None:
        """Begin streaming commits that end after ``start_lsn``, which we have up to there. What ends at or before
        ``acknowledged`` the server may forget."""
        connection = self._opened()
        pgconn = connection.pgconn
        self._start_lsn = start_lsn
        if start_lsn != self._refused[0]:
            self._refused = (start_lsn, "", 0)
        try:
            result = pgconn.exec_(_start_command(connection, self._slot_name, start_lsn, self._options))
        except psycopg.Error as exc:
            raise classify(exc) from exc
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._failure(result)
        pgconn.nonblocking = 1
        self.received_lsn, self._flushed_lsn = start_lsn, acknowledged
        self.idle_lsn = Lsn(0)
        self._unanswered = 0
        self._pressed = (0.0, 0.0)
        self._dry = False
        self._send_status(reply=True)

    def close(self) -> None:
        """Drop the connection at once; the slot is free at once. Its position is not affected."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stop(self) -> None:
        """Report what is durable a last time, then close. Never waits: mid-transaction the server would send the
        whole rest before it listens."""
        if self._connection is not None and not self._connection.closed:
            try:
                self._send_status()
            except (SourceError, psycopg.Error):
                # The position is durable with us; the server learns it at the next start.
                pass
        self.close()

    # -- reading ----------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[Transaction]:
        """Return transactions that have arrived, in commit order; wait at most ``timeout_s`` for something to happen.

        Returns early (and empty) when the alarm rings. Sends status updates when they are due.
        """
        self._status_if_due()
        ready = self._drain()
        if ready or not self._dry:
            return ready
        self._wait(timeout_s)
        self._status_if_due()
        return self._drain()

    def feedback(self) -> None:
        """Send a status update if one is due. For the owner to call while it cannot read (its queue is full)."""
        self._status_if_due(reading=False)

    def acknowledge(self, lsn: Lsn) -> None:
        """Everything up to ``lsn`` is durable with us. Reported at the next status update."""
        self._flushed_lsn = max(self._flushed_lsn, lsn)
        if lsn > self._start_lsn:
            # What was sent before a refusal comes again with the next one; only this is progress.
            self._refused = (Lsn(0), "", 0)

    def ask(self) -> None:
        """Ask the server where it is; its keepalive moves ``idle_lsn``."""
        self._send_status(reply=True)

    def _drain(self) -> list[Transaction]:
        """Decode what has arrived, up to a bound. Order matters: libpq's buffer must be empty before more is read."""
        pgconn = self._opened().pgconn
        feed = self._decoder.feed
        out: list[Transaction] = []
        taken = 0
        try:
            while taken < _HANDOVER_BYTES:
                size, data = pgconn.get_copy_data(1)
                if size > 0:
                    self._dry = False
                    taken += size
                    if data[0] == _XLOGDATA_TAG:
                        transaction = feed(data[25:])
                        if transaction is not None:
                            out.append(transaction)
                    else:
                        self._keepalive(data)
                elif size == 0:
                    if self._dry:
                        break
                    # One call reads at most one TLS record, so only a second dry one means there is no more.
                    pgconn.consume_input()
                    self._dry = True
                else:
                    self._ended()
        except psycopg.Error as exc:
            raise classify(exc) from exc
        if taken:
            self._unanswered = 0
        return out

    def _keepalive(self, data: memoryview | bytes) -> None:
        if data[0] != _KEEPALIVE_TAG:
            raise SourceError(f"unknown replication message {bytes(data[:1])!r}", hint="is this a Postgres server?")
        wal_end, _ts, reply_requested = _KEEPALIVE(data, 1)
        self.received_lsn = max(self.received_lsn, Lsn(wal_end))
        self.idle_lsn = max(self.idle_lsn, Lsn(wal_end))
        self.keepalives += 1
        if reply_requested:
            self._send_status()
            self._let_it_stop()

    def _let_it_stop(self) -> None:
        """A server that shuts down asks without a pause until what it has sent is acknowledged, if need be for ever.

        What is not durable by then comes again after its restart.
        """
        now = self._clock()
        since, last = self._pressed
        if self._flushed_lsn >= self.received_lsn or now - last > _INSISTENCE_S:
            since = now
        self._pressed = (since, now)
        if now - since > _SHUTDOWN_PATIENCE_S:
            raise SourceUnavailable(
                "the server is shutting down and waits for what is not durable here yet",
                hint="it is let go; what it has sent comes again when it is back",
            )

    def _ended(self) -> None:
        result = self._opened().pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise self._failure(result)
        raise SourceUnavailable("the server ended the replication stream", hint="it is probably shutting down")

    def _failure(self, result: pq.abc.PGresult) -> SourceError:
        """What the server does not stream from is looked at on the next connection, before anything is concluded."""
        sqlstate = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        error = error_of_result(result)
        if sqlstate not in _REFUSALS:
            return error
        self._refused = (self._start_lsn, sqlstate, self._refused[2] + 1)
        return SourceUnavailable(
            f"the server refuses to stream: {error.message}", hint="slot and publication are being checked"
        )

    def _wait(self, timeout_s: float) -> None:
        poller = select.poll()
        poller.register(self._opened().pgconn.socket, select.POLLIN)
        poller.register(self.alarm.fd, select.POLLIN)
        left = self._last_status + self._status_interval_s - self._clock()
        ready = poller.poll(max(0.0, min(timeout_s, left)) * 1000)
        self.alarm.clear()
        if any(fd != self.alarm.fd for fd, _ in ready):
            self._dry = False

    # -- status updates ---------------------------------------------------------------------------------------

    def _status_if_due(self, *, reading: bool = True) -> None:
        since = self._clock() - self._last_status
        if since < self._status_interval_s:
            if self._flushed_lsn > self._reported_lsn and since >= _REPORT_INTERVAL_S:
                self._send_status()
            return
        if reading and self._unanswered >= _SILENT_INTERVALS:
            raise SourceUnavailable(
                f"the server has been silent for {self._unanswered} status intervals",
                hint="the network drops packets or the server hangs; reconnecting",
            )
        self._unanswered += reading
        self._send_status(reply=True)

    def _send_status(self, *, reply: bool = False) -> None:
        """write = received, flush = what is durable with us. (Repeating a stale write position makes some servers
        answer every update at once: a hot loop.)"""
        now_us = time.time_ns() // 1000 - PG_EPOCH_US
        written = max(self.received_lsn, self._flushed_lsn)
        flushed = self._flushed_lsn
        advances = flushed > self._reported_lsn
        if advances:
            hit("before_ack")
        try:
            pgconn = self._opened().pgconn
            pgconn.put_copy_data(_STATUS.pack(b"r", written, flushed, flushed, now_us, reply))
            self._flush(pgconn)
        except psycopg.Error as exc:
            raise classify(exc) from exc
        if advances:
            hit("after_ack")
        self._reported_lsn = flushed
        self._last_status = self._clock()

    def _flush(self, pgconn: Any) -> None:
        deadline = self._clock() + self._status_interval_s
        while pgconn.flush():
            left = deadline - self._clock()
            if left <= 0:
                raise SourceUnavailable("the server does not take our status updates", hint="reconnecting")
            select.select([], [pgconn.socket], [], left)

    def _limit_status_interval(self, connection: psycopg.Connection[Any]) -> None:
        row = connection.execute("SHOW wal_sender_timeout").fetchone()
        timeout_s = _seconds(row[0]) if row else 0.0
        if timeout_s > 0:
            self._status_interval_s = min(self._status_interval_s, timeout_s / 3)

    def _opened(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            raise SourceUnavailable("the replication connection is closed", hint="reconnecting")
        return self._connection


def _start_command(connection: psycopg.Connection[Any], slot: str, start: Lsn, options: Mapping[str, str]) -> bytes:
    # The walsender's grammar knows only '...' with doubled quotes; psycopg's Literal may write E'...'.
    pairs = ", ".join(f"\"{name}\" '{value.replace(chr(39), chr(39) * 2)}'" for name, value in options.items())
    return f"START_REPLICATION SLOT {sql.Identifier(slot).as_string(connection)} LOGICAL {start} ({pairs})".encode()


def _refuse_standby(connection: psycopg.Connection[Any]) -> None:
    """A standby takes no marks, and its position is behind that of its primary for good reasons."""
    row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
    if row is not None and row[0]:
        raise SourceUnavailable(
            "the server is a standby", hint="waiting until it is promoted; else let source.dsn lead to the primary"
        )


def _ended_timelines(connection: psycopg.Connection[Any], timeline: int) -> dict[int, Lsn]:
    """Where each timeline before this one ended; empty for the first one, and where its history file is gone."""
    if timeline == 1:
        return {}
    result = connection.pgconn.exec_(f"TIMELINE_HISTORY {timeline}".encode())
    if result.status != pq.ExecStatus.TUPLES_OK:
        return {}
    text = (result.get_value(0, 1) or b"").decode("utf-8", "replace")
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {int(words[0]): Lsn.parse(words[1]) for words in lines}


_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(setting: str) -> float:
    """Seconds of a setting as SHOW prints it: ``1min``, ``500ms``, ``0``."""
    number = setting.rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(number) * _UNITS.get(setting[len(number) :], 0.001)
