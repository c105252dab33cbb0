"""``cdc-agent check``: what must be true of the database, each failure with what mends it. Changes nothing."""

from cdc_agent.source.preflight.examination import check, require
from cdc_agent.source.preflight.findings import Finding
from cdc_agent.source.preflight.own_schema import own_tables

__all__ = ["Finding", "check", "own_tables", "require"]
