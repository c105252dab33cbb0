"""Folds the changes of a batch into one pending state per document, in version order. Pure.

Many changes of one row become one; values that Postgres did not send are filled from an earlier change of the same
batch or from the old row, and stay ``UNCHANGED`` otherwise, never NULL. What is older than the index knows is left
out: by version for redelivered changes, by snapshot for changes that a read of the row has already seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cdc_agent.documents.model import document_id
from cdc_agent.events import UNCHANGED, ChangeEvent, Op, RawValue, Row
from cdc_agent.ledger.base import Manifest
from cdc_agent.lsn import Version
from cdc_agent.snapshot import Snapshot
from cdc_agent.values import FLOAT_OIDS

__all__ = ["Fold", "Pending", "filled"]


@dataclass(slots=True, kw_only=True)
class Pending:
    """Where one document stands after the changes folded so far.

    ``base`` is the manifest before the batch. ``row`` is the newest row as far as it is known, None when the document
    is gone. ``touched`` is False while nothing but the bookkeeping (version, epoch) moved.
    """

    document_id: str
    key: tuple[str, ...]
    base: Manifest | None
    version: Version
    xid: int
    relation_oid: int
    commit_ts_us: int = 0
    first_commit_ts_us: int = 0
    row: Row | None = None
    snapshot: str | None = None
    epoch: int = 0
    touched: bool = False
    #: The row comes whole from a change that created it, so columns that are missing are not in the index either.
    created: bool = False
    from_resync: bool = False
    #: Nothing but one insert is known of the document.
    born: bool = False
    #: The row is gone from here because it has another key now; or it came from another key.
    moved_away: bool = False
    moved_here: bool = False
    #: Every chunk gets a new id, also where nothing changed: a resync was told so.
    rewrite: bool = False

    @property
    def was_live(self) -> bool:
        return self.base is not None and not self.base.deleted


#: Looks up the manifest of a document, as of before this batch.
ManifestOf = Callable[[str], "Manifest | None"]
#: Lists the live documents of one physical relation.
DocumentsOf = Callable[[int], Iterable[str]]


@dataclass(slots=True, kw_only=True)
class Fold:
    """The pending documents of one collection while a batch is folded into it."""

    table: str
    manifest_of: ManifestOf
    documents_of: DocumentsOf
    #: Takes back a document that was put off in an earlier batch.
    resume: Callable[[str], Pending | None] = lambda _: None
    pending: dict[str, Pending] = field(default_factory=dict)

    def change(self, event: ChangeEvent, *, epoch: int = 0, rewrite: bool = False) -> None:
        """Fold one event of this collection's table. ``epoch`` names the resync of a read, ``rewrite`` is its own."""
        if event.op is Op.TRUNCATE:
            self._truncate(event)
        elif event.op is Op.READ:
            self._read(event, epoch, rewrite)
        elif event.op is Op.DELETE:
            self._delete(event, _key(event.before))
        else:
            self._write(event)

    def _write(self, event: ChangeEvent) -> None:
        after, old_key = event.after, _key(event.before)
        if after is None:
            return
        # A long key that did not change is left out of the new row.
        new_key = _key(after) or _key(filled(after, [event.before] if event.before is not None else []))
        if new_key is None:
            return
        moved = event.op is Op.UPDATE and old_key is not None and old_key != new_key
        moved_from = self._delete(event, old_key, keep_row=True) if moved else None
        pending = self._at(new_key, event)
        # What stood at the key before a row moved there was another row.
        known = None if moved or event.op is Op.CREATE else pending.row
        if moved_from is not None:
            known, moved_from.row, moved_from.moved_away = moved_from.row, None, True
        if self._outdated(pending, event):
            return
        born = event.op is Op.CREATE and pending.base is None and not pending.touched
        self._advance(pending, event)
        pending.born = born
        pending.moved_here = pending.moved_here or moved_from is not None
        pending.created = pending.created or event.op is Op.CREATE or moved
        pending.row = filled(after, [row for row in (known, event.before) if row is not None])

    def _delete(self, event: ChangeEvent, key: tuple[str, ...] | None, *, keep_row: bool = False) -> Pending | None:
        if key is None:
            return None
        pending = self._at(key, event)
        if self._outdated(pending, event):
            return None
        self._advance(pending, event)
        pending.created = pending.moved_away = pending.moved_here = False
        if not keep_row:
            pending.row = None
        return pending

    def _read(self, event: ChangeEvent, epoch: int, rewrite: bool) -> None:
        """A row that a resync read: wins unless the index already knows something that the read did not see."""
        key = _key(event.after)
        if key is None or event.snapshot is None:
            return
        pending = self._at(key, event)
        pending.epoch = max(pending.epoch, epoch)
        pending.rewrite = pending.rewrite or rewrite
        snapshot = Snapshot.parse(event.snapshot)
        known_later = pending.snapshot is not None and not snapshot.not_before(Snapshot.parse(pending.snapshot))
        if known_later or not snapshot.sees(pending.xid):
            return
        self._advance(pending, event)
        pending.xid = 0
        pending.snapshot = event.snapshot
        pending.row = event.after
        pending.created = False
        pending.from_resync = True

    def absent(self, event: ChangeEvent, key: tuple[str, ...]) -> None:
        """A resync looked for this key and found no row."""
        pending = self._at(key, event)
        snapshot = Snapshot.parse(event.snapshot or "0:0:")
        known_later = pending.snapshot is not None and not snapshot.not_before(Snapshot.parse(pending.snapshot))
        if not known_later and snapshot.sees(pending.xid):
            self._advance(pending, event)
            pending.xid, pending.snapshot = 0, event.snapshot
            pending.row, pending.created = None, False

    def gone(self, found: str, event: ChangeEvent, *, since: Snapshot, epoch: int) -> None:
        """A document that a whole resync never met. It is gone unless the index learned of it after ``since``, the
        snapshot of the resync's beginning."""
        pending = self._of(found, key_of(found), event)
        if not (pending.row is not None if pending.touched else pending.was_live):
            return
        read_later = pending.snapshot is not None and Snapshot.parse(pending.snapshot).not_before(since)
        if pending.epoch >= epoch or read_later or not since.sees(pending.xid):
            return
        self._advance(pending, event)
        pending.row, pending.created = None, False

    def _truncate(self, event: ChangeEvent) -> None:
        assert event.relation is not None
        oid = event.relation.oid
        for found in self.documents_of(oid):
            self._of(found, key_of(found), event)
        # A row may have left the relation in a batch that is under way; only what is pending knows.
        for pending in self.pending.values():
            if pending.relation_oid == oid:
                self._empty(pending, event)

    def _empty(self, pending: Pending, event: ChangeEvent) -> None:
        if not self._outdated(pending, event):
            self._advance(pending, event)
            pending.row, pending.created = None, False

    def _at(self, key: tuple[str, ...], event: ChangeEvent) -> Pending:
        pending = self._of(document_id(self.table, key), key, event)
        pending.key = key
        return pending

    def _of(self, found: str, key: tuple[str, ...], event: ChangeEvent) -> Pending:
        pending = self.pending.get(found) or self.resume(found) or self._begun(found, key, event)
        self.pending[found] = pending
        return pending

    def _begun(self, found: str, key: tuple[str, ...], event: ChangeEvent) -> Pending:
        base = self.manifest_of(found)
        return Pending(
            document_id=found,
            key=key,
            base=base,
            # Without a manifest anything is newer; a version just before the event says so.
            version=base.version if base else Version(event.version.commit_lsn, event.version.ordinal - 1),
            xid=base.xid if base else 0,
            relation_oid=base.relation_oid if base else 0,
            snapshot=base.snapshot if base else None,
            epoch=base.epoch if base else 0,
            commit_ts_us=event.commit_ts_us,
            first_commit_ts_us=event.commit_ts_us,
        )

    def _outdated(self, pending: Pending, event: ChangeEvent) -> bool:
        if event.version <= pending.version:
            return True
        if pending.snapshot is None or not Snapshot.parse(pending.snapshot).sees(event.xid):
            return False
        # The row was read after this change committed: its effect is in the index already.
        pending.version = event.version
        pending.xid = event.xid
        return True

    def _advance(self, pending: Pending, event: ChangeEvent) -> None:
        pending.version = event.version
        pending.xid = event.xid
        pending.commit_ts_us = event.commit_ts_us
        pending.snapshot = None
        pending.touched = True
        pending.from_resync = False
        pending.born = False
        if event.relation is not None and event.op is not Op.MESSAGE:
            pending.relation_oid = event.relation.oid


def _key(row: Row | None) -> tuple[str, ...] | None:
    return row.key() if row is not None else None


def key_of(found: str) -> tuple[str, ...]:
    """The key inside a document id: ``schema.table:a%2Cb,c``. Ambiguous only for single keys with commas, where the
    caller has a better one."""
    rest = found.partition(":")[2]
    parts = rest.split(",")
    if len(parts) == 1:
        return (rest,)
    return tuple(part.replace("%2C", ",").replace("%25", "%") for part in parts)


def filled(after: Row, known: Iterable[Row]) -> Row:
    """``after`` with values that were not sent taken from the first known row that has them, by column name.

    Not those of floats and numerics: there it may also mean that the plugin cannot express the new value.
    """
    if UNCHANGED not in after.raw:
        return after
    raw = list(after.raw)
    for source in known:
        for i, column in enumerate(after.relation.columns):
            if raw[i] is UNCHANGED and column.type_oid not in FLOAT_OIDS:
                raw[i] = _value(source, column.name)
    return Row(after.relation, tuple(raw))


def _value(row: Row, name: str) -> RawValue:
    place = row.relation.index.get(name)
    return UNCHANGED if place is None else row.raw[place]
