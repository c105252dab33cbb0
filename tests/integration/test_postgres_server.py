"""Our own Postgres runner: it starts what it finds, survives being killed, and never shares a directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg.pq import ExecStatus

from cdc_agent.demo import installations
from cdc_agent.demo.postgres import PostgresServer, choose_installation, find_installations, throwaway_server
from cdc_agent.demo.processes import is_alive
from cdc_agent.errors import CdcAgentError, ConfigError
from tests.support.postgres import ALL_KINDS, Database, Servers

VERSIONS = [15, 16, 18]


@pytest.fixture(params=VERSIONS, ids="pg{}".format)
def server(request: pytest.FixtureRequest, servers: Servers) -> PostgresServer:
    """Started by nobody yet; the session stops it and removes its data."""
    return servers.new_server(request.param)


def ask(server: PostgresServer, question: str) -> object:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        row = connection.execute(question).fetchone()  # type: ignore[call-overload]
    return row and row[0]


def test_a_started_server_answers_over_tcp_and_its_socket(server: PostgresServer) -> None:
    # When a server is started that has no data yet
    server.start()

    # Then it answers on both of its addresses, ready for logical replication
    with psycopg.connect(server.conninfo) as connection:
        assert connection.info.host == str(server.conninfo).split()[0].removeprefix("host=")
    assert ask(server, "show wal_level") == "logical"
    assert ask(server, "show server_encoding") == "UTF8"
    assert ask(server, "show max_replication_slots") == "20"


def test_a_killed_server_starts_again(server: PostgresServer) -> None:
    # Given a server with a committed row, and clients connected to it
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("create table kept as select 42 as n")
        dsn = server.dsn()

        # When it is killed under them
        server.kill_immediate()

        # Then the clients notice
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert not server.is_running

    # And it starts again where it was, with its data
    server.start()
    assert server.dsn() == dsn
    assert ask(server, "select n from kept") == 42


def test_a_restarted_server_has_its_new_settings(server: PostgresServer) -> None:
    # Given a running server
    server.start()
    dsn = server.dsn()

    # When a setting changes and it is restarted
    server.settings["wal_sender_timeout"] = "7s"
    server.restart()

    # Then it runs with it, where it was
    assert ask(server, "show wal_sender_timeout") == "7s"
    assert server.dsn() == dsn


def test_a_stopped_server_is_gone_and_may_be_started_again(servers: Servers) -> None:
    # Given a server that ran
    server = servers.new_server(15)
    server.start()

    # When it is stopped
    server.stop()

    # Then nobody listens
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(server.dsn(), connect_timeout=5)

    # And a second stop is nothing, and a start is a start
    server.stop()
    server.start()
    assert ask(server, "select 1") == 1


def test_two_servers_never_share_a_directory(servers: Servers) -> None:
    # Given a running server
    server = servers.new_server(15)
    server.start()

    # When another one is started on its directory
    rival = PostgresServer(choose_installation(15).bin_dir, server.data_dir)
    with pytest.raises(CdcAgentError, match="another process runs") as caught:
        rival.start()

    # Then it says what to do, and the first is none the worse
    assert "stop that one" in caught.value.hint
    assert ask(server, "select 1") == 1


def test_a_server_that_outlived_its_owner_is_replaced(servers: Servers) -> None:
    # Given a process that starts a server and is killed before it can stop it
    server = servers.new_server(15)
    script = (
        "import os, pathlib, signal, sys;"
        "from cdc_agent.demo.postgres import PostgresServer;"
        "PostgresServer(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])).start();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    owner = [sys.executable, "-c", script, str(choose_installation(15).bin_dir), str(server.data_dir)]
    assert subprocess.run(owner, check=False).returncode == -signal.SIGKILL
    pid, _, _, _, socket_dir, *_ = (server.data_dir / "postmaster.pid").read_text().splitlines()
    orphan = int(pid)
    assert is_alive(orphan)

    # When the next run starts
    server.start()

    # Then the orphan is gone and ours serves its data
    assert not is_alive(orphan)
    assert ask(server, "select 1") == 1
    shutil.rmtree(socket_dir)  # A killed owner cannot.


def test_a_pid_that_was_given_to_another_program_does_not_block_a_start(servers: Servers) -> None:
    # Given the pid file of a killed server, whose number is now that of a program of the same user
    server = servers.new_server(15)
    server.start()
    server.kill_immediate()
    stranger = subprocess.Popen(["sleep", "600"], **server._account)
    pid_file = server.data_dir / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")

    # When the server starts again
    try:
        server.start()

        # Then it does, and leaves the stranger alone
        assert ask(server, "select 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_initdb_that_was_cut_short_is_done_anew(servers: Servers) -> None:
    # Given what a killed initdb leaves
    server = servers.new_server(15)
    half = server.data_dir.with_name(f"{server.data_dir.name}.new")
    half.mkdir()
    (half / "PG_VERSION").write_text("15\n")

    # When the server starts
    server.start()

    # Then it has a whole database
    assert ask(server, "select 1") == 1
    assert not half.exists()


def test_data_of_another_version_is_refused(servers: Servers) -> None:
    # Given data that version 15 made
    server = servers.new_server(15)
    server.start()
    server.stop()

    # When version 16 is started on it
    newer = PostgresServer(choose_installation(16).bin_dir, server.data_dir)
    with pytest.raises(CdcAgentError, match=r"was made by Postgres 15") as caught:
        newer.start()

    # Then the hint names the way out
    assert "another directory" in caught.value.hint


def test_a_server_that_refuses_to_start_is_quoted(servers: Servers) -> None:
    # Given a setting that no Postgres knows
    server = servers.new_server(15)
    server.settings["no_such_setting"] = "on"

    # When it is started, Then the error carries its own words, and nothing is left running
    with pytest.raises(CdcAgentError, match="no_such_setting"):
        server.start()
    assert not server.is_running


def test_a_throwaway_server_leaves_nothing() -> None:
    # When a throwaway server has run
    with throwaway_server(choose_installation(15), {"fsync": "off"}) as server:
        assert ask(server, "select 1") == 1

    # Then neither data nor socket nor process is left
    assert not server.is_running
    assert not server.data_dir.parent.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as another user")
def test_binaries_that_the_unprivileged_user_cannot_reach_are_copied(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a wheel in a place that is closed to everyone but root
    wheel = next(one for one in find_installations() if one.version == 18)
    home = tmp_path / "closed"
    home.mkdir(mode=0o700)
    package = wheel.bin_dir.parents[1]
    for source in (package, package.with_name(f"{package.name}.libs")):
        subprocess.run(["cp", "-a", str(source), str(home)], check=True)
    closed = home / package.name / wheel.bin_dir.parent.name / "bin"
    server = servers.new_server(18)
    monkeypatch.setattr(installations, "_COPIES", server.data_dir.parent / "copies")

    # When a server is started from there
    with PostgresServer(closed, server.data_dir, settings={"fsync": "off"}) as copied:
        # Then it runs, from a copy
        assert ask(copied, "show server_version_num") is not None
    assert list((server.data_dir.parent / "copies").iterdir())


def test_a_named_directory_without_a_server_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a variable that points nowhere
    monkeypatch.setenv(installations.BIN_VARIABLE, str(tmp_path))

    # When servers are looked for, Then the variable is blamed
    with pytest.raises(ConfigError, match="no Postgres server") as caught:
        find_installations()
    assert installations.BIN_VARIABLE in caught.value.hint


def test_a_missing_version_is_an_error_that_says_how_to_get_one() -> None:
    with pytest.raises(CdcAgentError, match=r"no Postgres 8 was found") as caught:
        choose_installation(8)
    assert "pip install" in caught.value.hint


@pytest.mark.postgres(versions="all", plugin="all")
def test_every_kind_of_server_makes_a_slot(pg: Database) -> None:
    # When a slot is made with the plugin of this run
    pg.execute("select pg_create_logical_replication_slot(%s, %s)", [pg.slot_name, pg.plugin])

    # Then it is there, on the version of this run
    assert pg.execute("select plugin, database from pg_replication_slots where slot_name = %s", [pg.slot_name]) == [
        (pg.plugin, pg.name)
    ]
    assert pg.execute("show server_version_num")[0][0].startswith(str(pg.version))


def test_a_database_goes_with_the_slot_that_someone_streams_from(servers: Servers) -> None:
    # Given a database whose slot is in use by a client that nobody will close
    pg = servers.database(ALL_KINDS[0])
    pg.execute("create publication p for all tables")
    pg.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [pg.slot_name])
    with closing(psycopg.connect(pg.dsn, autocommit=True, replication="database")) as client:
        command = f"START_REPLICATION SLOT {pg.slot_name} LOGICAL 0/0 (proto_version '1', publication_names 'p')"
        assert client.pgconn.exec_(command.encode()).status == ExecStatus.COPY_BOTH

        # When the test ends
        pg.close()

    # Then database and slot are gone
    with psycopg.connect(pg.server.conninfo) as admin:
        assert admin.execute("select count(*) from pg_database where datname = %s", [pg.name]).fetchone() == (0,)
        assert admin.execute("select count(*) from pg_replication_slots").fetchone() == (0,)
