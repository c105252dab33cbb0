"""What somebody asks to be read again, and the resyncs that this comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cdc_agent.errors import UsageError
from cdc_agent.ledger.base import Resync

__all__ = ["ResyncOrder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResyncOrder:
    """Everything, a collection, a table, or some rows of one. ``where`` is SQL over the table's columns."""

    collection: str | None = None
    table: str | None = None
    keys: tuple[tuple[str, ...], ...] = ()
    where: str = ""
    rewrite: bool = False
    reason: str = ""

    def resyncs(self, tables: Mapping[str, str]) -> list[Resync]:
        """One resync a table. ``tables`` are those of the collections. Raises ``UsageError`` for what is not there."""
        by_table: dict[str, list[str]] = {}
        for collection, table in tables.items():
            if self.collection in (None, collection) and self.table in (None, table):
                by_table.setdefault(table, []).append(collection)
        self._check(tables, by_table)
        return [
            Resync(
                table=table,
                collections=tuple(collections),
                keys=self.keys,
                predicate=self.where,
                rewrite=self.rewrite,
                reason=self.reason,
            )
            for table, collections in sorted(by_table.items())
        ]

    def _check(self, tables: Mapping[str, str], found: Mapping[str, object]) -> None:
        if self.collection is not None and self.collection not in tables:
            known = ", ".join(sorted(tables))
            raise UsageError(f"there is no collection {self.collection!r}", hint=f"collections: {known}")
        if not found and self.collection is not None:
            raise UsageError(
                f"collection {self.collection} is not made of table {self.table}",
                hint=f"it is made of {tables[self.collection]}",
            )
        if not found:
            known = ", ".join(sorted(set(tables.values())))
            raise UsageError(f"no collection is made of table {self.table}", hint=f"tables: {known}")
        if (self.keys or self.where) and len(found) > 1:
            what = "keys" if self.keys else "where"
            raise UsageError(f"{what} without table", hint="say in table which table the rows belong to")
        if self.keys and self.where:
            raise UsageError("keys and where at once", hint="give one of them")
