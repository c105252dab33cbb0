"""The way to the database: no more rights than needed, and never to a server that cannot prove who it is."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.test_doors import ARTICLES, REFUSED, NewDaemon, create_articles, refusal
from tests.support.certificates import Authority
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database

PASSWORD = "no-one-may-read-this"
HOST = "db.example"


def hba(pg: Database, *lines: str) -> None:
    """These lines go before the server's own."""
    path = pg.server.data_dir / "pg_hba.conf"
    path.write_text("\n".join(lines) + "\n" + path.read_text())
    pg.execute("select pg_reload_conf()")


def dsn(pg: Database, *, user: str = "agent", password: str = PASSWORD, port: int | None = None, more: str = "") -> str:
    return f"host=127.0.0.1 port={port or pg.server.port} dbname={pg.name} user={user} password={password} {more}"


def checked(daemon: DaemonProcess) -> str:
    command = [sys.executable, "-m", "cdc_agent.cli", "check", "-c", str(daemon.path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


# -- rights --------------------------------------------------------------------------------------------------


@pytest.mark.postgres(plugin="all")
def test_login_replication_and_select_are_enough_for_the_whole_journey(
    private_pg: Database, new_daemon: NewDaemon
) -> None:
    # Given a role with nothing else, which the server's fence keeps off physical replication
    pg = private_pg
    create_articles(pg)
    pg.execute("create table payroll (id int primary key, salary text)")
    pg.execute(f"create role agent login replication password '{PASSWORD}'")
    pg.execute("grant select on articles to agent")
    if pg.plugin == "pgoutput":
        # It owns no table, so it cannot publish any.
        pg.execute("create publication cdc_agent for table articles")
    hba(
        pg,
        "host replication agent all reject",
        f"host {pg.name} agent 127.0.0.1/32 scram-sha-256",
        "host all agent all reject",
    )

    # When a daemon goes through copy, changes, a restart, a resync and an audit
    daemon = new_daemon(pg, collections=[ARTICLES], dsn=dsn(pg), source={"publication_name": "cdc_agent"})
    assert "may no more than it needs to" in checked(daemon)
    daemon.start()
    pg.execute("update articles set title = 'changed', lang = 'de' where id < 5")
    pg.execute("delete from articles where id = 7")
    assert_index_equals_table(daemon, pg)
    daemon.kill()
    pg.execute("insert into articles values (500, 'new', 'row', 'en')")
    daemon.start()
    assert daemon.post("/resyncs", {}).status_code == 202
    assert_index_equals_table(daemon, pg)

    # Then all of it worked, the fence holds, and the role reads no other table
    assert daemon.problems() == []
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects replication connection"):
        psycopg.connect(f"{dsn(pg)} replication=true")
    # The fence ends there: on a logical connection the server still gives a base backup (SECURITY.md says so).
    logical = psycopg.connect(f"{dsn(pg)} replication=database", autocommit=True, prepare_threshold=None)
    assert logical.pgconn.exec_(b"BASE_BACKUP (CHECKPOINT 'fast')").status == psycopg.pq.ExecStatus.COPY_OUT
    logical.close()
    with psycopg.connect(dsn(pg)) as reader, pytest.raises(psycopg.errors.InsufficientPrivilege):
        reader.execute("select salary from payroll")
    assert PASSWORD not in daemon.log


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ("superuser", "superuser, far more than"),
        ("createdb bypassrls", "has createdb, bypassrls, more than"),
        ("createrole", "has createrole, more than"),
    ],
)
def test_check_warns_of_a_role_that_may_too_much(pg: Database, new_daemon: NewDaemon, right: str, words: str) -> None:
    create_articles(pg)
    role = f"{pg.name}_agent"
    pg.execute(f"create role {role} login replication {right}")
    pg.execute(f"grant select on articles to {role}")
    try:
        daemon = new_daemon(pg, collections=[ARTICLES], dsn=dsn(pg, user=role, password=""))

        assert words in checked(daemon)
    finally:
        pg.execute(f"drop owned by {role}")
        pg.execute(f"drop role {role}")


# -- TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path, "ours")


@pytest.fixture
def tls_pg(private_pg: Database) -> Database:
    """A server that takes the daemon's role over TLS only."""
    pg = private_pg
    create_articles(pg)
    pg.execute(f"create role agent superuser login password '{PASSWORD}'")
    hba(pg, "hostssl all agent all scram-sha-256", "host all agent all reject")
    return pg


