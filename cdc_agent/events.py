"""What travels through the house: relations, rows, transactions, ``ChangeEvent`` (``envelope`` has Debezium's form of
it), and ``Event`` (``cloudevents`` has its CloudEvents form).

Facts only; no socket, no clock. Values stay in Postgres' text form (bytes) until somebody asks for them by name,
because capture must be fast and exact and most columns are never looked at.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from cdc_agent import values
from cdc_agent.lsn import Lsn, Version

__all__ = [
    "UNCHANGED",
    "Change",
    "ChangeEvent",
    "Column",
    "Event",
    "Kind",
    "Op",
    "RawRow",
    "RawValue",
    "Relation",
    "Row",
    "SourceInfo",
    "Transaction",
]


class Op(enum.StrEnum):
    """Kinds of change, spelled as in Debezium's ``op``."""

    CREATE = "c"
    UPDATE = "u"
    DELETE = "d"
    READ = "r"
    TRUNCATE = "t"
    MESSAGE = "m"


class _Unchanged(enum.Enum):
    UNCHANGED = "unchanged"

    def __repr__(self) -> str:
        return "UNCHANGED"


#: The value was not sent because it did not change (TOAST), or because the plugin cannot express it. Never NULL.
UNCHANGED: Final = _Unchanged.UNCHANGED

RawValue: TypeAlias = "bytes | _Unchanged | None"
RawRow: TypeAlias = "tuple[RawValue, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column as the server described it next to the rows."""

    name: str
    type_oid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A table at one moment: its columns in order, and which of them identify a row.

    ``oid`` is the table's own, also for a partition; ``root_oid`` is the table that the configuration names (the
    partitioned root, or the table itself). ``key`` names the document key columns.
    """

    oid: int
    root_oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    replica_identity: str = "d"
    index: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", {column.name: i for i, column in enumerate(self.columns)})

    @property
    def qualified_name(self) -> str:
        return f"{self.schema}.{self.name}"


class Row(Mapping[str, Any]):
    """One row image: a mapping from column name to Python value, decoded when asked for.

    ``UNCHANGED`` stands where the server did not send the value.
    """

    __slots__ = ("raw", "relation")

    def __init__(self, relation: Relation, raw: RawRow) -> None:
        self.relation = relation
        self.raw = raw

    def __getitem__(self, name: str) -> Any:
        i = self.relation.index[name]
        value = self.raw[i]
        if value is None or value is UNCHANGED:
            return value
        return values.load(self.relation.columns[i].type_oid, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.relation.index)

    def __len__(self) -> int:
        return len(self.raw)

    def text(self, name: str) -> RawValue:
        """The value as Postgres wrote it."""
        return self.raw[self.relation.index[name]]

    def key(self) -> tuple[str, ...] | None:
        """The document key as text values, or None if this image does not carry all of it."""
        parts = [self.raw[self.relation.index[name]] for name in self.relation.key]
        if not parts or any(part is None or part is UNCHANGED for part in parts):
            return None
        return tuple(part.decode("utf-8", "backslashreplace") for part in parts if isinstance(part, bytes))

    def __repr__(self) -> str:
        return f"Row({self.relation.qualified_name}, {len(self.raw)} columns)"


class Change(NamedTuple):
    """One message of a transaction as the source decoded it; a plain tuple because there are millions.

    For ``MESSAGE``, ``before`` is ``(prefix, content)`` and ``relation`` is None.
    """

    op: str
    relation: Relation | None
    ordinal: int
    before: RawRow | None
    after: RawRow | None


@dataclass(slots=True, kw_only=True)
class Transaction:
    """Changes of one commit, or one part of a commit too large to hold.

    ``end_lsn`` is set on the last part only: acknowledging it means "this commit is ours now". ``xid`` is the full
    64-bit transaction id. ``size_bytes`` estimates the memory held. ``snapshot`` is set when the changes are rows read
    from the table: what that read could see; ``resync_id`` names the resync that read them.
    """

    xid: int
    commit_lsn: Lsn
    commit_ts_us: int
    changes: list[Change]
    end_lsn: Lsn | None = None
    size_bytes: int = 0
    snapshot: str | None = None
    resync_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """Debezium's ``source`` block."""

    db: str
    schema: str
    table: str
    lsn: Lsn
    ordinal: int
    tx_id: int
    snapshot: str
    ts_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEvent:
    """One entry of the stream: a row changed, was read, a table was truncated, or a logical message was written.

    ``offset`` is the entry's place in the stream (1, 2, 3…). ``version`` orders changes of one document. For reads,
    ``snapshot`` is the ``pg_snapshot`` in which the row was seen. ``message`` is ``(prefix, content)`` for op ``m``.
    """

    op: Op
    version: Version
    xid: int
    commit_ts_us: int
    relation: Relation | None = None
    before: Row | None = None
    after: Row | None = None
    offset: int = 0
    snapshot: str | None = None
    resync_id: int = 0
    message: tuple[str, bytes] | None = None

    @property
    def ts_ms(self) -> int:
        return self.commit_ts_us // 1000

    def source(self, db: str = "") -> SourceInfo:
        return SourceInfo(
            db=db,
            schema=self.relation.schema if self.relation else "",
            table=self.relation.name if self.relation else "",
            lsn=self.version.commit_lsn,
            ordinal=self.version.ordinal,
            tx_id=self.xid,
            snapshot="incremental" if self.op is Op.READ else "false",
            ts_ms=self.ts_ms,
        )


class Kind(enum.StrEnum):
    """What an ``Event`` is to those who hear it. The first two are kept for ever; the others until all have heard."""

    #: Something happened. Everybody who listens hears of it.
    FACT = "fact"
    #: Somebody is to do something. Exactly one agent does.
    COMMAND = "command"
    #: A row of a watched table changed; ``type`` is the table, ``data`` is Debezium's envelope.
    CHANGE = "change"
    #: It is time for one agent.
    TICK = "tick"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened, told to us or by us: a webhook delivery, a fact, a command. It never changes.

    ``source`` and ``id`` name it for ever: two events with the same pair are one. ``type`` says what happened
    (``github.push``), ``key`` to what (empty: to nothing in particular), ``time`` when, with its offset. ``data`` is
    JSON-ready. ``causation_id`` is the event that this one answers, ``correlation_id`` the one that began it all,
    ``hops`` how many lie between, and ``trail`` which agents handled those, the oldest first.
    """

    id: str
    source: str
    type: str
    time: dt.datetime
    data: Any
    key: str = ""
    kind: Kind = Kind.FACT
    correlation_id: str = ""
    causation_id: str = ""
    hops: int = 0
    trail: tuple[str, ...] = ()
