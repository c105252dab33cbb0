"""The watched tables as they are, not only their rows: ``guard`` notices what an ALTER TABLE changes without a row,
``due`` has a changed table read again at the right moment."""

from cdc_agent.tables.guard import HOUSEKEEPING_BYTES, Follow, GuardedTable, TableGuard

__all__ = ["HOUSEKEEPING_BYTES", "Follow", "GuardedTable", "TableGuard"]
