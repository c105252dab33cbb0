"""Real Postgres for tests: one server per major version and session, one database per test.

Owns which servers a session has, what a test may ask for, and that nothing is left behind.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psycopg
import pytest
from psycopg import sql

from cdc_agent.demo.installations import BIN_VARIABLE, Installation, find_installations
from cdc_agent.demo.postgres import PostgresServer
from tests.support.wait import until

__all__ = ["ALL_KINDS", "Database", "Kind", "Servers", "kinds_wanted"]


class Kind(NamedTuple):
    """What a test can ask for: a major version and the output plugin that its slot is to use."""

    version: int
    plugin: str

    def __str__(self) -> str:
        return f"pg{self.version}-{self.plugin}"


#: The default of ordinary tests comes first. No wheel carries wal2json, so it comes with Debian's version alone.
ALL_KINDS = (Kind(15, "pgoutput"), Kind(15, "wal2json"), Kind(16, "pgoutput"), Kind(18, "pgoutput"))

#: A killed process loses nothing without fsync; only a machine that loses its power does.
SETTINGS = {"fsync": "off"}

_numbers = itertools.count(1)


def kinds_wanted(marker: pytest.Mark | None) -> list[Kind]:
    """Read ``@pytest.mark.postgres(versions=..., plugin=...)``; without it, the default kind alone."""
    wanted = {"versions": [15], "plugin": "pgoutput"} | (marker.kwargs if marker else {})
    versions, plugin = wanted.pop("versions"), wanted.pop("plugin")
    kinds = [
        kind for kind in ALL_KINDS if (versions == "all" or kind.version in versions) and plugin in ("all", kind.plugin)
    ]
    if wanted or (marker and marker.args) or not kinds:
        raise pytest.UsageError(f"no server is like {marker}; there are {', '.join(map(str, ALL_KINDS))}")
    return kinds


class Servers:
    """The servers of one session, each started when the first test asks for it."""

    def __init__(self) -> None:
        self._installations = newest_of_each_version(find_installations())
        self._running: dict[int, PostgresServer] = {}
        self._folders: list[Path] = []
        self._all: list[PostgresServer] = []

    def describe(self) -> str:
        """One line for the head of the report."""
        words = [_describe(one) for one in self._installations.values()]
        return ", ".join(words) or "none found"

    def database(self, kind: Kind) -> Database:
        """A fresh database on the session's server of that version."""
        installation = self._installation(kind)
        if kind.version not in self._running:
            self._running[kind.version] = self._new(installation)
        server = self._running[kind.version]
        server.start()  # Nothing happens if it runs; a test may have killed it.
        return Database.create(server, kind)

    def private_database(self, kind: Kind) -> Database:
        """A fresh database on a server of its own, for tests that kill, stop or reconfigure it."""
        server = self._new(self._installation(kind))
        server.start()
        return Database.create(server, kind)

    def new_server(self, version: int) -> PostgresServer:
        """A server that was never started, in a directory of its own."""
        return self._new(self._installation(Kind(version, "pgoutput")))

    def close(self) -> None:
        """End every server, also those that a test left running, and remove their data."""
        for server in self._all:
            server.stop("immediate")
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _new(self, installation: Installation) -> PostgresServer:
        folder = Path(tempfile.mkdtemp(prefix="cdc-agent-test-", dir="/tmp"))
        folder.chmod(0o755)  # Root's servers run as nobody, who has to pass through here.
        self._folders.append(folder)
        server = PostgresServer(
            installation.bin_dir, folder / "data", settings=SETTINGS | _plugin_settings(installation)
        )
        self._all.append(server)
        return server

    def _installation(self, kind: Kind) -> Installation:
        installation = self._installations.get(kind.version)
        if installation is None:
            _do_without(f"Postgres {kind.version} is not on this machine; scripts/test brings it where it can")
        if not has_plugin(installation, kind.plugin):
            _do_without(f"Postgres {kind.version} has no {kind.plugin} here; scripts/test brings it where it can")
        return installation


