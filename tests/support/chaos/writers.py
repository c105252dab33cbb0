"""Eight writers, each with a seed of its own. Between them every kind of transaction that a log can carry.

A version is drawn after the row is locked, so the versions of a row grow in the order of its commits. What a writer
rolls back holds the word that no reader may ever see.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import sql

from tests.support.chaos.record import Record
from tests.support.chaos.tables import ANCHORS
from tests.support.chaos.texts import Line, body_of, line, lines_in, new_lines, title_of
from tests.support.postgres import Database

__all__ = ["Recent", "Writers", "seed_rows"]

Connection = psycopg.Connection[Any]
Key = tuple[Any, ...]

#: Keys are drawn from few, so that writers meet.
_NOTES = range(1, 200)
_SHOPS = ("north", 'the "south"', "øst:vest", "a,b")
_NUMBERS = range(1, 30)
_KEY = {"notes": ("id",), "parts": ("shop", "number")}


class Recent:
    """Documents that were written of late, as ``(collection, uid)``: what a reader asks for."""

    def __init__(self) -> None:
        self._items: deque[tuple[str, str]] = deque(maxlen=300)

    def add(self, table: str, uid: str) -> None:
        self._items.append((table, uid))

    def choose(self, rng: random.Random) -> tuple[str, str] | None:
        items = list(self._items)
        return rng.choice(items) if items else None


class Writers:
    """Started and stopped together; ``pause`` returns when none is in a transaction."""

    def __init__(self, pg: Database, record: Record, recent: Recent, *, seed: int, rate: float, count: int = 8) -> None:
        self._pg = pg
        self._record = record
        self._recent = recent
        self._stop = threading.Event()
        self._may_write = threading.Event()
        self._may_write.set()
        self._pause_s = count / rate
        self._busy = [threading.Lock() for _ in range(count)]
        self._threads = [
            threading.Thread(
                target=self._work, args=(n, random.Random(f"{seed}:writer:{n}")), name=f"writer-{n}", daemon=True
            )
            for n in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._may_write.set()
        for thread in self._threads:
            thread.join(60)

    def pause(self) -> None:
        self._may_write.clear()
        for lock in self._busy:
            with lock:
                pass

    def resume(self) -> None:
        self._may_write.set()

    def _work(self, number: int, rng: random.Random) -> None:
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._pg.dsn) as connection:
                    connection.execute("set lock_timeout = '3s'; set statement_timeout = '20s'")
                    connection.commit()
                    self._write(number, Transactions(connection, rng, self._recent))
            except psycopg.Error:
                self._stop.wait(0.2)  # The server is away, as it is meant to be now and then.

    def _write(self, number: int, transactions: Transactions) -> None:
        while not self._stop.is_set():
            self._may_write.wait()
            began = time.monotonic()
            with self._busy[number]:
                # Asked again: a pause that came between the two waits for this lock.
                if self._may_write.is_set() and not self._stop.is_set():
                    self._record.count(transactions.one())
            self._stop.wait(max(0.0, self._pause_s * transactions.rng.uniform(0.2, 1.8) - time.monotonic() + began))


class Transactions:
    """One writer's transactions, one at a time."""

    def __init__(self, connection: Connection, rng: random.Random, recent: Recent) -> None:
        self._connection = connection
        self.rng = rng
        self._recent = recent
        self._touched: list[tuple[str, str]] = []
        self._kinds: tuple[tuple[float, Callable[[], None]], ...] = (
            (30, self._few_changes),
            (5, self._partly_rolled_back),
            (4, self._rolled_back),
            (4, self._copied),
            (0.5, self._truncated),
            (0.4, self._large),
            (0.6, self._swept),
            # Each may have a table read again.
            (0.3, self._altered),
        )

    def one(self) -> str:
        """Write one transaction; says what became of it. What the server refuses (a conflict, a deadlock, a lock that
        is not to be had) is rolled back; any other error is raised."""
        weights = [weight for weight, _ in self._kinds]
        act = self.rng.choices(self._kinds, weights)[0][1]
        self._touched.clear()
        try:
            act()
            self._connection.commit()
        except (psycopg.errors.IntegrityError, psycopg.errors.OperationalError, psycopg.errors.UndefinedTable):
            if self._connection.closed:
                raise
            self._connection.rollback()
            return "transactions_refused"
        except _TakeBack:
            self._connection.rollback()
            return "transactions_rolled_back"
        for table, uid in self._touched:
            self._recent.add(table, uid)
        return "transactions"

    def put_note(self, key: int) -> None:
        self._put("notes", (key,), ghost=False)

    # -- kinds of transactions --------------------------------------------------------------------------------

    def _few_changes(self, *, ghost: bool = False) -> None:
        for _ in range(self.rng.choice((1, 1, 1, 2, 3))):
            self._change(ghost=ghost)

    def _partly_rolled_back(self) -> None:
        self._change()
        for _ in range(self.rng.randrange(1, 3)):
            try:
                with self._connection.transaction():
                    self._change(ghost=True)
                    raise _TakeBack
            except _TakeBack:
                pass
        with self._connection.transaction():
            self._change()

    def _rolled_back(self) -> None:
        self._few_changes(ghost=True)
        raise _TakeBack

    def _copied(self) -> None:
        versions = self._versions(self.rng.randrange(2, 12))
        with self._connection.cursor().copy("copy scraps (id, uid, version, title) from stdin") as copy:
            for version in versions:
                uid = f"u{version}"
                copy.write_row((version, uid, version, title_of(uid, version, ())))

    def _truncated(self) -> None:
        self._connection.execute("truncate scraps")

    def _large(self) -> None:
        """One statement, some hundreds of rows."""
        self._connection.execute(
            "insert into scraps select v, 'u' || v, v, format('T u%%s v%%s of 0 sum 0 large', v, v)"
            " from (select nextval('versions') v from generate_series(1, %s)) made",
            (self.rng.randrange(30, 150),),
        )

    def _swept(self) -> None:
        """Touch many rows at once, or delete them."""
        if self.rng.random() < 0.5:
            self._connection.execute("delete from scraps where id %% 3 = %s", (self.rng.randrange(3),))
            return
        self._connection.execute(
            "with locked as materialized (select id, uid from scraps where id %% 7 = %s order by id for update),"
            " drawn as materialized (select id, uid, nextval('versions') v from locked)"
            " update scraps s set version = v, title = format('T %%s v%%s of 0 sum 0 swept', d.uid, v)"
            " from drawn d where d.id = s.id",
            (self.rng.randrange(7),),
        )

    def _altered(self) -> None:
        """A table changes its shape. None of it changes what a reader finds."""
        table = self.rng.choice(("notes", "parts", "scraps"))
        name = sql.Identifier(table)
        there_and_back = sql.SQL("alter table {0} rename to away; alter table away rename to {0}")
        statements = (
            sql.SQL("alter table {} add column if not exists extra text default 'x'"),
            sql.SQL("alter table {} drop column if exists extra"),
            sql.SQL("alter table {} alter version type bigint using version + 0"),
            there_and_back,
        )
        self._connection.execute(self.rng.choice(statements).format(name))

    # -- changes of one row -----------------------------------------------------------------------------------

    def _change(self, *, ghost: bool = False) -> None:
        table = self.rng.choice(("notes", "notes", "parts"))
        kinds = ((6, self._edit), (3, self._metadata), (3, self._put), (2, self._move), (2, self._delete))
        act = self.rng.choices(kinds, [weight for weight, _ in kinds])[0][1]
        act(table, self._key(table), ghost)

    def _put(self, table: str, key: Key, ghost: bool) -> None:
        """A new row with a document of its own, if there is none at the key."""
        self._lock(table, key)
        uid, version = self._uid(), self._version()
        lines = new_lines(uid, version, self.rng.choice((1, 3, 8, 20)), self.rng, ghost=ghost)
        row = (*key, uid, version, self._n(ghost), title_of(uid, version, lines, ghost=ghost), body_of(lines))
        places = sql.SQL(", ").join(sql.Placeholder() * len(row))
        self._run("insert into {} values ({}) on conflict do nothing", table, places, values=row)
        self._note(table, uid, ghost)

    def _edit(self, table: str, key: Key, ghost: bool) -> None:
        """One line, all lines, or the number of lines."""
        found = self._found(table, key)
        if found is None:
            self._put(table, key, ghost)
            return
        uid, _, body = found
        version = self._version()
        lines = self._edited(uid, version, lines_in(body), ghost)
        values = (version, title_of(uid, version, lines, ghost=ghost), body_of(lines), *key)
        self._run("update {} set version = %s, title = %s, body = %s where {}", table, _where(table), values=values)
        self._note(table, uid, ghost)

    def _edited(self, uid: str, version: int, lines: list[Line], ghost: bool) -> list[Line]:
        kind = self.rng.random()
        if kind < 0.2:
            return new_lines(uid, version, self.rng.choice((1, 3, 8, 20)), self.rng, ghost=ghost)
        if kind < 0.4:
            return [*lines, line(uid, len(lines), version, self.rng, ghost=ghost)]
        if kind < 0.5 and len(lines) > 1:
            return lines[:-1]
        place = self.rng.randrange(len(lines))
        lines[place] = line(uid, place, version, self.rng, ghost=ghost)
        return lines

    def _metadata(self, table: str, key: Key, ghost: bool) -> None:
        """The long text stays as it is, and Postgres does not send it; sometimes the short one goes with it."""
        found = self._found(table, key)
        if found is None:
            return
        uid, _, body = found
        version = self._version()
        lines = lines_in(body)
        if self.rng.random() < 0.4:
            values: Key = (version, self._n(ghost), title_of(uid, version, lines, ghost=ghost), *key)
            self._run("update {} set version = %s, n = %s, title = %s where {}", table, _where(table), values=values)
        else:
            values = (version, self._n(ghost), *key)
            self._run("update {} set version = %s, n = %s where {}", table, _where(table), values=values)
        self._note(table, uid, ghost)

    def _move(self, table: str, key: Key, ghost: bool) -> None:
        """Another primary key, with the same text."""
        target = self._key(table)
        if table == "notes" and key[0] in ANCHORS:
            return
        for one in sorted((key, target), key=repr):
            self._lock(table, one)
        columns = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in _KEY[table])
        values = (self._version(), *((-1,) if ghost else ()), *target, *key)
        n = ", n = %s" if ghost else ""
        self._run(f"update {{}} set version = %s{n}, {{}} where {{}}", table, columns, _where(table), values=values)

    def _delete(self, table: str, key: Key, ghost: bool) -> None:
        if table == "notes" and key[0] in ANCHORS:
            return
        self._lock(table, key)
        self._run("delete from {} where {}", table, _where(table), values=key)

    def _found(self, table: str, key: Key) -> tuple[str, int, str] | None:
        """The row, locked."""
        self._lock(table, key)
        cursor = self._run("select uid, version, body from {} where {} for update", table, _where(table), values=key)
        return cursor.fetchone()

    def _lock(self, table: str, key: Key) -> None:
        """Also of a key that has no row yet: who waits draws its version afterwards."""
        self._connection.execute("select pg_advisory_xact_lock(hashtext(%s))", (f"{table}:{key}",))

    def _key(self, table: str) -> Key:
        if table == "notes":
            # Anchors are few, and read all the time: they are changed often.
            return (self.rng.choice(ANCHORS if self.rng.random() < 0.3 else _NOTES),)
        return (self.rng.choice(_SHOPS), self.rng.choice(_NUMBERS))

    def _n(self, ghost: bool) -> int:
        return -1 if ghost else self.rng.randrange(100)

    def _uid(self) -> str:
        return f"u{self._run('select nextval(%s)', values=('uids',)).fetchone()[0]}"  # type: ignore[index]

    def _version(self) -> int:
        return self._versions(1)[0]

    def _versions(self, count: int) -> list[int]:
        found = self._connection.execute("select nextval('versions') from generate_series(1, %s)", (count,))
        return [int(row[0]) for row in found]

    def _note(self, table: str, uid: str, ghost: bool) -> None:
        if not ghost:
            self._touched.append((table, uid))

    def _run(self, statement: str, *parts: Any, values: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        filled = [sql.Identifier(part) if isinstance(part, str) else part for part in parts]
        return self._connection.execute(sql.SQL(statement).format(*filled), values)  # type: ignore[arg-type]


class _TakeBack(Exception):
    """What was written since the last savepoint, or all of it, is to be rolled back."""


def _where(table: str) -> sql.Composable:
    return sql.SQL(" and ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in _KEY[table])


def seed_rows(pg: Database, keys: Sequence[int], seed: int) -> None:
    """Rows of notes that are there from the beginning."""
    rng = random.Random(f"{seed}:rows")
    with psycopg.connect(pg.dsn) as connection:
        transactions = Transactions(connection, rng, Recent())
        for key in keys:
            transactions.put_note(key)
