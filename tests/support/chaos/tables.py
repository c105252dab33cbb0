"""The tables that are written to, and what is configured of them."""

from __future__ import annotations

from typing import Any

from tests.support.postgres import Database

__all__ = ["ANCHORS", "COLLECTIONS", "MARK", "OWN", "create"]

_CHUNKING = {"max_tokens": 64}
#: What is indexed. ``notes`` twice: `chosen` holds the rows that a predicate lets in and out.
COLLECTIONS: tuple[dict[str, Any], ...] = (
    {
        "name": "notes",
        "table": "public.notes",
        "text": "{title}\n\n{body}",
        "metadata": ["uid", "version", "n"],
        "chunking": _CHUNKING,
    },
    {
        "name": "chosen",
        "table": "public.notes",
        "text": "{title}\n\n{body}",
        "metadata": ["uid", "version", "n"],
        "where": "n >= 50",
        "chunking": _CHUNKING,
    },
    {
        "name": "parts",
        "table": "public.parts",
        "text": "{title}\n\n{body}",
        "metadata": ["uid", "version", "n"],
        "chunking": _CHUNKING,
    },
    {"name": "scraps", "table": "public.scraps", "text": "{title}", "metadata": ["uid", "version"]},
)

#: Rows of notes that are changed like any other, but never deleted and never moved: a reader always finds them.
ANCHORS = range(1, 13)
#: Rows of notes that belong to the reader who looks for its own writes.
OWN = range(901, 905)
#: A row that is written to have a commit of this very moment.
MARK = """
insert into notes (id, uid, version, n, title, body)
select 999, 'u999000000', v, 0, format('T u999000000 v%s of 0 sum 0 real', v), '' from nextval('versions') v
on conflict (id) do update set version = excluded.version, title = excluded.title
"""

_SCHEMA = """
create sequence versions;
create sequence uids;
create table notes (id int primary key, uid text not null, version bigint not null, n int not null, title text,
    body text);
create table parts (shop text, number int, uid text not null, version bigint not null, n int not null, title text,
    body text, primary key (shop, number));
create table scraps (id bigint primary key, uid text not null, version bigint not null, title text);
-- Out of line from some dozens of bytes on, so that most updates do not carry it.
alter table notes alter body set storage external;
alter table parts alter body set storage external;
alter table notes set (toast_tuple_target = 128);
alter table parts set (toast_tuple_target = 128);
"""


def create(pg: Database) -> None:
    pg.execute(_SCHEMA)
