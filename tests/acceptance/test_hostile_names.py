"""Names and values that try to be more than that, from the table to the answer of a filtered search."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from psycopg import sql

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database

NewDaemon = Callable[..., DaemonProcess]

SCHEMA = 'od"d.sch ema; drop schema public'
#: 63 bytes.
TABLE = "Tä.b\"l'e, 100% {x} \\ 名前:" + "z" * 33
KEY = 'Käy"; --'
BODY = 'bo.dy "x" %s'
OWNER = "own.er '$or' \"x\" {y}"
#: Whoever pastes one of these into a condition, a statement, a template or a path finds more, or less, than its row.
VALUES = [
    '{"$ne": null}',
    "$or",
    "' or '1'='1",
    '"; drop table items; --',
    "%s {0} {body} ${x}",
    "../../etc/passwd?x=1#y",
    "a\u202eb",
    "*",
    "null",
    "true",
    '名前."x", [1]',
    "x" * 5_000,
]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def write(pg: Database, values: Sequence[str], statement: str) -> None:
    """``statement`` with the odd names in braces, once for each value: key, body and owner."""
    # psycopg looks for placeholders in names, too.
    names = dict(zip("stkbo", (SCHEMA, TABLE, KEY, BODY, OWNER), strict=True))
    text = statement.format(**{letter: quoted(name).replace("%", "%%") for letter, name in names.items()})
    with psycopg.connect(pg.dsn) as connection:
        for value in values:
            row = {"key": value[:100], "body": f"the cat sleeps {value}", "owner": value}
            connection.execute(sql.SQL(text), row)


@pytest.fixture
def daemon(pg: Database, new_daemon: NewDaemon) -> DaemonProcess:
    """One on a table with such names, whose rows have such values, each its own."""
    pg.execute(f"create schema {quoted(SCHEMA)}")
    columns = ", ".join(f"{quoted(name)} text" for name in (KEY, BODY, OWNER))
    pg.execute(f"create table {quoted(SCHEMA)}.{quoted(TABLE)} ({columns}, primary key ({quoted(KEY)}))")
    write(pg, VALUES[:6], "insert into {s}.{t} values (%(key)s, %(body)s, %(owner)s)")
    table = f"{quoted(SCHEMA)}.{quoted(TABLE)}"
    odd = {"name": "odd", "table": table, "text": "{" + BODY + "}", "metadata": [OWNER]}
    return new_daemon(pg, collections=[odd])


def search(daemon: DaemonProcess, where: dict[str, Any]) -> httpx.Response:
    body = {"collection": "odd", "query": "a sleeping cat", "k": 100, "where": where}
    return httpx.post(daemon.url + "/search", json=body, timeout=30, trust_env=False)


def owners(daemon: DaemonProcess, where: dict[str, Any]) -> list[str]:
    answer = search(daemon, where)
    assert answer.status_code == 200, answer.text
    return sorted(hit["metadata"][OWNER] for hit in answer.json()["hits"])


def check(daemon: DaemonProcess, *command: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "cdc_agent.cli", *command, "-c", str(daemon.path)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.postgres(versions=[15], plugin="all")
@pytest.mark.fault("strange-names")
def test_names_and_values_stay_what_they_are_all_the_way(pg: Database, daemon: DaemonProcess) -> None:
    # Given rows from before the start and after it, changed and moved since
    daemon.start()
    write(pg, VALUES[6:], "insert into {s}.{t} values (%(key)s, %(body)s, %(owner)s)")
    write(pg, VALUES[:3], "update {s}.{t} set {b} = {b} || ' again' where {k} = %(key)s")
    write(pg, VALUES[3:5], "update {s}.{t} set {k} = {k} || ', moved' where {k} = %(key)s")
    assert_index_equals_table(daemon, pg)

    # Then each value finds its own row and no other, however it is asked for
    for value in VALUES:
        assert owners(daemon, {OWNER: value}) == [value]
        assert owners(daemon, {OWNER: {"$in": [value, "nobody's"]}}) == [value]
        assert owners(daemon, {"$and": [{OWNER: value}, {OWNER: {"$ne": "nobody's"}}]}) == [value]
    assert owners(daemon, {OWNER: {"$ne": VALUES[0]}}) == sorted(VALUES[1:])

    # And what is no condition is refused with the field's name, not guessed at
    for where in ({"$or": "x"}, {OWNER: {"$where": "1"}}, {OWNER: {"$ne": None}}, {f"{OWNER}.x": {"$eq": {"a": 1}}}):
        answer = search(daemon, where)
        assert answer.status_code == 400, (where, answer.text)

    # And each document answers under its id, and nothing does under a path that only looks like one
    for hit in search(daemon, {OWNER: {"$ne": "nobody's"}}).json()["hits"]:
        path = f"/documents/odd/{quote(hit['document_id'], safe='')}"
        assert daemon.get(path).json()["verdict"]["in_index"], hit["document_id"]
    assert daemon.get("/documents/odd/..%2F..%2Fstatus").status_code in (200, 400, 404)

    # And the audit and a resync go through the same names
    done = check(daemon, "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert check(daemon, "resync", "--collection", "odd").returncode == 0
    assert_index_equals_table(daemon, pg)
    assert daemon.get("/dead-letters").json()["dead_letters"] == []
    assert pg.execute("select count(*) from pg_namespace where nspname = 'public'") == [(1,)]
    assert json.loads(check(daemon, "status", "--json").stdout)
