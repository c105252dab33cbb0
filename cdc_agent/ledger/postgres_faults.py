"""What an error of Postgres means to the ledger: by SQLSTATE, because texts vary by version and language."""

from __future__ import annotations

import psycopg

from cdc_agent.errors import LedgerError, LedgerFull, LedgerUnavailable

__all__ = ["DAMAGE", "error_of", "first_line", "is_lost"]

#: SQLSTATEs of tables that are not as we made them: no such table or column; a page that cannot be read.
DAMAGE = frozenset({"42P01", "42703", "XX001", "XX002"})


#: What passes: a session that waited too long in a transaction, a standby, out of memory or connections, a lock.
_PASSING = frozenset({"25P03", "25006", "53200", "53300", "55P03"})


def is_lost(exc: psycopg.Error) -> bool:
    """Whether a new connection may do at once: the server ended this one, or it broke."""
    state = exc.sqlstate
    return _is_broken(exc) or (state is not None and (state[:2] in ("08", "57") or state == "25P03"))


def _is_broken(exc: psycopg.Error) -> bool:
    """Whether libpq found the connection broken. What psycopg itself refuses to send has no SQLSTATE either."""
    return exc.sqlstate is None and isinstance(exc, psycopg.OperationalError)


def error_of(exc: psycopg.Error) -> LedgerError:
    state, message = exc.sqlstate or "", first_line(exc)
    if state == "53100":
        return LedgerFull(f"the disk under the ledger is full: {message}", hint="free space; work goes on by itself")
    if (not state and "authentication failed" in message) or state in ("28000", "28P01"):
        return LedgerUnavailable(f"the ledger's server refuses us: {message}", hint="check ledger.dsn and pg_hba.conf")
    if _is_broken(exc) or state[:2] in ("08", "57") or state in _PASSING:
        return LedgerUnavailable(
            f"the ledger's server is not available: {message}", hint="is it running, reachable and no standby?"
        )
    if state == "42501":
        return LedgerError(f"the ledger refuses us: {message}", hint="see the grants in docs/OPERATIONS.md")
    return LedgerError(f"the ledger failed: {message}", hint="look at the log of its server")


def first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or ["connection failed"])[0]
