"""The server under the ledger: a few connections that everybody shares, and faults by their names.

A connection that was lost is replaced. What can be said twice is said again at once; for the rest the caller hears that
nobody knows whether it was done, and may ask again later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc_agent import queries
from cdc_agent.errors import CdcAgentError, IdentityMismatch, LedgerError, LedgerUnavailable
from cdc_agent.ledger import postgres_schema, rows
from cdc_agent.ledger.postgres_faults import DAMAGE, error_of, first_line, is_lost
from cdc_agent.ledger.postgres_schema import TablesMissing

__all__ = [
    "CORRUPT",
    "SQL",
    "LedgerServer",
    "Patience",
    "Transaction",
    "columns",
    "conninfo_of",
    "read",
    "session_of",
    "spelt",
]

T = TypeVar("T")
Transaction = psycopg.Connection[Any]
SQL = queries.load("cdc_agent.ledger", "postgres.sql")
#: The state of a ledger whose tables are not as they were written.
CORRUPT = "LEDGER_CORRUPT"
_OLDEST_VERSION = 140_000
#: Connections that are open at most; a search takes one for each question.
_MOST = 8
#: Two transactions that stood in each other's way: one is undone, and simply comes again.
_AGAIN = (pg.DeadlockDetected, pg.SerializationFailure, pg.UniqueViolation)
_ATTEMPTS = 5
_PAUSE_S = 0.05
#: How long somebody who was killed may still seem to have the ledger.
_HOLD_WAIT_S = 5
#: In ``meta``: the server that the ledger was last opened on.
_SERVER = "server"
#: More numbers than can be taken between two looks of a backup or a standby.
_SKIPPED = 1_000_000
#: What a connection string may override: a dead peer is noticed within a minute, a standby is passed over.
_DEFAULTS = {
    "application_name": "cdc_agent ledger",
    "connect_timeout": 10,
    "target_session_attrs": "read-write",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
_DAMAGED_HINT = (
    "restore the schema from a backup; or start with CDC_AGENT_SOURCE__ON_MISMATCH=resync: it is put aside, everything "
    "is read again, and only what differs is embedded"
)


def spelt(text: str) -> str:
    """The text without NUL, which Postgres does not take. Keeps the order, and no two texts become one."""
    return text.replace("\x01", "\x01\x02").replace("\0", "\x01\x01") if "\0" in text or "\x01" in text else text


def read(text: str) -> str:
    """The text that was ``spelt``."""
    return text.replace("\x01\x01", "\0").replace("\x01\x02", "\x01") if "\x01" in text else text


class Patience(Protocol):
    """Who can wait until the server is back."""

    def __call__(self, call: Callable[[], T]) -> T: ...


class LedgerServer:
    """Raises ``LedgerUnavailable`` while the server cannot be reached or is not to be written to, ``LedgerFull`` for a
    full disk, ``IdentityMismatch`` for damaged tables, ``LedgerError`` for the rest."""

    def __init__(self, dsn: str, schema: str, *, stall_timeout_s: float = 30.0, alone: bool = False) -> None:
        """Who stops in the middle of a transaction for ``stall_timeout_s`` loses it, and holds nobody up.

        ``alone``: nobody else opens it so while we have it; raises ``LedgerUnavailable`` if somebody has. It is held by
        a session of its own; should that be lost, the next new connection takes it again, or ends in ``LedgerError``.
        """
        self._schema = schema
        self._stall_timeout_s = stall_timeout_s
        self._conninfo = conninfo_of(dsn)
        self._idle: list[Transaction] = []
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(_MOST)
        self._closed = False
        self._alone = alone
        self._holding = threading.Lock()
        self._holder: Transaction | None = None
        #: Which server it is, and its timeline.
        self._server = ""
        #: What was found damaged while it was in use.
        self.damage: IdentityMismatch | None = None
        #: Called with what failed while the server is away: repeats it until that is done, or raises what it raises.
        self.patience: Patience | None = None
        try:
            self._done(lambda connection: postgres_schema.bring_up_to_date(connection, schema), repeatable=True)
            self._uuid = self._meta("uuid")
            self._remember_server()
        except BaseException:
            self.close()
            raise

    @property
    def uuid(self) -> str:
        return self._uuid

    def close(self) -> None:
        """Connections in use are closed when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        with self._holding:
            holder, self._holder = self._holder, None
        for connection in (*idle, holder) if holder else idle:
            connection.close()

    # -- statements -------------------------------------------------------------------------------------------

    def _one(self, statement: str, params: Any = None) -> Any:
        found = self._all(statement, params)
        return found[0] if found else None

    def _all(self, statement: str, params: Any = None) -> list[Any]:
        return self._done(lambda connection: connection.execute(statement, params).fetchall(), repeatable=True)

    def _meta(self, key: str) -> str:
        return str(self._one(SQL["meta"], (key,))[0])

    def _write(self, act: Callable[[Transaction], T], *, repeatable: bool = True) -> T:
        """Do something in one transaction, from the beginning again where another one stood in its way.

        With ``repeatable`` also where the connection was lost, when nobody knows whether it was committed.
        """

        def in_transaction(connection: Transaction) -> T:
            with connection.transaction():
                return act(connection)

        return self._done(in_transaction, repeatable=repeatable)

    def _done(self, act: Callable[[Transaction], T], *, repeatable: bool) -> T:
        try:
            return self._tried(act, repeatable=repeatable)
        except LedgerUnavailable:
            if self.patience is None or not repeatable:
                raise
            return self.patience(lambda: self._tried(act, repeatable=True))

    def _tried(self, act: Callable[[Transaction], T], *, repeatable: bool) -> T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._connection() as connection:
                    return act(connection)
            except _Lost as exc:
                # Idle connections are lost together, when the server starts again.
                if attempt == _ATTEMPTS or not (repeatable or isinstance(exc, _StoodInTheWay)):
                    raise exc.error from exc.error.__cause__
                time.sleep(_PAUSE_S * (attempt - 1))
        raise AssertionError("unreachable")

    # -- connections ------------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self) -> Iterator[Transaction]:
        with self._free, self._translated():
            connection = self._taken()
            try:
                yield connection
            finally:
                self._back(connection)

    def _taken(self) -> Transaction:
        with self._lock:
            if self._closed:
                raise LedgerError("the ledger is closed", hint="this process is stopping")
            connection = self._idle.pop() if self._idle else None
        return connection or self._new()

    def _back(self, connection: Transaction) -> None:
        whole = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with self._lock:
            if whole and not self._closed:
                self._idle.append(connection)
                return
            if connection.broken:
                # The others were lost with it.
                broken, self._idle = self._idle, []
            else:
                broken = []
        for one in (connection, *broken):
            one.close()

    def _new(self) -> Transaction:
        connection = self._connected()
        try:
            if self._alone:
                self._hold()
        except BaseException:
            connection.close()
            raise
        return connection

    def _hold(self) -> None:
        with self._holding:
            if self._holder is not None and _answers(self._holder):
                return
            holder = self._connected()
            try:
                holder.execute(SQL["wait_briefly"], (f"{_HOLD_WAIT_S}s",))
                holder.execute(SQL["hold"], (self._schema,))
            except pg.LockNotAvailable as exc:
                holder.close()
                raise self._held_by_another() from exc
            except BaseException:
                holder.close()
                raise
            self._holder = holder

    def _held_by_another(self) -> LedgerError:
        message = f"another daemon works with the ledger in schema {self._schema}"
        if self._holder is None:
            return LedgerUnavailable(message, hint="stop that one, or give this one a ledger.schema_name of its own")
        return LedgerError(f"{message} since our connection was lost", hint="start again: what it did is looked at")

    def _connected(self) -> Transaction:
        connection: Transaction = psycopg.connect(self._conninfo, autocommit=True)
        try:
            connection.execute(SQL["begin_session"], session_of(self._schema, self._stall_timeout_s))
            self._recognise(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _recognise(self, connection: Transaction) -> None:
        row = connection.execute(SQL["server"]).fetchone()
        assert row is not None
        server, encoding, version = row
        if version < _OLDEST_VERSION:
            raise LedgerError(f"Postgres {version // 10_000} is older than 14", hint="upgrade the ledger's server")
        if encoding != "UTF8":
            raise LedgerError(
                f"the ledger's database has encoding {encoding}",
                hint="make one with `create database ... encoding UTF8`",
            )
        if self._server and server != self._server:
            # A standby that took over may not have heard of everything: what it lacks is looked for at the start.
            raise LedgerError(
                f"the ledger's server was replaced: it was {self._server} and is {server}",
                hint="start again: the start compares ledger and stream",
            )
        self._server = server

    def _remember_server(self) -> None:
        """A ledger that was put on another server, or on a standby that took over, may have forgotten numbers that it
        gave away: it goes on far beyond them."""
        known = self._one(SQL["meta"], (_SERVER,))
        if known == (self._server,):
            return

        def note(tx: Transaction) -> None:
            if known is not None:
                tx.execute(SQL["skip_generations"], (_SKIPPED,))
            tx.execute(SQL["note"], (_SERVER, self._server))

        self._write(note)

    # -- faults -----------------------------------------------------------------------------------------------

    def _damaged(self, what: object) -> IdentityMismatch:
        message = f"the ledger in schema {self._schema} is damaged: {what}"
        self.damage = IdentityMismatch(CORRUPT, message, hint=_DAMAGED_HINT)
        return self.damage

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as exc:
            if isinstance(exc, _AGAIN):
                raise _StoodInTheWay(error_of(exc)) from exc
            if exc.sqlstate in DAMAGE:
                raise self._damaged(first_line(exc)) from exc
            error = error_of(exc)
            error.__cause__ = exc
            raise (_Lost(error) if isinstance(error, LedgerUnavailable) and is_lost(exc) else error) from exc
        except (rows.Damaged, TablesMissing) as exc:
            raise self._damaged(exc) from exc


def _answers(connection: Transaction) -> bool:
    try:
        connection.execute("select 1")
    except psycopg.Error:
        return False
    return True


class _Lost(Exception):
    """The connection is gone; ``error`` is what to say if that goes on."""

    def __init__(self, error: CdcAgentError) -> None:
        self.error = error


class _StoodInTheWay(_Lost):
    """Another transaction did."""


def conninfo_of(dsn: str) -> str:
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error:
        # libpq's message quotes the string, password and all.
        raise LedgerError("ledger.dsn is not a connection string", hint="postgresql://user@host:5432/dbname") from None
    params: dict[str, Any] = {**_DEFAULTS, **given}
    params["options"] = f"{given.get('options') or ''} -c client_encoding=UTF8".strip()
    return make_conninfo("", **params)


def session_of(schema: str, stall_timeout_s: float = 30.0) -> dict[str, str]:
    """The parameters of ``begin_session``."""
    return {"schema": schema, "stall": f"{int(stall_timeout_s * 1000)}ms"}


def columns(items: Sequence[tuple[Any, ...]], count: int) -> list[list[Any]]:
    """Rows as one list for each column, as ``unnest`` takes them."""
    return [[row[n] for row in items] for n in range(count)]
