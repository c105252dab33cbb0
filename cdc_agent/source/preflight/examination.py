"""Asks whether a database is set up for us, and says for every answer of no which SQL, command or setting mends it.

Owns the questions and their remedies. Changes nothing on the server: its session is read-only, and the one thing it
makes, a temporary slot that proves a plugin outside Postgres, is gone before ``check`` returns. Whether slot, stream,
ledger and store belong together is not asked here.

A finding that is not ok stops the daemon. A finding that is ok and has a hint is advice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import psycopg

from cdc_agent.errors import CdcAgentError, PreflightError, SourceUnavailable
from cdc_agent.source.connection import connect
from cdc_agent.source.preflight.facts import SQL, Role, Server, Slot, Wanted, ask
from cdc_agent.source.preflight.findings import Finding, passed
from cdc_agent.source.preflight.plugin import own_slot, plugin_allowed, try_replication
from cdc_agent.source.preflight.reaching import Address, dsn_fault, text_of, unreachable
from cdc_agent.source.preflight.role import privileges, replication_right
from cdc_agent.source.preflight.server import (
    OLDEST_VERSION,
    free_senders,
    free_slots,
    old_version,
    primary,
    retention,
    wal_level,
)
from cdc_agent.source.preflight.tables import table_findings

_NO_COLUMNS: Mapping[tuple[str, str], Collection[str]] = MappingProxyType({})


def check(
    dsn: str,
    *,
    slot_name: str,
    publication_name: str,
    plugin: str,
    tables: Sequence[tuple[str, str]],
    columns: Mapping[tuple[str, str], Collection[str]] = _NO_COLUMNS,
) -> list[Finding]:
    """Examine the server, the role, the slot, the publication and every table. Never raises for what it finds.

    ``columns`` names the columns that a table must have and send. A question whose answer hangs on one that failed is
    left out, so each failure stands there once.
    """
    wanted = Wanted(slot_name, publication_name, plugin, tuple(dict.fromkeys(tables)), columns)
    if fault := dsn_fault(dsn):
        return [fault]
    findings: list[Finding] = []
    try:
        with connect(dsn) as connection:
            connection.execute(SQL["calm_session"])
            findings.append(passed("connection", f"connected to {Address.of(dsn)}"))
            # One by one: later questions look at the answers so far.
            for finding in _examine(connection, dsn, wanted, findings):
                findings.append(finding)
    except (psycopg.Error, CdcAgentError) as exc:
        findings.append(unreachable(dsn, text_of(exc)))
    return findings


def require(findings: Iterable[Finding]) -> None:
    """Raise one ``PreflightError`` that says everything that is not ok; ``SourceUnavailable`` if that may pass."""
    failed = [finding for finding in findings if not finding.ok]
    if failed and all(finding.passing for finding in failed):
        raise SourceUnavailable(failed[0].message, hint=failed[0].hint)
    if failed:
        lines = [f"- {f.name}: {f.message}\n  hint: {f.hint}" for f in failed]
        raise PreflightError(
            "the database is not ready for change capture:\n" + "\n".join(lines),
            hint="mend the above, then `cdc-agent check` says whether anything is left",
        )


def _examine(
    connection: psycopg.Connection[Any], dsn: str, wanted: Wanted, so_far: Sequence[Finding]
) -> Iterator[Finding]:
    """Ask from the server inwards. ``so_far`` grows with what we yield and says what need not be asked any more."""
    if connection.info.server_version < OLDEST_VERSION:
        yield old_version(connection.info.server_version)
        return
    (server,) = ask(connection, Server, "server")
    (role,) = ask(connection, Role, "role")
    slot = next(iter(ask(connection, Slot, "slot", slot=wanted.slot_name)), None)
    yield passed("server version", f"Postgres {server.version}")
    yield primary(server)
    yield wal_level(server)
    yield retention(server)
    yield replication_right(role)
    yield privileges(role, wanted)
    yield free_slots(server, slot)
    yield free_senders(server, slot)
    yield plugin_allowed(server, wanted.plugin)
    if slot:
        yield own_slot(slot, wanted, role)
    if all(finding.ok for finding in so_far) and server.used_senders < server.max_senders:
        yield from try_replication(connection, dsn, wanted, server, has_slot=slot is not None)
    yield from table_findings(connection, wanted, server, role, slot)
