"""From what a caller has at hand to a position in the log that its own commits lie before.

A connection is asked where the log is. It must not be in a transaction: what is not committed is in no index. Types
are told by the module that made them, so none of these libraries is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from cdc_agent import queries
from cdc_agent.errors import UsageError
from cdc_agent.lsn import Lsn

__all__ = ["NOW", "FreshAsOf", "position_of", "position_of_async"]

#: Everything that is committed when the daemon gets the request.
NOW: Final = "now"

#: An LSN (text or ``Lsn``), ``"now"``, or an idle connection: psycopg, SQLAlchemy (also a session or an engine), and
#: for the asynchronous client also their asynchronous kinds and asyncpg. No type can say so without importing them.
FreshAsOf: TypeAlias = Any

_SQL = queries.load("cdc_agent.client", "position.sql")["position"]
_HINT = 'pass an LSN, "now", or a connection of psycopg, SQLAlchemy or asyncpg to the database that is followed'
#: Bytes of the header of a WAL page, and of the first page of a segment.
_PAGE_HEADER, _SEGMENT_HEADER = 24, 40


def position_of(fresh_as_of: FreshAsOf) -> str:
    """The position to wait for, as text. Raises ``UsageError`` for what cannot be asked."""
    if isinstance(fresh_as_of, (str, Lsn)):
        return _said(fresh_as_of)
    library = _library(fresh_as_of)
    if library == "psycopg" and hasattr(fresh_as_of, "__enter__"):
        _refuse_open(fresh_as_of.info.transaction_status != 0)
        with fresh_as_of.transaction():
            return _position(fresh_as_of.execute(_SQL).fetchone())
    if library == "sqlalchemy" and not _is_async(fresh_as_of):
        return _of_sqlalchemy(fresh_as_of)
    raise _unknown(fresh_as_of)


async def position_of_async(fresh_as_of: FreshAsOf) -> str:
    """As ``position_of``, for connections that are awaited."""
    library = _library(fresh_as_of)
    if library == "asyncpg":
        _refuse_open(fresh_as_of.is_in_transaction())
        return _position(await fresh_as_of.fetchrow(_SQL))
    if library == "psycopg" and hasattr(fresh_as_of, "__aenter__"):
        _refuse_open(fresh_as_of.info.transaction_status != 0)
        async with fresh_as_of.transaction():
            return _position(await (await fresh_as_of.execute(_SQL)).fetchone())
    if library == "sqlalchemy" and _is_async(fresh_as_of):
        return await _of_async_sqlalchemy(fresh_as_of)
    return position_of(fresh_as_of)


def _said(position: str | Lsn) -> str:
    if position == NOW:
        return NOW
    try:
        return str(position if isinstance(position, Lsn) else Lsn.parse(position))
    except ValueError as exc:
        raise UsageError(f"fresh_as_of: {exc}", hint=_HINT) from None


def _library(thing: object) -> str:
    """The package that made it, also of a class derived from one of its classes."""
    modules = (kind.__module__.partition(".")[0] for kind in type(thing).__mro__)
    return next((name for name in modules if name in ("psycopg", "sqlalchemy", "asyncpg")), "")


def _is_async(thing: object) -> bool:
    return any(kind.__module__.startswith("sqlalchemy.ext.asyncio") for kind in type(thing).__mro__)


def _of_sqlalchemy(thing: Any) -> str:
    from sqlalchemy import text

    _refuse_open(hasattr(thing, "in_transaction") and thing.in_transaction())
    if hasattr(thing, "get_bind"):
        # A session forgets its objects whenever a transaction of its ends; its engine is asked instead.
        thing = thing.get_bind()
    if hasattr(thing, "begin_nested"):
        with thing.begin():
            return _position(thing.execute(text(_SQL)).fetchone())
    with thing.connect() as connection:
        return _position(connection.execute(text(_SQL)).fetchone())


async def _of_async_sqlalchemy(thing: Any) -> str:
    from sqlalchemy import text

    _refuse_open(hasattr(thing, "in_transaction") and thing.in_transaction())
    if hasattr(thing, "bind") and hasattr(thing, "sync_session"):
        thing = thing.bind
    if hasattr(thing, "begin_nested"):
        async with thing.begin():
            return _position((await thing.execute(text(_SQL))).fetchone())
    async with thing.connect() as connection:
        return _position((await connection.execute(text(_SQL))).fetchone())


def _refuse_open(is_open: object) -> None:
    if is_open:
        raise UsageError(
            "fresh_as_of: the connection is in a transaction, and what is not committed is in no index",
            hint="commit or roll back first",
        )


def _position(row: Sequence[Any] | None) -> str:
    assert row is not None
    position, page_bytes, segment_bytes = row
    return str(end_of_records(Lsn.parse(position), page_bytes=page_bytes, segment_bytes=segment_bytes))


def end_of_records(position: Lsn, *, page_bytes: int, segment_bytes: int) -> Lsn:
    """Where the last record ends: a place for the next one may lie behind the header of a page that is still empty."""
    header = _SEGMENT_HEADER if position % segment_bytes == _SEGMENT_HEADER else _PAGE_HEADER
    return Lsn(position - header) if position % page_bytes == header else position


def _unknown(thing: object) -> UsageError:
    kind = type(thing)
    return UsageError(f"fresh_as_of: cannot be a {kind.__module__}.{kind.__qualname__}", hint=_HINT)