@dataclass(kw_only=True)
class Database:
    """One test's own database. ``slot_name`` is free to use and unique in the whole server."""

    server: PostgresServer
    name: str
    version: int
    plugin: str
    slot_name: str
    _connections: list[psycopg.Connection[Any]] = field(default_factory=list)

    @classmethod
    def create(cls, server: PostgresServer, kind: Kind) -> Database:
        name = f"cdc_test_{next(_numbers)}"
        with psycopg.connect(server.conninfo, autocommit=True) as admin:
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        return cls(server=server, name=name, version=kind.version, plugin=kind.plugin, slot_name=f"{name}_slot")

    @property
    def dsn(self) -> str:
        """Over TCP; follows the server's port."""
        return self.server.dsn(self.name)

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A new connection in autocommit, closed at the end of the test."""
        connection: psycopg.Connection[Any] = psycopg.connect(self.dsn, **{"autocommit": True, **options})
        self._connections.append(connection)
        return connection

    def execute(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own and return its rows, if it has any."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement, parameters)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def hold_commits(self) -> None:
        """From now on commits of this server that wait for a standby (``synchronous_commit = on``) wait for ever."""
        self.execute("alter system set synchronous_standby_names = 'ghost'")
        self.execute("select pg_reload_conf()")
        until(lambda: self.execute("show synchronous_standby_names") == [("ghost",)], what="the reload")
        # Whether there are standbys to wait for is told by the checkpointer, which reloads before it does this.
        self.execute("checkpoint")

    def disconnect(self) -> None:
        """Close the connections that ``connect`` made."""
        for connection in self._connections:
            connection.close()

    def close(self) -> None:
        """Drop the slots and the database, whoever still uses them."""
        self.disconnect()
        self.server.start()  # Nothing happens if it runs; this test may have killed it.
        with psycopg.connect(self.server.conninfo, autocommit=True) as admin:
            identifier = sql.Identifier(self.name)
            # Nobody comes back between our ending the walsenders and dropping what they stream from.
            admin.execute(sql.SQL("alter database {} with allow_connections false").format(identifier))
            until(lambda: self._slots_are_free(admin), what=f"the walsenders of {self.name} to end")
            admin.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s", [self.name]
            )
            admin.execute(sql.SQL("drop database {} with (force)").format(identifier))

    def _slots_are_free(self, admin: psycopg.Connection[Any]) -> bool:
        busy = admin.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots"
            " where database = %s and active_pid is not null",
            [self.name],
        ).fetchall()
        return not busy


def newest_of_each_version(installations: list[Installation]) -> dict[int, Installation]:
    """The one that the environment names, else the newest minor release."""
    ranked = sorted(installations, key=lambda one: (one.version, one.origin == BIN_VARIABLE, _release(one)))
    return {one.version: one for one in ranked}


def has_plugin(installation: Installation, plugin: str) -> bool:
    """The plugin's library lies with the server's others."""
    return any((installation.bin_dir.parent / "lib").rglob(f"{plugin}.so")) or plugin == "pgoutput"


def _plugin_settings(installation: Installation) -> dict[str, str]:
    """Since 15.19 and 18.6 a server refuses plugins that it is not told of; before, it refuses the setting."""
    if not has_plugin(installation, "wal2json"):
        return {}
    command = [str(installation.bin_dir / "postgres"), "--describe-config"]
    known = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
    if not any(line.startswith("output_plugin_libraries\t") for line in known.splitlines()):
        return {}
    return {"output_plugin_libraries": "pgoutput, test_decoding, wal2json"}


def _describe(installation: Installation) -> str:
    plugin = " with wal2json" if has_plugin(installation, "wal2json") else ""
    return f"{installation.release} ({installation.origin}{plugin})"


def _release(installation: Installation) -> tuple[int, ...]:
    return tuple(int(part) for part in installation.release.split("."))


def _do_without(reason: str) -> NoReturn:
    """A laptop skips; continuous integration may not."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
