"""Watches the watched tables: what an ALTER TABLE, a rename or a hand on the publication changes without a row.

Nothing in the log says that a column was rewritten, a partition attached or a table dropped and made again. So the
shape of each table is remembered (``ledger.source_tables``), compared with the catalog on every connection, and
looked at again while the server writes WAL. What differs is read again, which embeds only what is really different;
what cannot be mended is a named state.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cdc_agent import metrics
from cdc_agent.errors import CdcAgentError, IdentityMismatch, SourceError
from cdc_agent.health import Health
from cdc_agent.ledger.base import Ledger, SourceTable
from cdc_agent.lsn import Lsn
from cdc_agent.retry import Stopping
from cdc_agent.source.shape import Difference, Seen, ShapeReader, TableShape, attached, compare
from cdc_agent.tables.due import Dues

__all__ = ["HOUSEKEEPING_BYTES", "Follow", "GuardedTable", "TableGuard"]

log = logging.getLogger(__name__)

_TICK_S = 0.5
#: A commit that changes a table writes more WAL than this (440 at least), what an idle server writes of itself is less
#: (measured: tests/integration/test_shape_reader.py).
HOUSEKEEPING_BYTES = 384
#: For so many looks a table must be gone before its documents leave: one that is made again meanwhile is compared, and
#: its vectors are used again, which would leave with the documents.
_GONE_LOOKS = 3
#: Remembered in place of a shape: the table is gone, and its documents have left the index.
_GONE = "gone"
#: Remembered in place of a shape: since then rows may have gone by of which no document could be made.
_UNFIT = "unfit"

_STATES = ("TABLE_DROPPED", "TABLE_LEFT_PUBLICATION", "TABLE_LACKS_COLUMN", "TABLE_WITHOUT_KEY")
#: Differences for which decoding starts afresh, because it remembers names, keys and whose partition a table is.
_DECODED_AS_BEFORE = frozenset({Difference.REWRITTEN})

#: Learns which oid each configured table has now (None: it is gone, and so are its rows), and which schemas hold
#: the tables and their partitions.
Follow = Callable[[Mapping[str, "int | None"], frozenset[str]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedTable:
    """A configured table, and the columns that its collections use."""

    schema: str
    name: str
    used: frozenset[str]

    @property
    def qualified_name(self) -> str:
        return f"{self.schema}.{self.name}"


class TableGuard:
    """Wired by ``daemon.build``. ``verify`` belongs to the reader, ``run`` is the body of a thread of its own.

    ``publish`` adds a table to the publication (None: the plugin has none, and its log knows tables by name only).
    ``request`` asks for a table to be read again, or those of its rows that fulfil a condition. ``reconnect`` is set
    when decoding must start afresh.
    """

    def __init__(
        self,
        *,
        tables: Sequence[GuardedTable],
        shapes: ShapeReader,
        ledger: Ledger,
        health: Health,
        publish: Callable[[TableShape], None] | None,
        publish_hint: Callable[[TableShape], str],
        request: Callable[[str, str, str], None],
        follow: Follow,
        mend: bool,
        interval_s: float,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tables = tuple(tables)
        self._names = frozenset(table.qualified_name for table in tables)
        self._shapes = shapes
        self._ledger = ledger
        self._health = health
        self._publish = publish
        self._publish_hint = publish_hint
        self._follow = follow
        self._mend = mend
        self._interval_s = interval_s
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, TableShape | None] = {}
        self._due = Dues(request=request, ledger=ledger, condition=shapes.condition, clock=clock)
        self._problems: dict[str, str] = {}
        self._asked = False
        self._under_way = False
        self._reached = self._looked_at = Lsn(0)
        self._next = 0.0
        self.reconnect = threading.Event()

    # -- on every connection, before anything streams ---------------------------------------------------------

    def prepare(self, reached: Lsn) -> None:
        """Before the daemon runs. Raises ``IdentityMismatch`` for a table that is not there."""
        self._verify(reached, starting=True)

    def verify(self, reached: Lsn) -> None:
        """Compare every table with what is remembered, and act. Raises ``IdentityMismatch`` to refuse.

        ``reached`` is where the server's log ended before.
        """
        self._verify(reached, starting=False)

    def _verify(self, reached: Lsn, *, starting: bool) -> None:
        with self._lock:
            self.reconnect.clear()
            seen = self._published(self._read())
            self._looked(reached, seen)
            self._last = self._found(seen)
            # Before anything is read again, for it must be read where the rows are now; and by the reader's thread,
            # for its decoder has to know as well.
            self._follow(self._oids(), self._schemas())
            self._take_in(seen, starting=starting)

    # -- while streaming --------------------------------------------------------------------------------------

    def progressed(self, lsn: Lsn) -> None:
        """The server's log has reached ``lsn``."""
        self._reached = max(self._reached, lsn)

    def ask(self) -> None:
        """Somebody has seen a sign of a change: look at once."""
        self._asked = True

    def run(self) -> None:
        """Look when the server has written enough to have changed a table, and not too often."""
        while not self._stop.wait(_TICK_S):
            if self._is_due():
                try:
                    self.look()
                except Stopping:
                    return
                except CdcAgentError as exc:
                    # The reader's own connection reports a server that is away; whatever it is, it asks the same there.
                    if not exc.retryable and not isinstance(exc, SourceError):
                        raise
                    log.warning("cannot look at the tables error=%s", exc.message)

    def _is_due(self) -> bool:
        if self._asked or self._due.waiting:
            return True
        moved = self._reached - self._looked_at >= HOUSEKEEPING_BYTES
        return (moved or self._under_way or bool(self._due)) and self._clock() >= self._next

    def look(self) -> None:
        """Look once; what makes decoding start afresh is left to ``verify``, which the reader calls then."""
        with self._lock:
            self._asked = False
            self._next = self._clock() + self._interval_s
            reached, seen = self._reached, self._read()
            self._looked(reached, seen)
            changed = frozenset[Difference]().union(*(self._since_last(table, seen) for table in self._tables))
            if changed - _DECODED_AS_BEFORE:
                self.reconnect.set()
            elif changed:
                self._take_in(seen, starting=False)
            else:
                self._due.settle(seen)

    def _looked(self, reached: Lsn, seen: Seen) -> None:
        self._looked_at = max(self._looked_at, reached)
        # Their changes of the catalog are not visible yet; their commits may be all that is left to be written.
        self._under_way = bool(seen.running)

    def _since_last(self, table: GuardedTable, seen: Seen) -> frozenset[Difference]:
        before, now = self._last.get(table.qualified_name), self._now(table, seen)
        if before is not None:
            return compare(before, now, table.used)
        return frozenset({Difference.REPLACED}) if now is not None else frozenset()

    # -- comparing and acting ---------------------------------------------------------------------------------

    def _read(self) -> Seen:
        known = self._ledger.source_tables()
        names = [(table.schema, table.name) for table in self._tables]
        return self._shapes.read(names, [table.oid for table in known.values()])

    def _now(self, table: GuardedTable, seen: Seen) -> TableShape | None:
        """The table that has the name; if none has, the one that had it, unless that has another's by now."""
        named = seen.named(table.schema, table.name)
        known = self._ledger.source_tables().get(table.qualified_name)
        if named is not None or known is None:
            return named
        had = seen.tables.get(known.oid)
        return None if had is not None and had.qualified_name in self._names else had

    def _published(self, seen: Seen) -> Seen:
        """Add tables to the publication: those that are new, and with ``mend`` those that somebody took out."""
        if self._publish is None:
            return seen
        known = self._ledger.source_tables()
        added = False
        for table in self._tables:
            now, before = self._now(table, seen), known.get(table.qualified_name)
            if now is not None and not now.members and (self._mend or before is None or before.oid != now.oid):
                state = "TABLE_LEFT_PUBLICATION" if before and before.oid == now.oid else "TABLE_REPLACED"
                log.warning("adding to the publication table=%s state=%s", now.qualified_name, state)
                self._publish(now)
                added = True
        return self._read() if added else seen

    def _take_in(self, seen: Seen, *, starting: bool) -> None:
        known = self._ledger.source_tables()
        first_ever = not known
        self._last = self._found(seen)
        for table in self._tables:
            now, before = self._last[table.qualified_name], known.get(table.qualified_name)
            if now is None:
                self._is_dropped(table, before, seen, starting=starting)
            elif not self._is_unfit(table, now):
                self._is_there(table, before, now, seen, first_ever=first_ever)
        for state in _STATES:
            metrics.MISMATCH.labels(state=state).set(state in self._problems.values())
        self._due.settle(seen)

    def _found(self, seen: Seen) -> dict[str, TableShape | None]:
        return {table.qualified_name: self._now(table, seen) for table in self._tables}

    def _oids(self) -> dict[str, int | None]:
        """Where the rows of each table are. Rows of a dropped table are gone with ``mend``, else they are not read."""
        known = self._ledger.source_tables()
        oids: dict[str, int | None] = {}
        for name, now in self._last.items():
            if now is not None:
                oids[name] = now.oid
            elif name in known:
                oids[name] = None if self._mend else known[name].oid
        return oids

    def _schemas(self) -> frozenset[str]:
        shapes = [shape for shape in self._last.values() if shape is not None]
        held = {relation.schema for shape in shapes for relation in shape.relations.values()}
        return frozenset(held | {table.schema for table in self._tables})

    def _is_dropped(self, table: GuardedTable, before: SourceTable | None, seen: Seen, *, starting: bool) -> None:
        name = table.qualified_name
        error = IdentityMismatch(
            "TABLE_DROPPED",
            f"table {name} is gone",
            hint="create it again, or remove its collections from the config; with CDC_AGENT_SOURCE__ON_MISMATCH=resync"
            " its documents leave the index",
        )
        if starting and not self._mend:
            raise self._refusal(error)
        self._report(name, error)
        if self._mend and before is not None and before.shape != _GONE:
            gone = SourceTable(name=name, oid=before.oid, shape=_GONE)
            self._due.add(gone, {Difference.DROPPED}, seen, wait_s=_GONE_LOOKS * self._interval_s)
        else:
            self._due.drop(name)

    def _is_unfit(self, table: GuardedTable, now: TableShape) -> bool:
        """Whether no document can be made of the table's rows; what the index has of them stays meanwhile."""
        missing = table.used - {column.name for column in now.root.columns}
        if missing:
            error = IdentityMismatch(
                "TABLE_LACKS_COLUMN",
                f"table {now.qualified_name} has no column {', '.join(sorted(missing))}",
                hint="put the column back, or change the collections that use it",
            )
        elif not now.root.key:
            error = IdentityMismatch(
                "TABLE_WITHOUT_KEY",
                f"table {now.qualified_name} has no key by which its rows could be told apart",
                hint="alter table ... add primary key (...), then the table is read again by itself",
            )
        else:
            return False
        self._report(table.qualified_name, error)
        self._due.drop(table.qualified_name)
        self._ledger.save_source_table(SourceTable(name=table.qualified_name, oid=now.oid, shape=_UNFIT))
        return True

    def _is_there(
        self, table: GuardedTable, before: SourceTable | None, now: TableShape, seen: Seen, *, first_ever: bool
    ) -> None:
        differences = self._differences(table, before, now, seen, first_ever=first_ever)
        if Difference.LEFT_PUBLICATION in differences:
            raise self._refusal(
                IdentityMismatch(
                    "TABLE_LEFT_PUBLICATION",
                    f"table {now.qualified_name} is not in the publication any more; its changes since then are lost",
                    hint=f"{self._publish_hint(now)} Then start again: the table is read again, and only what differs"
                    " is embedded. With CDC_AGENT_SOURCE__ON_MISMATCH=resync this happens by itself",
                )
            )
        self._clear(table.qualified_name)
        fresh = SourceTable(name=table.qualified_name, oid=now.oid, shape=now.to_json())
        if differences - self._harmless():
            came = frozenset[int]()
            if before is not None and differences == {Difference.PARTITIONS} and before.shape != _UNFIT:
                came = attached(TableShape.from_json(before.shape), now)
            self._due.add(fresh, differences, seen, came)
            return
        if differences:
            log.warning("table renamed table=%s now=%s", table.qualified_name, now.qualified_name)
        self._due.drop(table.qualified_name)
        if fresh != before:
            self._ledger.save_source_table(fresh)

    def _differences(
        self, table: GuardedTable, before: SourceTable | None, now: TableShape, seen: Seen, *, first_ever: bool
    ) -> frozenset[Difference]:
        if before is None:
            # The first copy is under way; but a slot that is older than the table's membership has missed what
            # transactions wrote that began before that.
            missed = not first_ever and self._publish is not None and bool(seen.running)
            return frozenset({Difference.REJOINED_PUBLICATION} if missed else ())
        if before.shape in (_GONE, _UNFIT):
            left = {Difference.LEFT_PUBLICATION} if self._publish is not None and not now.members else set()
            return frozenset({Difference.REPLACED if before.shape == _GONE else Difference.COLUMNS, *left})
        return compare(TableShape.from_json(before.shape), now, table.used)

    def _harmless(self) -> frozenset[Difference]:
        """A log that names tables by oid is not confused by another name."""
        return frozenset() if self._publish is None else frozenset({Difference.RENAMED})

    # -- what is wrong ----------------------------------------------------------------------------------------

    def _report(self, name: str, error: IdentityMismatch) -> None:
        if self._problems.get(name) != error.state:
            log.error("table state=%s error=%s", error.state, error.message)
        self._problems[name] = error.state
        self._health.report(f"table {name}", error)

    def _refusal(self, error: IdentityMismatch) -> IdentityMismatch:
        metrics.MISMATCH.labels(state=error.state).set(1)
        return error

    def _clear(self, name: str) -> None:
        if self._problems.pop(name, None) is not None:
            self._health.clear(f"table {name}")