def serve(pg: Database, authority: Authority, host: str) -> None:
    """The server has a certificate of this authority for this host from now on."""
    authority.issue(pg.server.data_dir, host)
    pg.execute("alter system set ssl = on")
    pg.execute("select pg_reload_conf()")


def by_name(pg: Database, authority: Authority, *, port: int | None = None) -> str:
    """The server as if it were elsewhere: by a name, without a word of sslmode."""
    more = f"hostaddr=127.0.0.1 sslrootcert={authority.certificate}"
    return dsn(pg, port=port, more=more).replace("host=127.0.0.1", f"host={HOST}", 1)


def test_a_server_with_a_certificate_of_the_right_authority_is_followed(
    tls_pg: Database, authority: Authority, new_daemon: NewDaemon
) -> None:
    serve(tls_pg, authority, HOST)
    daemon = new_daemon(tls_pg, collections=[ARTICLES], dsn=by_name(tls_pg, authority))

    daemon.start()
    tls_pg.execute("update articles set title = 'changed' where id < 5")

    assert_index_equals_table(daemon, tls_pg)
    encrypted = "select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'agent'"
    assert tls_pg.execute(encrypted) == [(True,)]


def self_signed(pg: Database, authority: Authority, folder: Path) -> None:
    serve(pg, Authority.create(folder, "nobody"), HOST)


def wrong_name(pg: Database, authority: Authority, folder: Path) -> None:
    serve(pg, authority, "other.example")


def without(pg: Database, authority: Authority, folder: Path) -> None:
    """It stays without TLS."""


@pytest.mark.parametrize(
    ("kind", "words"),
    [(self_signed, "certificate verify failed"), (wrong_name, "does not match host name"), (without, "SSL")],
)
def test_a_server_that_cannot_prove_who_it_is_is_refused(
    tls_pg: Database,
    authority: Authority,
    new_daemon: NewDaemon,
    tmp_path: Path,
    kind: Callable[[Database, Authority, Path], None],
    words: str,
) -> None:
    kind(tls_pg, authority, tmp_path)

    daemon = new_daemon(tls_pg, collections=[ARTICLES], dsn=by_name(tls_pg, authority))
    daemon.start(ready=False)

    assert daemon.wait_exit() == REFUSED
    assert words in daemon.log
    assert "set sslrootcert" in daemon.log
    assert PASSWORD not in daemon.log


@pytest.fixture
def stripping(tls_pg: Database) -> Iterator[tuple[int, list[bytes]]]:
    """Somebody on the way who answers that the server has no TLS; what it then gets to hear."""
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.settimeout(5)
                client.recv(8)
                client.sendall(b"N")
                heard.append(client.recv(4096))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    yield listener.getsockname()[1], heard
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_somebody_on_the_way_who_strips_tls_hears_nothing(
    tls_pg: Database, authority: Authority, new_daemon: NewDaemon, stripping: tuple[int, list[bytes]]
) -> None:
    serve(tls_pg, authority, HOST)
    port, heard = stripping

    daemon = new_daemon(tls_pg, collections=[ARTICLES], dsn=by_name(tls_pg, authority, port=port))
    refusal(daemon, REFUSED, "server does not support SSL")

    # Not even who wanted to come in
    assert heard
    assert b"".join(heard) == b""


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca"])
def test_a_dsn_that_does_not_check_a_server_elsewhere_is_refused(
    tls_pg: Database, authority: Authority, new_daemon: NewDaemon, mode: str
) -> None:
    daemon = new_daemon(tls_pg, collections=[ARTICLES], dsn=f"{by_name(tls_pg, authority)} sslmode={mode}")

    refusal(daemon, REFUSED, f"sslmode={mode}", "source.insecure")


def test_the_configuration_may_say_that_it_does_without(
    tls_pg: Database, authority: Authority, new_daemon: NewDaemon, tmp_path: Path
) -> None:
    self_signed(tls_pg, authority, tmp_path)
    unchecked = f"{dsn(tls_pg)} sslmode=require".replace("host=127.0.0.1", f"host={HOST} hostaddr=127.0.0.1", 1)
    daemon = new_daemon(tls_pg, collections=[ARTICLES], dsn=unchecked, source={"insecure": True})

    daemon.start()

    assert_index_equals_table(daemon, tls_pg)
