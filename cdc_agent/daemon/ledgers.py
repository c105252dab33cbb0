"""Which ledger the configuration means: a file or a schema of a database; how it is opened, named and put aside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from cdc_agent.daemon.threads import in_a_loop
from cdc_agent.errors import LedgerUnavailable, PreflightError
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.source.preflight import Finding, own_tables
from cdc_agent.sqlite_file import put_aside

if TYPE_CHECKING:
    from cdc_agent.config import Config
    from cdc_agent.ledger.base import Ledger
    from cdc_agent.ledger.postgres import PostgresLedger
    from cdc_agent.retry import Retrier

__all__ = [
    "ledger_findings",
    "ledger_is_there",
    "ledger_place",
    "open_ledger",
    "put_ledger_aside",
    "refuse_to_follow_itself",
    "wait_for_its_server",
]

T = TypeVar("T")

log = logging.getLogger(__name__)


def open_ledger(config: Config, *, alone: bool = True) -> SqliteLedger | PostgresLedger:
    """Made if it is not there. Raises ``IdentityMismatch`` for a damaged one, ``LedgerError`` for the rest.

    Two daemons with one schema would each take what the other one does for damage, so it is opened by one ``alone``. A
    file is guarded by the lock of its folder.
    """
    if config.ledger.backend == "sqlite":
        return SqliteLedger(config.ledger_path, embedding_cache_bytes=config.ledger.embedding_cache_bytes)
    from cdc_agent.ledger.postgres import PostgresLedger

    return PostgresLedger(
        _dsn(config),
        config.ledger.schema_name,
        embedding_cache_bytes=config.ledger.embedding_cache_bytes,
        alone=alone,
    )


def wait_for_its_server(ledger: Ledger, retrier: Retrier) -> None:
    """From now on the daemon's loops wait while the ledger's server is away; who asks by HTTP is told at once."""
    from cdc_agent.ledger.postgres import PostgresLedger

    def patience(call: Callable[[], T]) -> T:
        return retrier.until_done("ledger", call, (LedgerUnavailable,)) if in_a_loop() else call()

    if isinstance(ledger, PostgresLedger):
        ledger.patience = patience


def ledger_place(config: Config) -> str:
    """Where it is, in words."""
    return str(config.ledger_path) if config.ledger.backend == "sqlite" else f"schema {config.ledger.schema_name}"


def ledger_is_there(config: Config) -> bool:
    """Whether one was ever made."""
    if config.ledger.backend == "sqlite":
        return config.ledger_path.exists()
    from cdc_agent.ledger.postgres_examination import is_there

    return is_there(_dsn(config), config.ledger.schema_name)


def put_ledger_aside(config: Config) -> None:
    """Keep a damaged one under another name, so that it can be looked at. It must be closed."""
    if config.ledger.backend == "sqlite":
        log.warning("put aside file=%s", put_aside(config.ledger_path))
        return
    from cdc_agent.ledger.postgres_examination import put_schema_aside

    log.warning("put aside schema=%s", put_schema_aside(_dsn(config), config.ledger.schema_name))


def ledger_findings(config: Config) -> Iterator[Finding]:
    """Whether a ledger in Postgres can be opened, and would not be followed. Changes nothing."""
    if config.ledger.backend == "sqlite":
        return
    from cdc_agent.ledger.postgres_examination import examine

    found = examine(_dsn(config), config.ledger.schema_name)
    yield Finding(name="ledger", ok=found.ok, message=found.message, hint=found.hint)
    if found.database is not None:
        yield _not_followed(config, found.database)


def refuse_to_follow_itself(config: Config) -> None:
    """Raises ``PreflightError`` where the source sends the ledger's own tables: every flip would wake the capture."""
    if config.ledger.backend == "sqlite":
        return
    from cdc_agent.ledger.postgres_examination import database_of

    found = _not_followed(config, database_of(_dsn(config)))
    if not found.ok:
        raise PreflightError(f"{found.name}: {found.message}", hint=found.hint)


def _not_followed(config: Config, database: tuple[str, int]) -> Finding:
    source = config.source
    return own_tables(
        source.dsn.get_secret_value(),
        publication_name=source.publication_name if source.plugin == "pgoutput" else None,
        tables=[(spec.schema, spec.table) for spec in config.table_specs()],
        schema=config.ledger.schema_name,
        database=database,
    )


def _dsn(config: Config) -> str:
    dsn = config.ledger.dsn
    assert dsn is not None, "the configuration says so"
    return dsn.get_secret_value()
