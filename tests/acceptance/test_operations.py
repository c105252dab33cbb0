"""Everything that SQL can do to a row, against the oracle: real Postgres, real daemon, real Chroma.

Starting a daemon costs more than an operation, so the scenarios run one after another in few daemon lives: each once
while the daemon watches, and all of them in one go while it is away, which folds them into few batches.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table, texts_of
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

#: 63 bytes with everything that a name may hold: quotes of both kinds, dots, blanks, commas, signs, letters of others.
ODD_TABLE = "Tä.b\"l'e, 100% {x} \\ 名前:" + "z" * 33
ODD_SCHEMA = 'od"d.sch ema'
ODD_COLUMN = "Tít.le \"x\", 'y' %s"


def long_text(seed: object, size: int = 9_000) -> str:
    """Incompressible enough and longer than a page, so that it lies out of line."""
    words = random.Random(str(seed))
    text = ""
    while len(text) < size:
        text += f"w{words.randrange(10**9)} "
    return text.strip()


def collection(name: str, table: str, text: str, *metadata: str, **more: object) -> dict[str, object]:
    return {"name": name, "table": table, "text": text, "metadata": list(metadata), **more}


COLLECTIONS = [
    collection("notes", "public.notes", "{title}\n\n{body}", "lang", "n"),
    collection("notes-bodies", "public.notes", "{body}", "title"),
    collection("notes-positive", "public.notes", "{title}: {body}", "n", where="n >= 0 and lang <> 'xx'"),
    collection("notes-short", "public.notes", "{title}", "n", where="title not like 'hidden%'"),
    collection("full", "public.notes_full", "{title}\n\n{body}", "lang", "n"),
    collection("indexed", "public.notes_indexed", "{title}\n\n{body}", "lang", "n"),
    collection("parents", "public.parents", "{name}"),
    collection("children", "public.children", "{name}", "parent"),
    collection("parts", "public.parts", "{title}\n\n{body}", "region", "n"),
    collection("pairs", "public.pairs", "{body}", "a", "b"),
    collection("text-keys", "public.text_keys", "{body}\n\n{long}", "n"),
    collection("uuid-keys", "public.uuid_keys", "{body}", "id"),
    collection("big-keys", "public.big_keys", "{body}", "id"),
    collection(
        "odd",
        '"' + ODD_SCHEMA.replace('"', '""') + '"."' + ODD_TABLE.replace('"', '""') + '"',
        "{Tít.le \"x\", 'y' %s} {long}",
        "Käy",
        where='"Käy" >= 0',
    ),
]


def run(pg: Database, *statements: str | tuple[str, object]) -> None:
    """All statements in one transaction."""
    with psycopg.connect(pg.dsn) as connection:
        for statement in statements:
            text, parameters = statement if isinstance(statement, tuple) else (statement, None)
            connection.execute(text, parameters)  # type: ignore[call-overload]


def create_tables(pg: Database) -> None:
    columns = "title text, body text, lang text, n int, unused int, extra text"
    run(
        pg,
        f"create table notes (id int primary key, {columns})",
        f"create table notes_full (id int primary key, {columns})",
        f"create table notes_indexed (id int primary key, code text not null unique, {columns})",
        "alter table notes alter body set storage external",
        "alter table notes_full alter body set storage external",
        "alter table notes_indexed alter body set storage external",
        "alter table notes_full replica identity full",
        "alter table notes_indexed replica identity using index notes_indexed_code_key",
        "create table parents (id int primary key, name text)",
        "create table children (id int primary key, parent int references parents, name text)",
        "create table parts (region int, id int, title text, body text, n int, primary key (region, id)) "
        "partition by range (region)",
        "create table parts_1 partition of parts for values from (0) to (10)",
        "create table parts_2 partition of parts for values from (10) to (20)",
        "create table parts_rest partition of parts default",
        "alter table parts alter body set storage external",
        "alter table parts_1 alter body set storage external",
        "alter table parts_2 alter body set storage external",
        "alter table parts_rest alter body set storage external",
        "create table pairs (a int, b text, body text, primary key (b, a))",
        "create table text_keys (key text primary key, body text, long text, n numeric)",
        "alter table text_keys alter long set storage external",
        "create table uuid_keys (id uuid primary key, body text)",
        "create table big_keys (id bigint primary key, body text)",
        "create table bystanders (id int primary key, body text)",
    )
    odd = [sql.Identifier(name) for name in (ODD_SCHEMA, ODD_TABLE, ODD_COLUMN)]
    with psycopg.connect(pg.dsn) as connection:
        connection.execute(sql.SQL("create schema {}").format(odd[0]))
        connection.execute(sql.SQL('create table {}.{} ("Käy" int primary key, {} text, long text)').format(*odd))
        connection.execute(sql.SQL("alter table {}.{} alter long set storage external").format(*odd))
        connection.execute(
            sql.SQL("insert into {}.{} select i, 'odd ' || i, 'x' from generate_series(50, 59) i").format(*odd)
        )
    for table in ("notes", "notes_full"):
        for i in range(1, 13):
            row = (i, f"title {i}", long_text(i) if i % 2 else f"short {i}", "en", i)
            run(pg, (f"insert into {table} (id, title, body, lang, n) values (%s, %s, %s, %s, %s)", row))
    for i in range(1, 9):
        row = (i, f"code {i}", f"title {i}", long_text(i) if i % 2 else f"short {i}", "en", i)
        run(pg, ("insert into notes_indexed (id, code, title, body, lang, n) values (%s, %s, %s, %s, %s, %s)", row))
    run(pg, "insert into parents select i, 'parent ' || i from generate_series(1, 5) i")
    run(pg, "insert into children select i, i, 'child ' || i from generate_series(1, 5) i")
    for i in range(1, 31):
        row = (i, i, f"part {i}", long_text(i) if i % 3 == 0 else "short", i)
        run(pg, ("insert into parts values (%s, %s, %s, %s, %s)", row))


# --- the scenarios: each leaves rows for the ones after it


def rows_are_inserted_updated_and_deleted(pg: Database) -> None:
    for table in ("notes", "notes_full"):
        run(pg, f"insert into {table} (id, title, body, lang, n) values (20, 'twenty', 'short', 'de', 20)")
        run(pg, f"update {table} set body = 'other words' where id in (2, 20)")
        run(pg, f"delete from {table} where id in (12, 11)")
        run(pg, f"insert into {table} (id, title) values (12, 'comes back')")
    run(pg, "insert into notes_indexed (id, code, title, n) values (20, 'code 20', 'x', 1)")
    run(pg, "update notes_indexed set title = 'y' where id = 20")
    run(pg, "delete from notes_indexed where id = 2")


def a_row_is_born_and_dies_in_one_transaction(pg: Database) -> None:
    insert = "insert into notes (id, title) values (30, 'mayfly')"
    run(pg, insert, "delete from notes where id = 30")
    run(pg, "delete from notes where id = 4", "insert into notes (id, title, n) values (4, 'replaced', 4)")
    run(pg, insert, "update notes set title = 'moth'", "delete from notes where id = 30", insert)
    run(pg, "update notes set title = 'title ' || id")


def keys_change_also_where_long_values_stay(pg: Database) -> None:
    for table in ("notes", "notes_full"):
        run(pg, f"update {table} set id = 101 where id = 1")
        run(pg, f"update {table} set id = id + 200 where id in (3, 4, 5)")
        run(pg, f"update {table} set id = 106, title = 'moved and renamed' where id = 6")
    run(pg, "update notes_indexed set id = 101 where id = 1")
    run(pg, "update notes_indexed set code = 'code 3b' where id = 3")
    run(pg, "update notes_indexed set code = 'code, 5%', id = 105, n = 7 where id = 5")
    run(pg, "update parts set id = id + 100 where region in (3, 9, 12)")


def keys_are_swapped_and_moved_in_chains(pg: Database) -> None:
    for table in ("notes", "notes_full"):
        # Swapped: one has a long body, the other a short one.
        run(
            pg,
            f"update {table} set id = -1 where id = 7",
            f"update {table} set id = 7 where id = 8",
            f"update {table} set id = 8 where id = -1",
        )
        # A chain back to where it began, and one that ends on a key that was just freed.
        run(pg, *(f"update {table} set id = {b} where id = {a}" for a, b in ((9, 90), (90, 91), (91, 92), (92, 9))))
        run(
            pg,
            f"update {table} set id = 300 where id = 9",
            f"update {table} set id = 9 where id = 10",
            f"insert into {table} (id, title) values (10, 'new at ten')",
        )
        run(pg, f"delete from {table} where id = 10", f"update {table} set id = 10 where id = 300")
        run(pg, f"update {table} set id = id + 1000 where id < 1000")
        run(pg, f"update {table} set id = id - 1000 where id >= 1000")


def long_values_stay_while_others_change(pg: Database) -> None:
    for table in ("notes", "notes_full", "notes_indexed"):
        row = (50, f"long {table}", long_text("a"))
        more = ", code" if table == "notes_indexed" else ""
        value = ", 'code 50'" if more else ""
        insert = (f"insert into {table} (id, title, body, n{more}) values (%s, %s, %s, 0{value})", row)
        # In the transaction that made it, metadata first.
        run(pg, insert, f"update {table} set n = 1 where id = 50")
        run(pg, f"update {table} set n = 2 where id = 50")
        run(pg, f"update {table} set title = 'another title' where id = 50")
        run(pg, f"update {table} set n = 3 where id = 50", f"update {table} set n = 4, lang = 'fr' where id = 50")
        run(pg, f"update {table} set extra = 'not in any collection' where id = 50")
        # Text columns are written, but with what they held.
        run(pg, f"update {table} set title = title, body = body || '' where id = 50")
        run(
            pg,
            f"update {table} set title = 't2' where id = 50",
            f"update {table} set title = 'another title' where id = 50",
        )
        # From null to long and back.
        run(pg, f"update {table} set body = null where id = 50")
        run(pg, (f"update {table} set body = %s where id = 50", [long_text("b")]))
        run(pg, f"update {table} set n = 5 where id = 50")
        run(
            pg,
            f"update {table} set body = null where id = 50",
            (f"update {table} set body = %s where id = 50", [long_text("c")]),
        )
        run(pg, f"update {table} set n = 6 where id = 50")
        run(
            pg,
            (f"update {table} set body = %s where id = 50", [long_text("d")]),
            f"update {table} set n = 7 where id = 50",
        )
        run(pg, f"delete from {table} where id = 50", insert, f"update {table} set id = 51, n = 8 where id = 50")
        run(pg, f"update {table} set id = 50 where id = 51", f"update {table} set title = 'end' where id = 50")


def rows_leave_the_predicate_and_come_back(pg: Database) -> None:
    run(pg, "insert into notes (id, title, n, lang) values (60, 'negative', -1, 'en'), (61, 'null', null, 'en')")
    run(pg, ("insert into notes (id, title, n, lang, body) values (62, 'long', 1, 'en', %s)", [long_text(62)]))
    run(pg, "update notes set n = -n where id in (60, 62)")
    run(pg, "update notes set title = 'changed outside' where id in (60, 62)")
    run(pg, "update notes set n = 5 where id in (61, 62)")
    run(pg, "update notes set lang = 'xx' where id = 62", "update notes set lang = 'en' where id = 62")
    run(pg, "update notes set title = 'hidden ' || title where id between 60 and 62")
    run(pg, "update notes set title = replace(title, 'hidden ', '') where id in (60, 62)")


def rolled_back_work_leaves_nothing(pg: Database) -> None:
    with psycopg.connect(pg.dsn) as connection:
        connection.execute("insert into notes (id, title) values (70, 'never')")
        connection.execute("update notes set title = 'never' where id = 2")
        connection.rollback()
        connection.execute("insert into notes (id, title, n) values (71, 'kept', 1)")
        for i in range(3):
            connection.execute(f"savepoint s{i}")
            connection.execute(f"update notes set n = {i}, title = 'lost {i}' where id = 71")
            connection.execute(f"insert into notes (id, title) values ({72 + i}, 'lost')")
        connection.execute("rollback to savepoint s1")
        connection.execute("update notes set body = 'after the rollback' where id = 71")
        connection.execute("release savepoint s0")


def transactions_overlap(pg: Database) -> None:
    with psycopg.connect(pg.dsn) as first, psycopg.connect(pg.dsn) as second:
        first.execute("insert into notes (id, title, n) values (80, 'first', 1)")
        second.execute("insert into notes (id, title, n) values (81, 'second', 1)")
        first.execute("update notes set n = 2 where id = 2")
        second.execute("update notes set n = 3 where id = 20")
        second.commit()
        first.execute("update notes set title = 'first changed the row of the second' where id = 81")
        first.commit()
        second.execute("update notes set title = 'and the second that of the first' where id = 80")
        second.commit()


def columns_come_go_and_are_renamed(pg: Database) -> None:
    with_row = "insert into notes (id, title, body, n) values ({0}, 'ddl {0}', 'body', 1)"
    run(pg, "alter table notes add column added text default 'x'")
    run(pg, "insert into notes (id, title, added) values (90, 'with the new column', 'y')")
    run(pg, "update notes set n = 1 where id = 2")
    run(pg, with_row.format(91), "alter table notes rename column extra to spare", with_row.format(92))
    run(
        pg,
        "alter table notes drop column added",
        with_row.format(93),
        "update notes set n = n + 1 where id in (91, 93)",
    )
    run(pg, "alter table notes alter column unused type bigint")
    run(pg, with_row.format(94), "alter table notes alter column unused type text using 'u'", with_row.format(95))
    run(pg, "alter table notes rename column spare to extra", "update notes set extra = 'e' where id = 95")
    run(pg, "alter table notes drop column unused", "alter table notes add column unused int")
    run(pg, ("update notes set body = %s where id = 95", [long_text(95)]), "update notes set n = 9 where id = 95")
    run(pg, "update notes set n = 10 where id = 95", "delete from notes where id = 94")


def tables_are_truncated(pg: Database) -> None:
    run(
        pg,
        "insert into children values (6, 1, 'after')",
        "truncate children",
        "insert into children values (7, 2, 'x')",
    )
    run(pg, "truncate parents, children")
    run(pg, "insert into parents values (1, 'again')", "insert into children values (1, 1, 'again')")
    run(pg, "truncate parents cascade", "insert into parents values (2, 'survives')")
    run(
        pg,
        "insert into children values (2, 2, 'survives')",
        "insert into bystanders values (1, 'x')",
        "truncate bystanders",
    )


def rows_move_between_partitions(pg: Database) -> None:
    run(pg, "update parts set region = region + 10 where region in (1, 3, 4, 6)")
    run(pg, "update parts set region = 50 where id = 15", "update parts set region = 2 where id = 15")
    run(pg, "update parts_rest set n = -1", "update parts set title = 'one' where region < 10")
    run(pg, "truncate parts_1")
    run(pg, ("insert into parts values (5, 205, 'new', %s, 5), (6, 206, 'moves away', 'b', 6)", [long_text(5)]))
    run(pg, "update parts set region = 16 where region = 6", "truncate parts_1")
    run(pg, ("insert into parts values (7, 207, 'new', %s, 5)", [long_text(7)]))


def partitions_come_and_go(pg: Database) -> None:
    run(pg, "create table parts_100 partition of parts for values from (100) to (200)")
    run(pg, "insert into parts values (100, 1, 'in the new one', 'b', 1), (101, 1, 'too', 'b', 1)")
    run(pg, "update parts set region = 5 where region = 101", "delete from parts where region = 12")
    run(pg, "truncate parts")
    run(pg, "insert into parts select i, i, 'p' || i, 'b', i from generate_series(1, 30) i")


def keys_of_every_kind(pg: Database) -> None:
    odd = ["a,b", "100%", "%2C", 'it\'s "quoted"', "größe 名前 🙂", " leading and  inner ", "", "a:b#1.0", "\\x00\n\t"]
    for i, key in enumerate(odd):
        run(pg, ("insert into pairs values (%s, %s, %s)", [i, key, f"pair {i}"]))
        run(pg, ("insert into text_keys values (%s, %s, %s, 1.50)", [key, f"text {i}", long_text(i)]))
        run(pg, ("insert into text_keys (key, n) values (%s, 'NaN')", [key + "2"]))
    run(
        pg, "insert into pairs values (7, 'a', 'x'), (7, 'a,7', 'y')", "update pairs set b = b || ',' where a in (1, 2)"
    )
    run(pg, "update pairs set a = -a where b like 'it%'", "delete from pairs where b = ''")
    for key in odd[::2]:
        run(pg, ("update text_keys set n = 2 where key = %s", [key]))
        run(pg, ("update text_keys set key = key || ', moved' where key = %s", [key]))
        run(pg, ("update text_keys set body = 'changed' where key = %s", [key + ", moved"]))
        run(pg, ("delete from text_keys where key = %s", [key + "2"]))
    run(
        pg,
        "insert into uuid_keys select ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 'u' || i "
        "from generate_series(1, 9) i",
    )
    run(pg, "update uuid_keys set body = 'U' where id < '00000000-0000-4000-8000-000000000005'")
    run(pg, "delete from uuid_keys where id = '00000000-0000-4000-8000-000000000009'")
    run(pg, "insert into big_keys values (9223372036854775807, 'max'), (-9223372036854775808, 'min'), (0, 'zero')")
    run(pg, "update big_keys set body = 'MAX' where id > 0", "update big_keys set id = -1 where id = 0")


def truncated_and_filled_again_in_one_transaction(pg: Database) -> None:
    run(
        pg,
        "truncate text_keys",
        ("insert into text_keys values ('a,b', 'again', %s, 'NaN'), ('c', 'c', null, null)", [long_text("again")]),
        "update text_keys set n = 3 where key = 'c'",
    )
    run(pg, "update text_keys set n = 'NaN'", "update text_keys set body = 'moved', key = 'd,e' where key = 'a,b'")


def names_that_need_quotes(pg: Database) -> None:
    # psycopg looks for placeholders in names, too.
    table = sql.SQL(sql.Identifier(ODD_SCHEMA, ODD_TABLE).as_string(None).replace("%", "%%"))
    column = sql.SQL(sql.Identifier(ODD_COLUMN).as_string(None).replace("%", "%%"))
    with psycopg.connect(pg.dsn) as connection:
        for i in range(1, 6):
            row = (i, f"odd {i}", long_text(i) if i % 2 else "")
            connection.execute(sql.SQL("insert into {} values (%s, %s, %s)").format(table), row)
    with psycopg.connect(pg.dsn) as connection:
        connection.execute(sql.SQL('update {} set {} = %s where "Käy" = 3').format(table, column), ["changed"])
        connection.execute(sql.SQL('update {} set "Käy" = %s where "Käy" = 2').format(table), [-1])
        connection.execute(sql.SQL('update {} set "Käy" = %s where "Käy" = 1').format(table), [11])
        connection.execute(sql.SQL('delete from {} where "Käy" = %s').format(table), [4])
    with psycopg.connect(pg.dsn) as connection:
        connection.execute(sql.SQL('update {} set "Käy" = %s where "Käy" = -1').format(table), [2])


def texts_are_empty_long_and_short(pg: Database) -> None:
    long = "\n\n".join(f"paragraph {i} " + " ".join(f"word{i}x{j}" for j in range(240)) for i in range(20))
    run(
        pg, "insert into notes (id, title, body, n) values (110, '', '', 1), (111, '  ', null, 2), (112, null, null, 3)"
    )
    run(pg, ("insert into notes (id, title, body, n) values (113, 'shrinks', %s, 1)", [long]))
    run(pg, "update notes set n = 2 where id in (110, 111, 112, 113)")
    run(
        pg, "update notes set body = 'one chunk' where id = 113", "update notes set title = 'now a text' where id = 110"
    )
    run(pg, ("update notes set body = %s where id = 113", [long]), "update notes set n = 3 where id = 113")
    run(pg, "update notes set title = '', body = '' where id in (110, 113)", "update notes set n = 4 where id = 113")
    run(pg, ("update notes set body = %s where id = 113", [long.replace("paragraph 7", "absatz 7")]))


def one_row_changes_two_hundred_times(pg: Database) -> None:
    run(pg, *(f"update notes set n = {i}, title = 'version {i}' where id = 2" for i in range(200)))
    run(pg, *(f"update notes set n = {i} where id = 95" for i in range(50)))


def others_write_logical_messages(pg: Database) -> None:
    with psycopg.connect(pg.dsn) as connection:
        for transactional in ("true", "false"):
            for prefix in ("theirs", "", "cdc_agent", "cdc_agent.resync", "cdc_agent_other"):
                for content in (
                    "",
                    "garbage",
                    "[1, 2]",
                    "null",
                    '{"token": "0123"}',
                    '{"token": 1}',
                    '{"token": ["a"]}',
                    '{"token": {"a": 1}}',
                    '{"done": true, "last_key": ["1"], "rows_done": 1, "since": "1:1:"}',
                ):
                    connection.execute(f"select pg_logical_emit_message({transactional}, %s, %s)", [prefix, content])
                    connection.commit()
                for binary in (b"\xff\xfe\x00\x80", b"\x00", b'{"token": "\xff"}'):
                    connection.execute(
                        f"select pg_logical_emit_message({transactional}, %s, %s::bytea)", [prefix, binary]
                    )
                    connection.commit()
        connection.execute("insert into notes (id, title) values (120, 'beside a message')")
        connection.execute("select pg_logical_emit_message(true, 'cdc_agent.resync', '{}')")
        connection.execute("select pg_logical_emit_message(false, 'cdc_agent.resync', '{}')")
        connection.execute("update notes set n = 1 where id = 120")


def rows_are_copied_in(pg: Database) -> None:
    with psycopg.connect(pg.dsn) as connection, connection.cursor() as cursor:
        with cursor.copy("copy big_keys (id, body) from stdin") as copy:
            for i in range(5_000):
                copy.write_row((10_000 + i, f"copied {i % 50}"))
    run(pg, "delete from big_keys where id between 10000 and 14900")


SCENARIOS: tuple[Callable[[Database], None], ...] = (
    rows_are_inserted_updated_and_deleted,
    a_row_is_born_and_dies_in_one_transaction,
    keys_change_also_where_long_values_stay,
    keys_are_swapped_and_moved_in_chains,
    long_values_stay_while_others_change,
    rows_leave_the_predicate_and_come_back,
    rolled_back_work_leaves_nothing,
    transactions_overlap,
    columns_come_go_and_are_renamed,
    tables_are_truncated,
    rows_move_between_partitions,
    partitions_come_and_go,
    keys_of_every_kind,
    truncated_and_filled_again_in_one_transaction,
    names_that_need_quotes,
    texts_are_empty_long_and_short,
    one_row_changes_two_hundred_times,
    others_write_logical_messages,
    rows_are_copied_in,
)


@contextmanager
def named(step: str) -> Iterator[None]:
    """A failure inside says at which step it happened."""
    try:
        yield
    except BaseException as exc:
        exc.add_note(f"at: {step}")
        raise


@pytest.mark.slow
@pytest.mark.postgres(versions="all", plugin="all")
@pytest.mark.fault(
    "unchanged-toast",
    "key-changes",
    "truncated",
    "rolled-back",
    "overlapping",
    "columns-change",
    "logical-messages",
    "partitions",
    "condition-left",
    "strange-names",
    "positions-that-repeat",
)
def test_the_index_follows_every_operation(pg: Database, new_daemon: NewDaemon) -> None:
    # Given tables of every shape with rows in them, and a daemon that has copied them.
    create_tables(pg)
    daemon = new_daemon(pg, collections=COLLECTIONS)
    daemon.start()
    assert_index_equals_table(daemon, pg)

    # When one kind of operation after another is carried out, then the index follows each.
    for scenario in SCENARIOS:
        with named(scenario.__name__):
            scenario(pg)
            assert_index_equals_table(daemon, pg)

    # Then nothing was parked or refused on the way, and a restart changes nothing.
    assert daemon.status()["dead_letters"] == 0
    assert daemon.terminate() == 0
    daemon.start()
    assert_index_equals_table(daemon, pg)


@pytest.mark.slow
@pytest.mark.postgres(versions="all", plugin="all")
@pytest.mark.fault(
    "unchanged-toast",
    "key-changes",
    "truncated",
    "rolled-back",
    "overlapping",
    "logical-messages",
    "partitions",
    "condition-left",
    "positions-that-repeat",
)
def test_the_index_catches_up_with_every_operation_after_a_pause(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a daemon that has copied the tables and was stopped.
    create_tables(pg)
    daemon = new_daemon(pg, collections=COLLECTIONS)
    daemon.start()
    assert_index_equals_table(daemon, pg)
    assert daemon.terminate() == 0

    # When everything happens while it is away.
    for scenario in SCENARIOS:
        with named(scenario.__name__):
            scenario(pg)

    # Then it catches up, though the tables look different by the time their changes are read.
    daemon.start()
    assert_index_equals_table(daemon, pg)
    assert daemon.status()["dead_letters"] == 0


# --- what needs a scene of its own


NOTES = collection("notes", "public.notes", "{title}\n\n{body}", "lang", "n")


def filler(pg: Database, count: int = 300) -> None:
    """Changes of another row, so that what follows comes in another batch."""
    run(pg, *(f"update notes set n = {i} where id = 12" for i in range(count)))


@pytest.mark.postgres(versions=[15], plugin="all")
@pytest.mark.fault("unchanged-toast")
def test_a_row_that_was_read_again_too_early_leaves_no_orphans_and_no_old_text(
    pg: Database, new_daemon: NewDaemon
) -> None:
    # Given rows with long bodies, and a daemon that is away.
    create_tables(pg)
    bodies = collection("bodies", "public.notes", "{body}", "n")
    parts = collection("parts", "public.parts", "{title}\n\n{body}", "n")
    daemon = new_daemon(pg, collections=[NOTES, bodies, parts])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    assert daemon.terminate() == 0

    # When a change makes the daemon read key 3 again, and later in the log another row takes that key over.
    run(pg, "update notes set title = 'makes it read 3 again' where id = 3")
    run(pg, "update parts set title = 'makes it read this again' where id = 24")
    filler(pg)
    run(
        pg,
        "update notes set title = 'two' where id = 2",
        "delete from notes where id = 3",
        "update notes set id = 3 where id = 2",
    )
    # And when key 5 is read again, and its row then takes over key 7, whose text has the same other columns.
    run(pg, "update notes set title = 'title 7' where id = 5")
    filler(pg)
    run(pg, "delete from notes where id = 7", "update notes set id = 7 where id = 5")
    # And when a row that was read again then finds itself in a new partition, under its old key.
    run(
        pg,
        "create temporary table leaving as select * from parts_rest where region < 30",
        "delete from parts_rest where region < 30",
        "create table parts_20 partition of parts for values from (20) to (30)",
        "insert into parts select * from leaving",
    )
    filler(pg)

    # Then there are no orphans, and no text of the row before.
    daemon.start()
    assert_index_equals_table(daemon, pg)
    run(pg, "truncate parts_rest")
    assert_index_equals_table(daemon, pg)
    run(pg, "truncate parts_20")
    assert_index_equals_table(daemon, pg)


@pytest.mark.postgres(versions="all", plugin="all")
@pytest.mark.fault("prepared-transaction")
def test_a_prepared_transaction_counts_from_its_commit(private_pg: Database, new_daemon: NewDaemon) -> None:
    # Given a server that knows two-phase commit.
    pg = private_pg
    pg.server.settings["max_prepared_transactions"] = "5"
    pg.server.restart()
    create_tables(pg)
    daemon = new_daemon(pg, collections=[NOTES])
    daemon.start()
    assert_index_equals_table(daemon, pg)

    # When two transactions are prepared, others go on, and one is committed, one rolled back.
    connection = pg.connect()
    for name, row in (("kept", 1), ("dropped", 2)):
        connection.execute("begin")
        connection.execute(f"update notes set title = 'prepared' where id = {row}")
        connection.execute(f"insert into notes (id, title) values ({100 + row}, 'prepared')")
        connection.execute(f"prepare transaction '{name}'")
    run(pg, "update notes set title = 'later but first' where id = 3")
    assert_index_equals_table(daemon, pg)
    connection.execute("commit prepared 'kept'")
    connection.execute("rollback prepared 'dropped'")

    # Then the index has what the table has.
    assert_index_equals_table(daemon, pg)


@pytest.mark.postgres(versions="all", plugin="all")
@pytest.mark.fault("columns-change")
def test_a_renamed_column_parks_its_rows_until_it_is_back(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a daemon whose metadata, text and predicate name columns.
    create_tables(pg)
    judged = collection("judged", "public.notes", "{title}", where="n >= 0")
    daemon = new_daemon(pg, collections=[NOTES, judged])
    daemon.start()
    assert_index_equals_table(daemon, pg)

    # When a used column is renamed and rows change meanwhile.
    run(pg, "alter table notes rename column n to number")
    run(pg, ("update notes set body = %s where id = 1", [long_text("meanwhile")]))
    run(pg, "update notes set title = 'meanwhile' where id = 2")
    run(pg, "delete from notes where id = 12")
    run(pg, "insert into notes (id, title, number) values (50, 'new meanwhile', 5)")
    run(pg, "update parents set name = 'goes on'")

    # Then the daemon goes on, and parks the rows that it cannot render.
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    assert {letter["document_id"] for letter in daemon.get("/dead-letters").json()["dead_letters"]} == {
        "public.notes:1",
        "public.notes:2",
        "public.notes:50",
    }

    # When the column has its name again and the rows are touched, without their long texts.
    run(pg, "alter table notes rename column number to n")
    run(pg, "update notes set n = n + 1 where id in (1, 2, 50)")

    # Then the index is right again, also where the change before was parked.
    assert_index_equals_table(daemon, pg)
    assert daemon.status()["dead_letters"] == 0


@pytest.mark.slow
@pytest.mark.postgres(versions="all", plugin="all")
@pytest.mark.fault("overlapping", "rolled-back")
def test_many_writers_at_once_leave_the_index_equal_to_the_table(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a running daemon.
    create_tables(pg)
    used = [c for c in COLLECTIONS if c["name"] in ("notes", "notes-positive", "full", "parts")]
    daemon = new_daemon(pg, collections=used)
    daemon.start()

    # When four writers do what they like for five seconds.
    ends = time.monotonic() + 5
    writers = [threading.Thread(target=write_at_random, args=(pg, seed, ends)) for seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    # Then the index is equal to the tables, also after a restart.
    assert_index_equals_table(daemon, pg)
    assert daemon.terminate() == 0
    daemon.start()
    assert_index_equals_table(daemon, pg)


def write_at_random(pg: Database, seed: int, ends: float) -> None:
    """Random transactions on few keys, so that writers meet; what Postgres refuses is rolled back."""
    rng = random.Random(seed)
    with psycopg.connect(pg.dsn) as connection:
        while time.monotonic() < ends:
            try:
                for _ in range(rng.randrange(1, 5)):
                    connection.execute(*random_statement(rng))  # type: ignore[call-overload]
                if rng.random() < 0.1:
                    connection.rollback()
                connection.commit()
            except psycopg.Error:
                connection.rollback()


def random_statement(rng: random.Random) -> tuple[str, Iterable[object]]:
    table, key = rng.choice(["notes", "notes_full"]), rng.randrange(1, 40)
    body = long_text(rng.random()) if rng.random() < 0.3 else f"body {rng.randrange(5)}"
    roll = rng.random()
    if roll < 0.15:
        return random_statement_on_parts(rng, key, body)
    if roll < 0.4:
        return f"insert into {table} (id, title, body, n) values (%s, %s, %s, %s)", [
            key,
            f"t{key}",
            body,
            rng.randrange(-2, 9),
        ]
    assignments = {
        0.55: ("n", rng.randrange(-2, 9)),
        0.7: ("title", f"t{rng.randrange(9)}"),
        0.8: ("body", body),
        0.9: ("id", rng.randrange(1, 40)),
    }
    for limit, (column, value) in assignments.items():
        if roll < limit:
            return f"update {table} set {column} = %s where id = %s", [value, key]
    return f"delete from {table} where id = %s", [key]


def random_statement_on_parts(rng: random.Random, key: int, body: str) -> tuple[str, Iterable[object]]:
    region, roll = rng.randrange(0, 30), rng.random()
    if roll < 0.1:
        return "truncate parts_1", []
    if roll < 0.5:
        return "insert into parts values (%s, %s, %s, %s, 1)", [region, key, f"p{key}", body]
    return "update parts set region = %s where id = %s", [region, key]


@pytest.mark.postgres(versions=[15], plugin="all")
@pytest.mark.fault("unchanged-toast")
def test_a_change_is_not_completed_from_a_row_that_is_older_than_itself(
    private_pg: Database, new_daemon: NewDaemon
) -> None:
    """Under synchronous replication a commit is in the log long before readers see it."""
    # Given a row with a long text, and a standby that will never answer.
    pg = private_pg
    create_tables(pg)
    daemon = new_daemon(pg, collections=[NOTES])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    pg.execute(f"alter database {pg.name} set synchronous_commit = local")
    pg.hold_commits()

    # When a commit that leaves out the long text waits for that standby; it is in the log, but not visible.
    waiting = pg.connect(autocommit=False)
    waiting.execute("set synchronous_commit = on")
    waiting.execute("update notes set title = 'NEW' where id = 1")
    waiting.execute("update notes set id = 333 where id = 3")
    commit = threading.Thread(target=waiting.commit)
    commit.start()
    waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
    until(lambda: pg.execute(waits)[0][0] == 1, what="the commit to wait for its standby")
    received = "cdc_agent_changes_received_total"
    until(lambda: daemon.metric(received, op="u") >= 2, what="the change to arrive")
    until(lambda: "retrying component=source_rows" in daemon.log or daemon.metric("cdc_agent_reread_rows_total") >= 2)
    assert pg.execute("select title from notes where id = 1") == [("title 1",)]

    # And when the standby is given up and the commit becomes visible.
    pg.execute("alter system reset synchronous_standby_names")
    pg.execute("select pg_reload_conf()")
    commit.join()

    # Then the index has the new row.
    assert_index_equals_table(daemon, pg)
    assert any(text.startswith("NEW") for text in texts_of(daemon.config, "notes").values())


@pytest.mark.postgres(versions="all", plugin="all")
@pytest.mark.fault("columns-change")
def test_changes_are_not_lost_when_names_change_before_they_are_read(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a daemon that is held up.
    create_tables(pg)
    daemon = new_daemon(pg, collections=[NOTES, collection("parents", "public.parents", "{name}")])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    daemon.signal(signal.SIGSTOP)

    # When rows change, and then their table or the column of their key gets another name.
    run(pg, "update notes set title = 'before the table was renamed' where id = 1")
    run(pg, "update parents set name = 'before the key was renamed' where id = 1")
    run(pg, "alter table notes rename to notes_elsewhere", "alter table parents rename column id to key")
    daemon.signal(signal.SIGCONT)
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])

    # Then the index has these changes once the names are back.
    run(pg, "alter table notes_elsewhere rename to notes", "alter table parents rename column key to id")
    assert_index_equals_table(daemon, pg)
