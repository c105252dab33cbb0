"""A column of every common type, in the text and in the metadata: exact, and the same whichever plugin carries it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table, stored
from tests.support.postgres import Database

NewDaemon = Callable[..., DaemonProcess]

SETUP = """
create type mood as enum ('sad', 'so-so', 'über "glücklich", {ja}');
create domain short_text as text check (length(value) < 50);
create type address as (street text, "no" int);
create table things (
    id int primary key,
    note text,
    c_int2 int2, c_int4 int4, c_int8 int8,
    c_numeric numeric, c_price numeric(12, 2),
    c_float4 float4, c_float8 float8,
    c_bool bool,
    c_text text, c_varchar varchar(20), c_char char(8), c_name name,
    c_bytea bytea,
    c_date date, c_timestamp timestamp, c_timestamptz timestamptz, c_time time, c_timetz timetz, c_interval interval,
    c_uuid uuid,
    c_json json, c_jsonb jsonb,
    c_ints int[], c_grid int[], c_texts text[], c_floats float8[], c_moods mood[],
    c_mood mood, c_domain short_text, c_address address,
    c_range int4range, c_tsrange tstzrange, c_multirange int4multirange,
    c_inet inet, c_cidr cidr, c_mac macaddr,
    c_money money, c_bits bit(4), c_varbits varbit, c_point point, c_tsvector tsvector, c_oid oid,
    c_generated int generated always as (c_int4 * 2) stored
);
"""

#: By column, values for rows 1, 2, 3…; a row without one takes NULL. As SQL, because Python has no infinity date.
VALUES: dict[str, Sequence[str]] = {
    "note": ["'plain'", "'low'", "'high'", "'odd'"],
    "c_int2": ["1", "-32768", "32767", "0"],
    "c_int4": ["1", "-2147483648 / 2", "2147483647 / 2", "0"],
    "c_int8": ["1", "-9223372036854775808", "9223372036854775807", "9007199254740993"],
    "c_numeric": [
        "1.50",
        "'-0.00000000000000000000000000000000000000000000000001'",
        "'12345678901234567890123456789012345678901234567890'",
        "'NaN'",
        "'Infinity'",
        "'-Infinity'",
        "'1e100'",
        "'0.1000'",
        "100",
        "'18446744073709551616'",
        "'-9223372036854775809'",
        "'12345678901234567890.12345678901234567890'",
    ],
    "c_price": ["1.50", "-9999999999.99", "9999999999.99", "0", "'NaN'", "0.10"],
    "c_float4": ["1.5", "'-Infinity'", "'Infinity'", "'NaN'", "'-0'", "0.1", "3.4028235e38", "1e-45", "16777216"],
    "c_float8": [
        "1.5",
        "'-Infinity'",
        "'Infinity'",
        "'NaN'",
        "'-0'",
        "0.1",
        "1.7976931348623157e308",
        "5e-324",
        "9007199254740993",
        "1e15",
        "1e16",
        "100",
    ],
    "c_bool": ["true", "false"],
    "c_text": [
        "'text'",
        "''",
        r"'backslash \ slash / quote '' double \" tab ' || chr(9) || ' newline ' || chr(10) || ' bell ' || chr(7)",
        "'größe 名前 🙂 ' || chr(8232) || chr(65279) || 'é'",
        r"'\u0041 {braces} {{two}} %s %% \x00'",
        "'null'",
        "'NaN'",
        "'  blanks  '",
    ],
    "c_varchar": ["'varchar'", "''", "'trailing  '"],
    "c_char": ["'char'", "''", "'12345678'"],
    "c_name": ["'name'"],
    "c_bytea": [r"'\x00ff10'", r"'\x'", r"'\xdeadbeef'", "repeat('x', 20)::bytea"],
    "c_date": [
        "'2025-01-31'",
        "'-infinity'",
        "'infinity'",
        "'0044-03-15 BC'",
        "'0001-01-01'",
        "'9999-12-31'",
        "'20000-01-01'",
    ],
    "c_timestamp": [
        "'2025-01-31 12:34:56.789012'",
        "'-infinity'",
        "'infinity'",
        "'0044-03-15 12:00 BC'",
        "'9999-12-31 23:59:59.999999'",
        "'20000-01-01'",
        "'2025-01-31 12:00'",
    ],
    "c_timestamptz": [
        "'2025-01-31 12:34:56.789012+05:30'",
        "'-infinity'",
        "'infinity'",
        "'0044-03-15 12:00+00 BC'",
        "'9999-12-31 23:59:59.999999+00'",
        "'20000-01-01 00:00+00'",
        "'1800-01-01 00:00+00'",
    ],
    "c_time": ["'12:34:56.789'", "'00:00'", "'24:00'"],
    "c_timetz": ["'12:34:56+05:30'", "'00:00+00'", "'23:59:59.999999-12'"],
    "c_interval": ["'1 day'", "'-1 year -2 mons +3 days 04:05:06.789'", "'0'", "'1000000 hours'"],
    "c_uuid": ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
    "c_json": ["""'{"b": 1.10,  "a": [null, true, "x"], "a": 2}'""", "'null'", "'\"\\u00e9\"'", "'1e3'", "'[]'"],
    "c_jsonb": [
        """'{"b": 1.10,  "a": [null, true, "x\\"y"]}'""",
        "'null'",
        "'12345678901234567890123.4500'",
        "'{}'",
        "'\"größe\"'",
    ],
    "c_ints": ["'{1,2,3}'", "'{}'", "'{NULL,-1}'", "'[5:6]={1,2}'"],
    "c_grid": ["'{{1,2},{3,4}}'"],
    "c_texts": ["""'{a,"b,c","d\\"e","f\\\\g",NULL,"NULL","","größe {x}"}'""", "'{}'", "'{{a,b},{c,d}}'"],
    "c_floats": ["'{1.5,NaN,Infinity,-0,NULL,0.1}'", "'{}'"],
    "c_moods": ["""array['sad', 'über "glücklich", {ja}']::mood[]"""],
    "c_mood": ["'sad'", "'so-so'", """'über "glücklich", {ja}'"""],
    "c_domain": ["'domain'", "''"],
    "c_address": ["""row('Main "St", 5', 7)::address""", "row(null, null)::address", "row('', 0)::address"],
    "c_range": ["'[1,5)'", "'empty'", "'(,)'", "'[3,]'"],
    "c_tsrange": ["'[2025-01-01 00:00+01, 2025-02-01 00:00+01)'", "'(,2025-01-01 00:00+00]'"],
    "c_multirange": ["'{[1,3),[5,9)}'", "'{}'"],
    "c_inet": ["'10.0.0.1'", "'10.0.0.0/8'", "'::1'", "'2001:db8::/32'"],
    "c_cidr": ["'10.0.0.0/8'"],
    "c_mac": ["'08:00:2b:01:02:03'"],
    "c_money": ["'1234.50'", "'-0.01'"],
    "c_bits": ["B'1010'"],
    "c_varbits": ["B'101010101'", "B''"],
    "c_point": ["'(1.5,-2)'"],
    "c_tsvector": ["to_tsvector('simple', 'a fat ''cat''')"],
    "c_oid": ["1", "4294967295"],
}
#: wal2json cannot express some of their values, and then the whole row is read again: that must not hide the others.
FLOATS = ("c_numeric", "c_price", "c_float4", "c_float8")
#: Everything but bytea, which is no text, may stand in a template.
COLUMNS = [name for name in VALUES if name not in ("note", "c_bytea", *FLOATS)]
TEXT = "\n".join(f"{name}: {{{name}}}" for name in COLUMNS)
ROWS = 1 + max(len(values) for values in VALUES.values())


def insert(pg: Database, start: int) -> None:
    """A row for each place in the lists of values, and one of nulls; keys from ``start``."""
    names = list(VALUES)
    with psycopg.connect(pg.dsn) as connection:
        for place in range(ROWS):
            row = [values[place] if place < len(values) else "null" for values in VALUES.values()]
            connection.execute(
                f"insert into things (id, {', '.join(names)}) values ({start + place}, {', '.join(row)})"
            )


def change_numbers(pg: Database) -> None:
    """To and from what JSON cannot express, also twice in one transaction."""
    with psycopg.connect(pg.dsn) as connection:
        for key, values in (
            (1010, ("1", "NaN", None)),
            (1011, ("NaN", "2")),
            (1012, ("3", None)),
            (1013, (None, "NaN")),
        ):
            for value in values:
                numbers = "update things set c_numeric = %s, c_float8 = %s, c_float4 = %s where id = %s"
                connection.execute(numbers, [value, value, value, key])
    pg.execute("update things set c_numeric = null, c_float4 = null where id in (2, 3)")
    pg.execute("update things set c_float8 = 'Infinity' where id in (1, 2)")


def contents(daemon: DaemonProcess, collection: str) -> list[tuple[Any, ...]]:
    found = stored(daemon.config, collection)
    return sorted(
        (text, *sorted(metadata.items())) for text, metadata in zip(found["documents"], found["metadatas"], strict=True)
    )


def collections() -> list[dict[str, Any]]:
    things = {"table": "public.things"}
    return [
        {**things, "name": "things", "text": TEXT, "metadata": [*COLUMNS, "c_bytea"]},
        *({**things, "name": name, "text": f"{{{name}}}", "metadata": [name]} for name in FLOATS),
        {**things, "name": "numbers", "text": " ".join(f"{{{name}}}" for name in FLOATS), "metadata": ["note"]},
    ]


@pytest.mark.postgres(versions=[16, 18], plugin="pgoutput")
@pytest.mark.fault("strange-numbers")
def test_every_type_arrives_as_select_gives_it(pg: Database, new_daemon: NewDaemon) -> None:
    # Given rows of every type, and a daemon that has copied them.
    pg.execute(SETUP)
    insert(pg, 1)
    daemon = new_daemon(pg, collections=collections())
    daemon.start()
    assert_index_equals_table(daemon, pg)

    # When the same rows are inserted again and updated.
    insert(pg, 1000)
    pg.execute("update things set note = 'touched' where id >= 1000")
    change_numbers(pg)
    pg.execute("update things set c_int2 = coalesce(c_int2, 0) / 2, id = id + 100000 where id % 2 = 0")

    # Then they are in the index as SELECT gives them.
    assert_index_equals_table(daemon, pg)


@pytest.mark.postgres(versions=[15], plugin="wal2json")
@pytest.mark.fault("strange-numbers")
def test_both_plugins_bring_the_same_values(pg: Database, new_daemon: NewDaemon) -> None:
    # Given two daemons on the same database, one with each plugin.
    pg.execute(SETUP)
    insert(pg, 1)
    other = {"plugin": "pgoutput", "slot_name": f"{pg.slot_name}_other"}
    one = new_daemon(pg, collections=collections())
    two = new_daemon(pg, collections=collections(), source=other)
    one.start()
    two.start()
    assert_index_equals_table(one, pg)
    assert_index_equals_table(two, pg)

    # When rows are inserted, touched, changed and moved.
    insert(pg, 1000)
    pg.execute("update things set note = 'touched' where id between 1000 and 1004")
    change_numbers(pg)
    pg.execute("update things set c_int2 = coalesce(c_int2, 0) / 2, id = id + 100000 where id % 2 = 0")
    pg.execute("delete from things where id = 3")

    # Then both indexes hold what SELECT gives, and the same, to the LSN.
    assert_index_equals_table(one, pg)
    assert_index_equals_table(two, pg)
    for name in ("things", "numbers", *FLOATS):
        mine, theirs = contents(one, name), contents(two, name)
        volatile = ("cdc_lsn", "cdc_commit_ts")
        assert [_without(row, volatile) for row in mine] == [_without(row, volatile) for row in theirs]


def _without(row: tuple[Any, ...], keys: Sequence[str]) -> tuple[Any, ...]:
    return (row[0], *(pair for pair in row[1:] if pair[0] not in keys))


@pytest.mark.postgres(versions=[15], plugin="wal2json")
def test_a_generated_column_follows_with_wal2json(pg: Database, new_daemon: NewDaemon) -> None:
    pg.execute(SETUP)
    follow_a_generated_column(pg, new_daemon)


@pytest.mark.postgres(versions=[18], plugin="pgoutput")
def test_a_generated_column_follows_where_the_publication_sends_it(pg: Database, new_daemon: NewDaemon) -> None:
    pg.execute(SETUP)
    pg.execute(f"create publication {pg.slot_name} for table things with (publish_generated_columns = stored)")
    follow_a_generated_column(pg, new_daemon)


def follow_a_generated_column(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a stored generated column in text and metadata.
    insert(pg, 1)
    generated = {"name": "generated", "table": "public.things", "text": "{c_generated} {note}"}
    daemon = new_daemon(pg, collections=[{**generated, "metadata": ["c_generated"]}])
    daemon.start()
    assert_index_equals_table(daemon, pg)

    # When what it is made of changes, then it changes too.
    pg.execute("update things set c_int4 = 21")
    insert(pg, 1000)
    assert_index_equals_table(daemon, pg)


@pytest.mark.postgres(versions=[15], plugin="all")
def test_a_domain_over_a_number_is_a_number(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a domain over a number, one over that domain, and a copied row.
    pg.execute("create domain amount as numeric; create domain price as amount check (value > 0)")
    pg.execute("create table goods (id int primary key, price price, amount amount)")
    pg.execute("insert into goods values (1, 1.50, 2)")
    goods = {"name": "goods", "table": "public.goods", "text": "{price}", "metadata": ["price", "amount"]}
    daemon = new_daemon(pg, collections=[goods])
    daemon.start()

    # When others follow, one of them with a value that JSON does not know, then all are numbers, as SELECT says.
    pg.execute("insert into goods values (2, 2.50, 'NaN'), (3, 'NaN', null)")
    assert_index_equals_table(daemon, pg)
