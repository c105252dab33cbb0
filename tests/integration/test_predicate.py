"""Predicates against the real thing: random conditions over random rows select what Postgres selects."""

from __future__ import annotations

import random
from collections.abc import Iterator

import psycopg

from cdc_agent.documents.predicate import Predicate
from cdc_agent.errors import ConfigError
from cdc_agent.events import Column, Relation, Row
from tests.support.postgres import Database

#: Per column its type and some values, edges first.
VALUES = {
    "i": ("int", ["0", "1", "-1", "5", "2147483647"]),
    "big": ("bigint", ["1", "9007199254740993", "-9223372036854775808"]),
    "n": ("numeric", ["NaN", "Infinity", "-Infinity", "0.1", "1", "1.0", "9007199254740993"]),
    "r": ("real", ["NaN", "Infinity", "0.1", "1", "-0"]),
    "f": ("double precision", ["NaN", "-Infinity", "0.1", "1", "9007199254740992"]),
    "t": ('text collate "C"', ["", "a", "A", "ab", "a  ", "é", "ß", "a%b", "a_b", "a\\b", "x\ny", "10", "9"]),
    "v": ('varchar(9) collate "C"', ["a", "a ", "B", "é"]),
    "c": ('char(4) collate "C"', ["a", "ab", "A", "  a"]),
    "b": ("bool", ["t", "f"]),
    "p": ("bool", ["t", "f"]),
    "d": ("date", ["infinity", "-infinity", "2020-01-01", "2020-01-02", "9999-12-31"]),
    "ts": ("timestamp", ["infinity", "-infinity", "2020-01-01", "2020-01-01 10:00:00.5"]),
    "tz": ("timestamptz", ["infinity", "2020-01-01+00", "2020-01-01 12:00:00.5+02"]),
    "tm": ("time", ["00:00", "10:00", "23:59:59.999999"]),
    "u": ("uuid", ["11111111-1111-1111-1111-111111111111", "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"]),
}
LITERALS = [
    "null",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "1.5",
    "0.1",
    "9007199254740993",
    "'1'",
    "'1.5'",
    "'0.1'",
    "'a'",
    "'A'",
    "'ab '",
    "''",
    "'t'",
    "'of'",
    "'NaN'",
    "'infinity'",
    "'10:00'",
    "'2020-01-01'",
    "'2020-01-01T10:00:00.5'",
    "'2020-01-01T12:00+02'",
    "date '2020-01-01'",
    "'2020-01-01'::timestamp",
    "'2020-01-01T00:00Z'::timestamptz",
    "'0.1'::real",
    "0.1::float8",
    "'0.1'::numeric",
    "null::int",
    "'a'::text",
    "'a'::varchar",
    "'11111111-1111-1111-1111-111111111111'",
]
PATTERNS = ["'a%'", "'%b'", "'a_b'", "'a\\_b'", "'%'", "''", "'_'", "'%A%b%'", "'%\\%%'", "'a\\\\b'", "'x_y'", "null"]
TESTS = ["null", "not null", "true", "not true", "false", "not false"]


def conditions(rng: random.Random) -> Iterator[str]:
    while True:
        # Twice as often alone: most pairs of a column and a literal are type errors, on both sides.
        yield comparison(rng) if rng.random() < 0.66 else condition(rng, depth=3)


def condition(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.3:
        return comparison(rng)
    left, right = condition(rng, depth - 1), condition(rng, depth - 1)
    return rng.choice([f"{left} and {right}", f"{left} or {right}", f"not {left}", f"({left})", f"({left}) is null"])


def comparison(rng: random.Random) -> str:
    column = rng.choice(list(VALUES))
    one, other, third = (literal(rng, column) for _ in range(3))
    pattern, escape = rng.choice(PATTERNS), rng.choice(["", "", " escape '!'"])
    return rng.choice(
        [
            f"{column} {rng.choice(['=', '<>', '<', '<=', '>', '>='])} {one}",
            f"{column} {rng.choice(['in', 'not in'])} ({one}, {other}, {third})",
            f"{column} in ({one})",
            f"{column} {rng.choice(['between', 'not between'])} {one} and {other}",
            f"{rng.choice('ttvc')} {rng.choice(['like', 'not like', 'ilike', 'not ilike'])} {pattern}{escape}",
            f"{rng.choice(['b', 'p', column])} is {rng.choice(TESTS)}",
            rng.choice(["b", "p", "not b", "b = (i > 0)"]),
        ]
    )


def literal(rng: random.Random, column: str) -> str:
    """Something to compare the column with: one of its own values, another column, or anything."""
    own = [f"'{value}'" for value in VALUES[column][1]]
    return rng.choice([rng.choice(own), rng.choice(LITERALS), rng.choice(list(VALUES))])


def insert_rows(connection: psycopg.Connection, rng: random.Random, count: int) -> None:
    columns = ", ".join(f"{name} {kind}" for name, (kind, _) in VALUES.items())
    connection.execute(f"create table t (id int, {columns})")
    for number in range(count):
        values = [None if rng.random() < 0.15 else rng.choice(texts) for _, texts in VALUES.values()]
        # Untyped parameters: the server reads every value by its column's own rules.
        marks = ", ".join(["%s"] * (1 + len(VALUES)))
        connection.execute(f"insert into t values ({marks})", [number, *values])  # type: ignore[call-overload]


def rows_of(connection: psycopg.Connection) -> list[Row]:
    """The rows in the text form in which replication would send them."""
    cursor = connection.execute("select * from t order by id")
    result, description = cursor.pgresult, cursor.description
    assert result is not None
    assert description is not None
    columns = tuple(Column(name=column.name, type_oid=column.type_code) for column in description)
    relation = Relation(oid=1, root_oid=1, schema="public", name="t", columns=columns, key=("id",))
    width = range(len(columns))
    return [Row(relation, tuple(result.get_value(i, j) for j in width)) for i in range(result.ntuples)]


def test_random_conditions_select_the_rows_that_postgres_selects(pg: Database) -> None:
    # Given rows full of edges
    rng = random.Random(20)
    connection = pg.connect()
    connection.execute("set timezone = 'UTC'")
    insert_rows(connection, rng, 80)
    rows = rows_of(connection)

    # When both judge random conditions
    selective = 0
    for sql, _ in zip(conditions(rng), range(4000), strict=False):
        try:
            theirs = {number for (number,) in connection.execute(f"select id from t where {sql}")}  # type: ignore[call-overload]
        except psycopg.Error:
            continue
        try:
            predicate = Predicate(sql)
            ours = {row["id"] for row in rows if predicate.matches(row)}
        except ConfigError:
            # Refusing more than Postgres does is allowed; answering differently is not.
            continue

        # Then they agree
        assert ours == theirs, sql
        selective += 0 < len(theirs) < len(rows)

    # and often had something to disagree about
    assert selective > 500
