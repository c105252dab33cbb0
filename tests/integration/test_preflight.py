"""The preflight against real servers: every failure is provoked, its hint is carried out, and then it is gone."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_agent.errors import PreflightError
from cdc_agent.source.preflight import Finding, check, require
from tests.support.postgres import Database
from tests.support.wait import until

ARTICLES = ("public", "articles")


# --- what the tests say


def examine(pg: Database, **wanted: Any) -> list[Finding]:
    usual = {
        "dsn": pg.dsn,
        "slot_name": pg.slot_name,
        "publication_name": "cdc_agent",
        "plugin": pg.plugin,
        "tables": [ARTICLES],
    }
    return check(**{**usual, **wanted})


def failures(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if not finding.ok]


def the_failure(findings: list[Finding]) -> Finding:
    failed = failures(findings)
    assert len(failed) == 1, findings
    assert failed[0].hint
    return failed[0]


def eventual_failure(pg: Database, **wanted: Any) -> Finding:
    """After a reload, which the server carries out when it gets to it."""
    return until(lambda: failures(examine(pg, **wanted)), what="the reload")[0]


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def statements(hint: str) -> list[str]:
    """The SQL that a hint holds, as somebody would copy it."""
    verbs = r"alter|create|grant|begin|commit|rollback prepared|select pg_"
    return re.findall(rf"\b(?:{verbs})[^;]*;", hint)


def carry_out(pg: Database, finding: Finding) -> list[str]:
    found = statements(finding.hint)
    assert found, finding.hint
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        for statement in found:
            connection.execute(statement)
    return found


def assert_mended_by_its_hint(pg: Database, finding: Finding, **wanted: Any) -> None:
    carry_out(pg, finding)
    assert failures(examine(pg, **wanted)) == []


def restart_with_what_alter_system_wrote(pg: Database) -> None:
    """Our servers get some settings on the command line, which would win; so they get the altered values there."""
    altered = pg.execute("select name, setting from pg_file_settings where sourcefile like '%%auto.conf'")
    pg.server.settings |= dict(altered)
    pg.server.restart()


def dsn_of(pg: Database, role: str, password: str = "") -> str:
    return f"postgresql://{role}{':' if password else ''}{password}@127.0.0.1:{pg.server.port}/{pg.name}"


@pytest.fixture
def articles(pg: Database) -> Database:
    pg.execute("create table articles (id int primary key, title text, body text)")
    return pg


@pytest.fixture
def private_articles(private_pg: Database) -> Database:
    private_pg.execute("create table articles (id int primary key, title text, body text)")
    return private_pg


@pytest.fixture
def reader(articles: Database) -> Iterator[str]:
    """A role with LOGIN and REPLICATION and nothing else."""
    role = f"reader_{articles.name}"
    articles.execute(f"create role {role} login replication")
    yield role
    articles.execute(f"drop owned by {role}; drop role {role}")


def test_a_database_that_is_set_up_has_no_failures(articles: Database) -> None:
    # Given
    articles.execute("create publication cdc_agent for table articles")

    # When
    findings = examine(articles, columns={ARTICLES: ["title", "body"]})

    # Then
    assert failures(findings) == []
    require(findings)
    assert {
        "connection",
        "server version",
        "primary",
        "wal_level",
        "wal retention",
        "replication right",
        "privileges",
        "replication slots",
        "wal senders",
        "plugin allowed",
        "replication connection",
        "table public.articles",
        "select on public.articles",
        "key of public.articles",
        "columns of public.articles",
        "publication",
    } == {finding.name for finding in findings}


@pytest.mark.postgres(versions="all", plugin="all")
def test_every_kind_of_server_can_be_examined(articles: Database) -> None:
    # When
    findings = examine(articles)

    # Then
    assert failures(findings) == []
    assert articles.execute("select 1 from pg_replication_slots where database = current_database()") == []
    assert articles.execute("select 1 from pg_publication") == []


@pytest.mark.fault("strange-names")
def test_names_with_quotes_and_capitals_are_quoted_in_hints(pg: Database) -> None:
    # Given
    pg.execute('create schema "My ""Schema"; create table "My ""Schema"."Weird; Table" ("Key" int)')
    table = ('My "Schema', "Weird; Table")

    # When
    finding = the_failure(examine(pg, tables=[table]))

    # Then
    assert 'alter table "My ""Schema"."Weird; Table" add column cdc_id' in finding.hint
    pg.execute('alter table "My ""Schema"."Weird; Table" add primary key ("Key")')
    assert failures(examine(pg, tables=[table])) == []


def test_require_says_every_failure_in_one_error(articles: Database) -> None:
    # Given
    articles.execute("create table notes (body text)")

    # When
    findings = examine(articles, tables=[("public", "artikles"), ("public", "notes")])

    # Then
    with pytest.raises(PreflightError) as raised:
        require(findings)
    text = str(raised.value)
    assert "table public.artikles" in text
    assert "write `table: public.articles`" in text
    assert "key of public.notes" in text
    assert raised.value.exit_code == 78


# --- reaching the server


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_refused_connection_is_one_finding() -> None:
    # Given
    port = closed_port()

    # When
    finding = the_failure(
        check(
            f"postgresql://me:geheim@127.0.0.1:{port}/shop",
            slot_name="s",
            publication_name="p",
            plugin="pgoutput",
            tables=[ARTICLES],
        )
    )

    # Then
    assert finding.message == f"nothing listens on 127.0.0.1 port {port}"
    assert f"pg_isready -h 127.0.0.1 -p {port}" in finding.hint


def test_a_dsn_without_a_host_means_the_local_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.delenv("PGHOST", raising=False)

    # When
    findings = check(
        f"port={closed_port()} dbname=shop user=me", slot_name="s", publication_name="p", plugin="pgoutput", tables=[]
    )

    # Then
    assert the_failure(findings).message.startswith("nothing listens on the local socket port")
    assert "pg_isready -p " in the_failure(findings).hint


def test_an_unknown_host_is_one_finding(pg: Database) -> None:
    # When
    finding = the_failure(examine(pg, dsn="postgresql://me:geheim@no-such-host.invalid/shop"))

    # Then
    assert finding.message == "the host name no-such-host.invalid is not known"
    assert "geheim" not in str(finding)


def test_a_missing_database_is_made_by_its_hint(articles: Database) -> None:
    # Given
    missing = f"{articles.name}_other"
    dsn = articles.server.dsn(missing)

    # When
    finding = the_failure(examine(articles, dsn=dsn))

    # Then
    assert finding.message == f"the server has no database {missing}"
    carry_out(articles, finding)
    assert failures(examine(articles, dsn=dsn, tables=[])) == []
    articles.execute(f"drop database {missing}")


def test_a_missing_role_is_made_by_its_hint(articles: Database) -> None:
    # Given
    role = f"ghost_{articles.name}"

    # When
    finding = the_failure(examine(articles, dsn=dsn_of(articles, role)))

    # Then
    assert finding.message == f"the server has no role {role}"
    carry_out(articles, finding)
    assert failures(examine(articles, dsn=dsn_of(articles, role), tables=[])) == []
    articles.execute(f"drop role {role}")


@pytest.mark.parametrize(
    ("obstacle", "message"),
    [
        ("alter role {role} nologin", "role {role} may not log in"),
        ("revoke connect on database {database} from public", "role {role} may not connect to database {database}"),
        ("alter role {role} connection limit 0", "role {role} has no free connection"),
        ("alter database {database} connection limit 0", "database {database} has no free connection"),
    ],
)
def test_a_role_that_is_kept_out_is_let_in_by_the_hint(
    articles: Database, reader: str, obstacle: str, message: str
) -> None:
    # Given
    names = {"role": reader, "database": articles.name}
    articles.execute(obstacle.format(**names))
    dsn = dsn_of(articles, reader)

    # When
    finding = the_failure(examine(articles, dsn=dsn))

    # Then
    assert finding.name == "connection"
    assert finding.message == message.format(**names)
    carry_out(articles, finding)
    assert failures(examine(articles, dsn=dsn, tables=[])) == []


@contextmanager
def pooler(pg: Database) -> Iterator[int]:
    """Passes everything on but replication, as connection poolers do. Yields its port."""
    refusal = b"SFATAL\0C08P01\0Munsupported startup parameter: replication\0\0"
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while chunk := source.recv(65536):
                    sink.sendall(chunk)
                sink.shutdown(socket.SHUT_WR)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client = stack.enter_context(listener.accept()[0])
                    startup = client.recv(65536)
                    if b"replication\0" in startup:
                        client.sendall(b"E" + struct.pack("!i", len(refusal) + 4) + refusal)
                        client.shutdown(socket.SHUT_WR)
                        continue
                    upstream = stack.enter_context(socket.create_connection(("127.0.0.1", pg.server.port)))
                    upstream.sendall(startup)
                    for pair in ((client, upstream), (upstream, client)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_pooler_that_passes_on_no_replication_is_named(articles: Database) -> None:
    with pooler(articles) as port:
        # Given
        dsn = f"postgresql://postgres@127.0.0.1:{port}/{articles.name}?sslmode=disable&gssencmode=disable"

        # When
        finding = the_failure(examine(articles, dsn=dsn))

    # Then
    assert finding.name == "replication connection"
    assert "is a connection pooler" in finding.message
    assert finding.hint == "let source.dsn name the Postgres server itself"
    assert failures(examine(articles)) == []


@contextmanager
def server_that_says(text: str) -> Iterator[int]:
    """Refuses every client with these words. Yields its port."""
    refusal = f"SFATAL\0C57P03\0M{text}\0\0".encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as client:
                        client.recv(65536)
                        client.sendall(b"E" + struct.pack("!i", len(refusal) + 4) + refusal)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the database system is starting up", "the server is starting or stopping"),
        ("the database system is shutting down", "the server is starting or stopping"),
        ("sorry, too many clients already", "the server has no free connection"),
        ("Passwort geheim gefällt nicht", "Postgres answered: FATAL:  Passwort *** gefällt nicht"),
    ],
)
def test_what_the_server_says_becomes_one_finding(text: str, message: str) -> None:
    # Given
    with server_that_says(text) as port:
        dsn = f"postgresql://me:geheim@127.0.0.1:{port}/shop?sslmode=disable&gssencmode=disable"

        # When
        findings = check(dsn, slot_name="s", publication_name="p", plugin="pgoutput", tables=[ARTICLES])

    # Then
    assert the_failure(findings).message == message


def write_pg_hba(pg: Database, *lines: str) -> None:
    (pg.server.data_dir / "pg_hba.conf").write_text("\n".join(lines) + "\n")
    with psycopg.connect(pg.server.conninfo, autocommit=True) as admin:
        admin.execute("select pg_reload_conf()")


@pytest.mark.fault("secrets-in-logs")
def test_a_wrong_password_is_named_and_never_shown(private_articles: Database) -> None:
    # Given
    pg = private_articles
    pg.execute("create role reader login replication password 'right'")
    write_pg_hba(pg, "local all all trust", "host all postgres all trust", "host all all all scram-sha-256")
    wrong = dsn_of(pg, "reader", "geheim")

    # When
    finding = eventual_failure(pg, dsn=wrong, tables=[])

    # Then
    assert finding.message == "the server refuses the password of reader"
    assert "geheim" not in str(finding)
    assert r'\password "reader"' in finding.hint
    pg.execute("alter role reader password 'geheim'")
    assert failures(examine(pg, dsn=wrong, tables=[])) == []


def test_no_password_at_all_is_the_same_finding(private_articles: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    pg = private_articles
    monkeypatch.delenv("PGPASSWORD", raising=False)
    pg.execute("create role reader login replication password 'right'")
    write_pg_hba(pg, "local all all trust", "host all postgres all trust", "host all all all scram-sha-256")

    # When
    finding = eventual_failure(pg, dsn=dsn_of(pg, "reader"), tables=[])

    # Then
    assert finding.message == "the server refuses the password of reader"


@pytest.mark.parametrize("last_line", ["", "host all all all reject"])
def test_the_hint_holds_the_line_for_pg_hba(private_articles: Database, last_line: str) -> None:
    # Given
    pg = private_articles
    pg.execute("create role \"Odd reader\" login replication password 'right'")
    lines = ["local all all trust", "host all postgres all trust", last_line]
    write_pg_hba(pg, *lines)
    dsn = dsn_of(pg, "Odd%20reader", "right")

    # When
    finding = eventual_failure(pg, dsn=dsn, tables=[])

    # Then
    assert "pg_hba.conf does not let Odd reader in" in finding.message
    line = re.search(r"names the file\): (.*) and then run:", finding.hint)
    assert line
    assert line[1] == f'host "{pg.name}" "Odd reader" 127.0.0.1/32 scram-sha-256'
    write_pg_hba(pg, line[1], *lines)
    until(lambda: not failures(examine(pg, dsn=dsn, tables=[])), what="the reload")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:ge@heim@127.0.0.1:5432/shop",
        "postgresql://me:ge/heim@127.0.0.1:5432/shop",
        "postgresql://me:geheim%zz@127.0.0.1:5432/shop",
        "host=127.0.0.1 password=ge heim",
        "host=127.0.0.1 port=heim",
    ],
)
def test_a_dsn_that_cannot_be_read_is_not_repeated(pg: Database, dsn: str) -> None:
    # When
    finding = the_failure(examine(pg, dsn=dsn))

    # Then
    assert finding.message == "source.dsn cannot be read as a Postgres address"
    assert "heim" not in str(finding)


def test_a_server_without_tls_is_named(pg: Database) -> None:
    # When
    finding = the_failure(examine(pg, dsn=f"{pg.dsn}?sslmode=require"))

    # Then
    assert finding.message.startswith("no TLS connection to 127.0.0.1")


# --- server settings


@pytest.mark.fault("not-set-up")
def test_wal_level_replica_is_mended_by_its_hint(private_articles: Database) -> None:
    # Given
    pg = private_articles
    pg.server.settings["wal_level"] = "replica"
    pg.server.restart()

    # When
    finding = the_failure(examine(pg))

    # Then
    assert finding.name == "wal_level"
    assert "restart the server" in finding.hint
    carry_out(pg, finding)
    restart_with_what_alter_system_wrote(pg)
    assert failures(examine(pg)) == []


@pytest.mark.fault("not-set-up")
def test_used_up_replication_slots_are_mended_by_the_hint(private_articles: Database) -> None:
    # Given
    pg = private_articles
    pg.server.settings["max_replication_slots"] = "1"
    pg.server.restart()
    pg.execute("select pg_create_physical_replication_slot('standby')")

    # When
    finding = the_failure(examine(pg))

    # Then
    assert finding.name == "replication slots"
    assert finding.message == "1 of 1 replication slots are used (idle: standby)"
    carry_out(pg, finding)
    restart_with_what_alter_system_wrote(pg)
    assert failures(examine(pg)) == []


def test_the_last_slot_is_enough_when_it_is_ours(private_articles: Database) -> None:
    # Given
    pg = private_articles
    pg.execute("create publication cdc_agent for table articles")
    pg.server.settings["max_replication_slots"] = "1"
    pg.server.restart()
    pg.execute(f"select pg_create_logical_replication_slot('{pg.slot_name}', 'pgoutput')")

    # Then
    assert failures(examine(pg)) == []


@contextmanager
def replication_connection(pg: Database) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(pg.dsn, replication="database", autocommit=True, prepare_threshold=None) as connection:
        connection.execute("IDENTIFY_SYSTEM")
        yield connection


@pytest.mark.fault("not-set-up")
def test_used_up_wal_senders_are_mended_by_the_hint(private_articles: Database) -> None:
    # Given
    pg = private_articles
    pg.server.settings["max_wal_senders"] = "1"
    pg.server.restart()

    # When
    with replication_connection(pg):
        finding = the_failure(examine(pg))

    # Then
    assert finding.name == "wal senders"
    carry_out(pg, finding)
    restart_with_what_alter_system_wrote(pg)
    with replication_connection(pg):
        assert failures(examine(pg)) == []


def test_the_last_wal_sender_is_enough_when_it_streams_from_our_slot(private_articles: Database) -> None:
    # Given
    pg = private_articles
    pg.execute("create publication cdc_agent for table articles")
    pg.execute(f"select pg_create_logical_replication_slot('{pg.slot_name}', 'pgoutput')")
    pg.server.settings["max_wal_senders"] = "1"
    pg.server.restart()

    with replication_connection(pg) as streaming:
        command = (
            f"START_REPLICATION SLOT {pg.slot_name} LOGICAL 0/0 (proto_version '1', publication_names 'cdc_agent')"
        )
        streaming.pgconn.exec_(command.encode())

        # When
        findings = examine(pg)

        # Then
        assert failures(findings) == []
        assert "streams from it" in named(findings, "slot").message
        streaming.close()


def test_unbounded_wal_retention_is_advice(private_articles: Database) -> None:
    # Given
    pg = private_articles
    advice = named(examine(pg), "wal retention")

    # When
    carry_out(pg, advice)

    # Then
    assert advice.ok
    bounded = until(lambda: not named(examine(pg), "wal retention").hint, what="the reload")
    assert bounded


def start_as_standby(pg: Database, stack: ExitStack) -> None:
    """A cluster that was shut down cleanly and finds ``standby.signal`` comes up read-only, without any primary."""
    ((bin_dir,),) = pg.execute("select setting from pg_config where name = 'BINDIR'")
    pg.server.stop()
    data = pg.server.data_dir
    (data / "standby.signal").touch()
    os.chown(data / "standby.signal", data.stat().st_uid, data.stat().st_gid)
    account: dict[str, Any] = {"user": data.stat().st_uid, "extra_groups": []} if os.getuid() == 0 else {}
    settings = [f"port={pg.server.port}", "listen_addresses=127.0.0.1", "unix_socket_directories="]
    # Hot standby wants at least what the primary had.
    settings += ["wal_level=logical", "max_wal_senders=20", "max_replication_slots=20"]
    process = subprocess.Popen(
        [Path(bin_dir) / "postgres", "-D", data, *(word for setting in settings for word in ("-c", setting))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **account,
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)


def test_a_standby_is_named_and_the_primary_asked_for(private_articles: Database) -> None:
    pg = private_articles
    with ExitStack() as stack:
        # Given
        start_as_standby(pg, stack)

        # When
        answers = until(lambda: [f for f in failures(examine(pg)) if f.name == "primary"], what="the standby")

        # Then
        assert "standby" in answers[0].message
        assert "target_session_attrs=read-write" in answers[0].hint


# --- the role


@pytest.mark.fault("not-set-up")
def test_a_role_without_replication_is_mended_by_the_hint(articles: Database, reader: str) -> None:
    # Given
    articles.execute(f"alter role {reader} noreplication")
    dsn = dsn_of(articles, reader)

    # When
    finding = the_failure(examine(articles, dsn=dsn, tables=[]))

    # Then
    assert finding.name == "replication right"
    carry_out(articles, finding)
    assert failures(examine(articles, dsn=dsn, tables=[])) == []


def test_membership_in_rds_replication_counts(private_articles: Database) -> None:
    # Given
    pg = private_articles
    pg.execute("create role rds_replication; create role reader login")
    dsn = dsn_of(pg, "reader")
    finding = the_failure(examine(pg, dsn=dsn, tables=[]))

    # When
    statement = carry_out(pg, finding)

    # Then
    assert statement == ['grant rds_replication to "reader";']
    assert named(examine(pg, dsn=dsn, tables=[]), "replication right").ok


def test_a_superuser_is_advised_to_make_a_role_and_that_role_passes(private_articles: Database) -> None:
    # Given
    pg = private_articles
    pg.execute("create publication cdc_agent for table articles")
    advice = named(examine(pg), "privileges")
    assert advice.ok

    # When
    carry_out(pg, advice)

    # Then
    findings = examine(pg, dsn=dsn_of(pg, "cdc_agent"))
    assert failures(findings) == []
    assert named(findings, "privileges").hint == ""


# --- plugin


@pytest.mark.postgres(versions=[15], plugin="wal2json")
def test_wal2json_is_tried_with_a_slot_that_is_gone_afterwards(articles: Database, reader: str) -> None:
    # Given
    articles.execute(f"grant select on articles to {reader}")

    # When
    findings = examine(articles, dsn=dsn_of(articles, reader))

    # Then
    assert failures(findings) == []
    assert named(findings, "plugin").message == "wal2json decodes (tried with a temporary slot)"
    assert articles.execute("select 1 from pg_replication_slots where database = current_database()") == []


@pytest.mark.postgres(versions=[15], plugin="wal2json")
def test_a_missing_plugin_library_names_its_package(articles: Database) -> None:
    # Given
    articles.execute(f"alter database {articles.name} set dynamic_library_path = '/nowhere'")

    # When
    finding = the_failure(examine(articles))

    # Then
    assert finding.message == "the server has no library wal2json"
    assert "apt-get install postgresql-15-wal2json" in finding.hint
    articles.execute(f"alter database {articles.name} reset dynamic_library_path")
    assert failures(examine(articles)) == []


@pytest.mark.postgres(versions=[15])
def test_a_plugin_that_the_server_does_not_allow_is_mended_by_the_hint(private_articles: Database) -> None:
    # Given
    pg = private_articles
    allow_plugins(pg, "test_decoding")
    finding = eventual_failure(pg)
    assert finding.name == "plugin allowed"
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        pg.execute(f"select pg_create_logical_replication_slot('{pg.slot_name}', 'pgoutput')")

    # When
    carry_out(pg, finding)

    # Then
    until(lambda: not failures(examine(pg)), what="the reload")
    pg.execute(f"select pg_create_logical_replication_slot('{pg.slot_name}', 'pgoutput')")


@pytest.mark.postgres(versions=[15])
@pytest.mark.parametrize("role", ["postgres", "reader"])
def test_wal2json_is_not_allowed_by_default(private_articles: Database, role: str) -> None:
    # Given a server as it comes, and a role that sees the list of plugins, or does not.
    pg = private_articles
    pg.execute("create role reader login replication; grant select on articles to reader")
    pg.execute("create publication cdc_agent for table articles")
    allow_plugins(pg, "pgoutput, test_decoding")
    until(lambda: failures(examine(pg, plugin="wal2json")), what="the reload")

    # When
    finding = the_failure(examine(pg, plugin="wal2json", dsn=dsn_of(pg, role)))

    # Then
    assert finding.message.startswith("wal2json is not among the server's output_plugin_libraries")
    assert "alter system set output_plugin_libraries = pgoutput, test_decoding, wal2json;" in finding.hint
    carry_out(pg, finding)
    until(lambda: not failures(examine(pg, plugin="wal2json", dsn=dsn_of(pg, role))), what="the reload")


@pytest.mark.postgres(versions=[15])
def test_a_list_of_plugins_that_was_stored_as_one_name_is_seen_through(private_articles: Database) -> None:
    # Given
    pg = private_articles
    allow_plugins(pg, "'pgoutput, test_decoding'")

    # Then
    finding = eventual_failure(pg)
    assert finding.name == "plugin allowed"


def allow_plugins(pg: Database, libraries: str) -> None:
    """Since 15.19 and 18.6; ``scripts/test`` brings such a server. What is on its command line could not be altered."""
    del pg.server.settings["output_plugin_libraries"]
    pg.server.restart()
    pg.execute(f"alter system set output_plugin_libraries = {libraries}")
    pg.execute("select pg_reload_conf()")


@pytest.mark.postgres(versions=[15], plugin="wal2json")
@pytest.mark.fault("slot-creation-waits")
def test_an_open_write_transaction_is_named_and_nobody_hangs(articles: Database) -> None:
    # Given
    writer = articles.connect(autocommit=False)
    writer.execute("insert into articles values (1, 'a', 'b')")
    pid = writer.info.backend_pid

    # When
    findings = examine(articles)

    # Then
    assert failures(findings) == []
    finding = named(findings, "plugin")
    assert f"process {pid} of postgres in {articles.name}" in finding.message
    assert f"select pg_terminate_backend({pid});" in finding.hint
    carry_out(articles, finding)
    until(lambda: "decodes" in named(examine(articles), "plugin").message, what="the writer to end")


@pytest.mark.postgres(versions=[15], plugin="wal2json")
def test_a_prepared_transaction_is_named(private_articles: Database) -> None:
    # Given
    pg = private_articles
    pg.server.settings["max_prepared_transactions"] = "2"
    pg.server.restart()
    pg.execute("begin; insert into articles values (1, 'a', 'b'); prepare transaction 'it''s late'")

    # When
    finding = named(examine(pg), "plugin")

    # Then
    assert "prepared transaction it's late" in finding.message
    assert carry_out(pg, finding) == ["rollback prepared 'it''s late';"]
    assert "decodes" in named(examine(pg), "plugin").message


# --- slot


@pytest.mark.parametrize(
    ("create", "complaint"),
    [
        ("select pg_create_logical_replication_slot('{slot}', 'test_decoding')", "speaks test_decoding"),
        ("select pg_create_physical_replication_slot('{slot}')", "is a physical slot"),
    ],
)
def test_a_slot_that_is_not_for_us_is_dropped_by_the_hint(articles: Database, create: str, complaint: str) -> None:
    # Given
    articles.execute(create.format(slot=articles.slot_name))

    # When
    finding = the_failure(examine(articles))

    # Then
    assert finding.name == "slot"
    assert complaint in finding.message
    assert_mended_by_its_hint(articles, finding)


def test_a_slot_of_another_database_is_not_ours(articles: Database) -> None:
    # Given
    articles.execute("create publication cdc_agent for table articles")
    with psycopg.connect(articles.server.conninfo, autocommit=True) as elsewhere:
        elsewhere.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [articles.slot_name])

        # When
        finding = the_failure(examine(articles))

        # Then
        assert "belongs to database postgres" in finding.message
        for statement in statements(finding.hint):
            elsewhere.execute(statement)
    assert failures(examine(articles)) == []


def test_a_slot_whose_wal_is_gone_is_lost(private_articles: Database) -> None:
    # Given
    pg = private_articles
    pg.execute("create publication cdc_agent for table articles")
    pg.execute(f"select pg_create_logical_replication_slot('{pg.slot_name}', 'pgoutput')")
    pg.server.settings["max_slot_wal_keep_size"] = "1MB"
    pg.server.restart()
    for i in range(4):
        pg.execute(f"insert into articles values ({i}, 'a', 'b')")
        pg.execute("select pg_switch_wal()")
    pg.execute("checkpoint")

    # When
    finding = the_failure(examine(pg))

    # Then
    assert finding.name == "slot"
    assert "is lost" in finding.message
    assert_mended_by_its_hint(pg, finding)


def test_a_slot_that_lost_its_publication_has_to_go(articles: Database) -> None:
    # Given
    articles.execute("create publication cdc_agent for table articles")
    articles.execute(f"select pg_create_logical_replication_slot('{articles.slot_name}', 'pgoutput')")
    articles.execute("drop publication cdc_agent")

    # When
    finding = the_failure(examine(articles))

    # Then
    assert finding.name == "publication"
    assert_mended_by_its_hint(articles, finding)


# --- tables


def test_a_misspelt_table_gets_the_nearest_name(articles: Database) -> None:
    # When
    finding = the_failure(examine(articles, tables=[("public", "Article")]))

    # Then
    assert finding.hint == "write `table: public.articles`"


def test_a_table_of_another_schema_is_suggested(articles: Database) -> None:
    # When
    finding = the_failure(examine(articles, tables=[("app", "articles")]))

    # Then
    assert finding.hint == "write `table: public.articles`"


@pytest.mark.parametrize(
    ("create", "table", "message"),
    [
        ("create view x as select * from articles", ("public", "x"), "is a view"),
        ("create materialized view x as select * from articles", ("public", "x"), "is a materialized view"),
        ("create sequence x", ("public", "x"), "is no table"),
        ("create index x on articles (title)", ("public", "x"), "is no table"),
        ("select 1", ("pg_catalog", "pg_class"), "is a system table"),
        (
            "create foreign data wrapper w; create server s foreign data wrapper w;"
            " create foreign table x (id int) server s",
            ("public", "x"),
            "is a foreign table",
        ),
    ],
)
def test_what_is_not_a_table_is_refused(articles: Database, create: str, table: tuple[str, str], message: str) -> None:
    # Given
    articles.execute(create)

    # When
    finding = the_failure(examine(articles, tables=[table]))

    # Then
    assert finding.message.startswith(message)


def test_a_temporary_table_is_refused(pg: Database) -> None:
    # Given
    session = pg.connect()
    session.execute("create temporary table x (id int primary key)")
    row = session.execute("select relnamespace::regnamespace::text from pg_class where relname = 'x'").fetchone()
    assert row

    # When
    finding = the_failure(examine(pg, tables=[(row[0], "x")]))

    # Then
    assert finding.message.startswith("is a temporary table")


def test_an_unlogged_table_is_mended_by_its_hint(pg: Database) -> None:
    # Given
    pg.execute("create unlogged table articles (id int primary key)")

    # When
    finding = the_failure(examine(pg))

    # Then
    assert finding.message.startswith("is unlogged")
    assert_mended_by_its_hint(pg, finding)


def test_tables_that_inherit_are_cut_off_by_the_hint(articles: Database) -> None:
    # Given
    articles.execute('create table "Old articles" (primary key (id)) inherits (articles)')

    # When
    finding = the_failure(examine(articles))

    # Then
    assert 'public."Old articles"' in finding.message
    assert_mended_by_its_hint(articles, finding)


@pytest.mark.parametrize(
    "granted", ["", "grant usage on schema closed to {role}", "grant select on closed.papers to {role}"]
)
def test_a_table_that_we_may_not_read_is_granted_by_the_hint(articles: Database, reader: str, granted: str) -> None:
    # Given
    articles.execute("create schema closed; create table closed.papers (id int primary key)")
    articles.execute(granted.format(role=reader))
    articles.execute("create publication cdc_agent for table closed.papers")
    wanted = {"dsn": dsn_of(articles, reader), "tables": [("closed", "papers")]}

    # When
    finding = the_failure(examine(articles, **wanted))

    # Then
    assert finding.name == "select on closed.papers"
    assert_mended_by_its_hint(articles, finding, **wanted)


def test_rows_that_row_security_hides_are_found(articles: Database, reader: str) -> None:
    # Given
    articles.execute("create publication cdc_agent for table articles")
    articles.execute(f"grant select on articles to {reader}; alter table articles enable row level security")

    # When
    finding = the_failure(examine(articles, dsn=dsn_of(articles, reader)))

    # Then
    assert finding.name == "rows of public.articles"
    assert_mended_by_its_hint(articles, finding, dsn=dsn_of(articles, reader))


# --- document keys


@pytest.mark.parametrize(
    ("create", "reason"),
    [
        ("create table articles (title text)", "has no primary key"),
        ("create table articles (id int); alter table articles replica identity full", "has no primary key"),
        ("create table articles (id int not null unique)", "has no primary key"),
        ("create table articles (id int unique)", "articles_id_key has nullable columns"),
        (
            "create table articles (id int not null); create unique index part on articles (id) where id > 0",
            "part is partial",
        ),
        ("create table articles (id int primary key deferrable)", "articles_pkey is deferrable"),
        (
            "create table articles (id int primary key deferrable); alter table articles replica identity full",
            "articles_pkey is deferrable",
        ),
        (
            "create table articles (id int primary key); alter table articles replica identity nothing",
            "its replica identity is nothing",
        ),
        (
            "create table articles (slug text not null); alter table articles replica identity nothing",
            "its replica identity is nothing",
        ),
        (
            "create table articles (slug text not null); create unique index bySlug on articles (slug);"
            " alter table articles replica identity using index bySlug; drop index bySlug",
            "was dropped",
        ),
        (
            "create table articles (day date, title text) partition by range (day);"
            " create table a25 partition of articles for values from ('2025-01-01') to ('2026-01-01')",
            "has no primary key",
        ),
    ],
)
@pytest.mark.fault("no-identity")
def test_a_table_without_a_key_gets_one_from_the_hint(pg: Database, create: str, reason: str) -> None:
    # Given
    pg.execute(create)

    # When
    finding = the_failure(examine(pg))

    # Then
    assert finding.name == "key of public.articles"
    assert reason in finding.message
    assert_mended_by_its_hint(pg, finding)
    # The server agrees: it refuses deletes from a published table that has no identity.
    pg.execute("create publication cdc_agent for table articles")
    pg.execute("delete from articles")


@pytest.mark.parametrize(
    ("create", "key"),
    [
        ("create table articles (b int, a int, primary key (a, b))", "a, b"),
        ("create table articles (id int primary key); alter table articles replica identity full", "id"),
        (
            "create table articles (id int primary key, slug text not null);"
            " create unique index by_slug on articles (slug) include (id);"
            " alter table articles replica identity using index by_slug",
            "slug",
        ),
    ],
)
def test_the_key_is_the_primary_key_or_the_identity_index(pg: Database, create: str, key: str) -> None:
    # Given
    pg.execute(create)

    # When
    finding = named(examine(pg), "key of public.articles")

    # Then
    assert finding == Finding(name="key of public.articles", ok=True, message=f"rows are known by {key}")


@pytest.fixture
def parted(pg: Database) -> Database:
    pg.execute("create table articles (id int, year int, primary key (id, year)) partition by list (year)")
    pg.execute("create table a24 partition of articles for values in (2024)")
    pg.execute("create table a25 partition of articles for values in (2025)")
    return pg


def test_every_leaf_of_a_partitioned_table_is_examined(parted: Database) -> None:
    # When
    findings = examine(parted)

    # Then
    assert failures(findings) == []
    assert named(findings, "key of public.articles").message == "rows are known by id, year"
    assert named(findings, "partition public.a24").ok
    assert named(findings, "partition public.a25").ok


@pytest.mark.parametrize(
    "spoil",
    [
        "alter table a25 replica identity nothing",
        "create unique index other on a25 (id); alter table a25 replica identity using index other",
        "alter table a25 set unlogged",
    ],
)
def test_one_partition_that_differs_is_mended_by_the_hint(parted: Database, spoil: str) -> None:
    # Given
    parted.execute(spoil)

    # When
    finding = the_failure(examine(parted))

    # Then
    assert finding.name == "partition public.a25"
    assert_mended_by_its_hint(parted, finding)


def test_a_foreign_partition_is_detached_by_the_hint(pg: Database) -> None:
    # Given
    pg.execute("create foreign data wrapper w; create server s foreign data wrapper w")
    pg.execute("create table articles (id int not null) partition by list (id)")
    pg.execute("create foreign table f1 partition of articles for values in (1) server s")

    # When
    partition, key = failures(examine(pg))

    # Then
    assert (partition.name, key.name) == ("partition public.f1", "key of public.articles")
    carry_out(pg, partition)
    assert_mended_by_its_hint(pg, key)


# --- columns


def test_a_misspelt_column_gets_the_nearest_name(articles: Database) -> None:
    # When
    finding = the_failure(examine(articles, columns={ARTICLES: ["titel", "body"]}))

    # Then
    assert finding.message == "there is no column titel"
    assert finding.hint == "write title in place of titel"


def test_a_column_that_is_like_no_other_gets_the_whole_list(articles: Database) -> None:
    # When
    finding = the_failure(examine(articles, columns={ARTICLES: ["xyz"]}))

    # Then
    assert finding.hint == "its columns are id, title, body"


@pytest.mark.postgres(versions=[15, 16])
def test_pgoutput_does_not_send_generated_columns_before_18(articles: Database) -> None:
    # Given
    articles.execute("alter table articles add shout text generated always as (upper(title)) stored")

    # When
    finding = the_failure(examine(articles, columns={ARTICLES: ["shout"]}))

    # Then
    assert "does not send generated column shout" in finding.message
    assert "source.plugin: wal2json" in finding.hint
    assert "upper(title)" in finding.hint
    assert failures(examine(articles, columns={ARTICLES: ["title"]})) == []


@pytest.mark.postgres(versions=[15], plugin="wal2json")
def test_wal2json_sends_generated_columns(articles: Database) -> None:
    # Given
    articles.execute("alter table articles add shout text generated always as (upper(title)) stored")

    # Then
    assert failures(examine(articles, columns={ARTICLES: ["shout"]})) == []


@pytest.mark.postgres(versions=[18])
@pytest.mark.parametrize("publication", ["", "create publication cdc_agent for table articles"])
def test_from_18_on_the_publication_sends_stored_generated_columns(articles: Database, publication: str) -> None:
    # Given
    articles.execute("alter table articles add shout text generated always as (upper(title)) stored")
    if publication:
        articles.execute(publication)
    columns = {ARTICLES: ["shout"]}

    # When
    finding = the_failure(examine(articles, columns=columns))

    # Then
    assert_mended_by_its_hint(articles, finding, columns=columns)


@pytest.mark.postgres(versions=[18])
def test_a_virtual_column_is_never_sent(articles: Database) -> None:
    # Given
    articles.execute("alter table articles add shout text generated always as (upper(title)) virtual")

    # When
    finding = the_failure(examine(articles, columns={ARTICLES: ["shout"]}))

    # Then
    assert "a virtual column is never in the log" in finding.hint
    assert failures(examine(articles, columns={ARTICLES: ["title"]})) == []


# --- publication


@pytest.fixture
def reading(articles: Database, reader: str) -> dict[str, Any]:
    """What a role that may read, and owns nothing, is examined with."""
    articles.execute(f"grant select on all tables in schema public to {reader}")
    return {"dsn": dsn_of(articles, reader)}


def test_a_role_that_owns_nothing_gets_the_publication_from_the_hint(
    articles: Database, reading: dict[str, Any]
) -> None:
    # When
    finding = the_failure(examine(articles, **reading))

    # Then
    assert statements(finding.hint) == ['create publication "cdc_agent" for table "public"."articles";']
    assert_mended_by_its_hint(articles, finding, **reading)


def test_an_owner_who_may_not_create_in_the_database_gets_the_same_hint(
    articles: Database, reader: str, reading: dict[str, Any]
) -> None:
    # Given
    articles.execute(f"alter table articles owner to {reader}")

    # When
    finding = the_failure(examine(articles, **reading))

    # Then
    assert finding.name == "publication"
    articles.execute(f"grant create on database {articles.name} to {reader}")
    assert named(examine(articles, **reading), "publication").message == "publication cdc_agent will be created"


def test_a_table_that_is_not_published_is_added_by_the_hint(
    articles: Database, reader: str, reading: dict[str, Any]
) -> None:
    # Given
    articles.execute(f"create table notes (id int primary key); grant select on notes to {reader}")
    articles.execute("create publication cdc_agent for table articles")
    wanted = {**reading, "tables": [ARTICLES, ("public", "notes")]}

    # When
    finding = the_failure(examine(articles, **wanted))

    # Then
    assert statements(finding.hint) == ['alter publication "cdc_agent" add table "public"."notes";']
    assert_mended_by_its_hint(articles, finding, **wanted)


def test_an_owner_will_add_the_table(articles: Database) -> None:
    # Given
    articles.execute("create publication cdc_agent")

    # When
    findings = examine(articles)

    # Then
    assert failures(findings) == []
    assert named(findings, "publication").message == "public.articles will be added to publication cdc_agent"


@pytest.mark.parametrize("what", ["for all tables", "for tables in schema public"])
def test_a_publication_of_more_than_our_tables_will_do(articles: Database, reading: dict[str, Any], what: str) -> None:
    # Given
    articles.execute(f"create publication cdc_agent {what}")

    # Then
    assert failures(examine(articles, **reading)) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("publish = 'insert, update'", "does not send: delete, truncate"),
        ("publish_via_partition_root = true", "publishes via partition roots"),
    ],
)
def test_a_publication_with_other_options_is_mended_by_the_hint(
    articles: Database, options: str, complaint: str
) -> None:
    # Given
    articles.execute(f"create publication cdc_agent for table articles with ({options})")

    # When
    finding = the_failure(examine(articles))

    # Then
    assert complaint in finding.message
    assert_mended_by_its_hint(articles, finding)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [("where (id > 10)", "sends only rows where"), ("(id, title)", "has a column list without body")],
)
def test_a_publication_that_hides_something_is_mended_by_the_hint(articles: Database, how: str, complaint: str) -> None:
    # Given
    articles.execute(f"create publication cdc_agent for table articles {how}")
    columns = {ARTICLES: ["body"]}

    # When
    finding = the_failure(examine(articles, columns=columns))

    # Then
    assert complaint in finding.message
    assert_mended_by_its_hint(articles, finding, columns=columns)


def test_a_column_list_that_holds_what_we_need_will_do(articles: Database) -> None:
    # Given
    articles.execute("create publication cdc_agent for table articles (id, title)")

    # Then
    assert failures(examine(articles, columns={ARTICLES: ["title"]})) == []


def test_a_row_filter_on_a_root_is_taken_away_before_the_option_that_it_needs(parted: Database) -> None:
    # Given
    parted.execute(
        "create publication cdc_agent for table articles where (year > 2000) with (publish_via_partition_root = true)"
    )

    # When
    filtered, via_root = failures(examine(parted))

    # Then
    assert "sends only rows where" in filtered.message
    assert "publishes via partition roots" in via_root.message
    carry_out(parted, filtered)
    assert_mended_by_its_hint(parted, via_root)


def test_partitions_published_one_by_one_are_not_the_table(parted: Database) -> None:
    # Given
    role = f"reader_{parted.name}"
    parted.execute(f"create role {role} login replication; grant select on articles to {role}")
    parted.execute("create publication cdc_agent for table a24, a25")
    wanted = {"dsn": dsn_of(parted, role)}

    # When
    finding = the_failure(examine(parted, **wanted))

    # Then
    assert "does not hold public.articles" in finding.message
    assert_mended_by_its_hint(parted, finding, **wanted)
    parted.execute(f"drop owned by {role}; drop role {role}")


def test_a_partition_is_published_with_its_table(parted: Database) -> None:
    # Given
    parted.execute("create publication cdc_agent for table articles")

    # When
    findings = examine(parted, tables=[("public", "a24")])

    # Then
    assert failures(findings) == []
    assert named(findings, "publication").message == "publication cdc_agent holds every table"


def test_a_partitioned_table_without_partitions_is_covered_by_name(pg: Database) -> None:
    # Given
    pg.execute("create table articles (id int primary key) partition by hash (id)")
    pg.execute("create publication cdc_agent for table articles")

    # Then
    assert named(examine(pg), "publication").message == "publication cdc_agent holds every table"
