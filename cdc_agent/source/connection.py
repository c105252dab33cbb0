"""Connections to the source: settings pinned so that text values have one form, errors told apart by SQLSTATE."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc_agent.errors import (
    ConfigError,
    SlotBusy,
    SourceAuthError,
    SourceError,
    SourceUnavailable,
)

__all__ = ["NO_TEXT_HINT", "classify", "connect", "error_of_result"]

#: For bytes that are no text of any encoding, which only a database of encoding SQL_ASCII takes.
NO_TEXT_HINT = (
    "the database is SQL_ASCII: correct the row, `cdc-agent slot drop`, and start with `source.on_mismatch: resync`"
)

#: Value formats follow the connection's settings, so both plugins and all reads pin the same ones.
_PINNED = (
    "-c timezone=UTC -c datestyle=ISO,YMD -c intervalstyle=postgres -c extra_float_digits=1 -c bytea_output=hex"
    " -c client_encoding=UTF8 -c standard_conforming_strings=on"
)
#: What a connection string may override: a dead peer is noticed within a minute.
_DEFAULTS = {
    "application_name": "cdc_agent",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


T = TypeVar("T")


class _Impatient(psycopg.Connection[Any]):
    """Gives up on an answer. The kernel notices a dead host; it does not notice a proxy in between that takes
    everything and passes nothing on."""

    answer_timeout_s: float | None = None

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        if self.answer_timeout_s is not None:
            gen = _until(time.monotonic() + self.answer_timeout_s, gen)
        return super().wait(gen, *args, **kwargs)


def _until(deadline: float, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """The same steps; psycopg looks in several times a second also when nothing has come."""
    wanted = next(gen)
    while True:
        ready = yield wanted
        if not ready and time.monotonic() >= deadline:
            gen.close()
            raise psycopg.OperationalError("the server does not answer")
        try:
            wanted = gen.send(ready)
        except StopIteration as ended:
            result: T = ended.value
            return result


def connect(
    dsn: str, *, replication: bool = False, connect_timeout_s: float = 10.0, answer_timeout_s: float | None = None
) -> psycopg.Connection[Any]:
    """Open a connection in autocommit with pinned settings. Raises a ``SourceError`` kind, never psycopg's own.

    With ``answer_timeout_s`` a command that is not answered by then raises ``psycopg.OperationalError``.
    """
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error:
        # libpq's message quotes the string, password and all.
        raise ConfigError("source.dsn is not a connection string", hint="postgresql://user@host:5432/dbname") from None
    params: dict[str, Any] = {**_DEFAULTS, "connect_timeout": max(1, int(connect_timeout_s)), **given}
    params["options"] = f"{given.get('options') or ''} {_PINNED}".strip()
    if replication:
        params["replication"] = "database"
    try:
        # The walsender knows no prepared statements.
        connection = _Impatient.connect(make_conninfo("", **params), autocommit=True, prepare_threshold=None)
    except psycopg.Error as exc:
        raise classify(exc) from exc
    connection.answer_timeout_s = answer_timeout_s
    return connection


def classify(exc: psycopg.Error) -> SourceError:
    """Our error for one of psycopg's: by SQLSTATE only, because texts vary by version and language.

    What a missing object or a wrong state means depends on the command: those who sent it know (see ``replication``).
    """
    return _classify(exc.sqlstate, _first_line(str(exc)))


def error_of_result(result: pq.abc.PGresult) -> SourceError:
    """Our error for a failed result of the low-level interface."""
    state = result.error_field(pq.DiagnosticField.SQLSTATE)
    message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"unknown error"
    return _classify(state.decode() if state else None, message.decode("utf-8", "replace"))


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "connection failed"


def _classify(sqlstate: str | None, message: str) -> SourceError:
    if sqlstate is None and "authentication failed" in message:
        # libpq reports a refused password without a SQLSTATE.
        sqlstate = "28P01"
    if sqlstate is None or sqlstate[:2] in ("08", "57", "53"):
        return SourceUnavailable(f"Postgres is not available: {message}", hint="is the server running and reachable?")
    if sqlstate == "55P03":
        return SourceUnavailable(f"a table is locked: {message}", hint="it is read once the lock is gone")
    if sqlstate == "22021":
        return SourceError(f"a row holds bytes that are no text: {message}", hint=NO_TEXT_HINT)
    if sqlstate == "55006":
        return SlotBusy(f"the slot is in use: {message}", hint="another cdc-agent is running; this one waits for it")
    if sqlstate[:2] in ("28", "42") and sqlstate in ("28000", "28P01", "42501"):
        return SourceAuthError(f"Postgres refuses us: {message}", hint="run `cdc-agent check` for the exact GRANT")
    return SourceError(f"Postgres answered {sqlstate}: {message}", hint="run `cdc-agent check`")
