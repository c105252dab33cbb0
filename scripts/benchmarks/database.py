"""A throwaway Postgres for the measurements, with fsync on as in production, and one database of it per measurement."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from cdc_agent.demo.installations import Installation, choose_installation
from cdc_agent.demo.postgres import PostgresServer, throwaway_server

__all__ = ["server", "wal_position", "with_wal2json"]

#: A checkpoint in the middle of one round and not of the next would be noise; both sides of a comparison meet the same.
_SETTINGS = {"max_wal_size": "16GB", "checkpoint_timeout": "1h", "autovacuum": "off"}


@contextmanager
def server() -> Iterator[tuple[PostgresServer, Installation]]:
    """A server of version 15 where there is one (only Debian's has wal2json and pg_recvlogical), else any."""
    installation = _installation()
    with throwaway_server(installation, _SETTINGS | _plugin_settings(installation)) as running:
        yield running, installation


def with_wal2json(installation: Installation) -> bool:
    """Whether the plugin's library lies with the server's others."""
    return any((installation.bin_dir.parent / "lib").rglob("wal2json.so"))


def connect(dsn: str) -> psycopg.Connection[Any]:
    """In autocommit: one statement, one commit."""
    return psycopg.connect(dsn, autocommit=True)


def create_database(server: PostgresServer, name: str) -> str:
    """An empty database; returns its DSN."""
    with connect(server.dsn()) as admin:
        admin.execute(f'create database "{name}"')
    return server.dsn(name)


def wal_position(connection: psycopg.Connection[Any]) -> str:
    """Where the log ends now: everything committed before lies in front of it."""
    row = connection.execute("select pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    return str(row[0])


def _installation() -> Installation:
    try:
        return choose_installation(15)
    except Exception:
        return choose_installation()


def _plugin_settings(installation: Installation) -> dict[str, str]:
    """Since 15.19 and 18.6 a server refuses plugins that it is not told of; before, it refuses the setting."""
    command = [str(installation.bin_dir / "postgres"), "--describe-config"]
    known = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
    names = {line.partition("\t")[0] for line in known.splitlines()}
    return {"output_plugin_libraries": "pgoutput, wal2json"} if "output_plugin_libraries" in names else {}
