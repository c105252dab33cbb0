"""A program reads its own writes: it hands over the connection that committed, and the answer holds the commit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator

import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from cdc_agent.client import NOW, AsyncIndex, Index, IndexUnavailable, NotFreshYet, RequestRefused
from cdc_agent.errors import UsageError
from cdc_agent.lsn import Lsn
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.ports import free_port
from tests.support.postgres import Database

ARTICLES = {"name": "articles", "table": "public.articles", "text": "{title}", "metadata": ["lang"]}
NewDaemon = Callable[..., DaemonProcess]
UPDATE = "update articles set title = 'a walrus in the fog' where id = 3"


@pytest.fixture
def daemon(pg: Database, new_daemon: NewDaemon) -> DaemonProcess:
    pg.execute("create table articles (id int primary key, title text, lang text)")
    pg.execute("insert into articles select i, 'title ' || i, 'en' from generate_series(1, 20) i")
    daemon = new_daemon(pg, collections=[ARTICLES])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    return daemon


@pytest.fixture
def index(daemon: DaemonProcess) -> Iterator[Index]:
    with Index(daemon.url, "articles", timeout_s=60) as index:
        yield index


def by_psycopg(dsn: str, index: Index) -> str:
    with psycopg.connect(dsn) as connection:
        connection.execute(UPDATE)
        connection.commit()
        found = index.search("a walrus in the fog", k=1, fresh_as_of=connection)[0].text
        # The connection is left as it was.
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        return found


def by_psycopg_without_waiting_for_the_disk(dsn: str, index: Index) -> str:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        connection.execute(UPDATE)
        return index.search("a walrus in the fog", k=1, fresh_as_of=connection)[0].text


def by_sqlalchemy_connection(dsn: str, index: Index) -> str:
    engine = sqlalchemy.create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(UPDATE))
        connection.commit()
        found = index.search("a walrus in the fog", k=1, fresh_as_of=connection)[0].text
        assert not connection.in_transaction()
    engine.dispose()
    return found


def by_sqlalchemy_session(dsn: str, index: Index) -> str:
    engine = sqlalchemy.create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as session:
        session.execute(sqlalchemy.text(UPDATE))
        session.commit()
        found = index.search("a walrus in the fog", k=1, fresh_as_of=session)[0].text
    engine.dispose()
    return found


def by_lsn(dsn: str, index: Index) -> str:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(UPDATE)
        [lsn] = connection.execute("select pg_current_wal_lsn()::text").fetchone() or [""]
    assert index.wait(lsn).applied_lsn >= Lsn.parse(lsn)
    return index.search("a walrus in the fog", k=1, fresh_as_of=Lsn.parse(lsn))[0].text


def by_now(dsn: str, index: Index) -> str:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(UPDATE)
    return index.search("a walrus in the fog", k=1, fresh_as_of=NOW)[0].text


@pytest.mark.parametrize(
    "write_and_search",
    [
        by_psycopg,
        by_psycopg_without_waiting_for_the_disk,
        by_sqlalchemy_connection,
        by_sqlalchemy_session,
        by_lsn,
        by_now,
    ],
    ids=lambda way: way.__name__,
)
def test_a_reader_finds_its_own_write(
    pg: Database, index: Index, write_and_search: Callable[[str, Index], str]
) -> None:
    assert write_and_search(pg.dsn, index) == "a walrus in the fog"


async def by_async_psycopg(dsn: str, index: AsyncIndex) -> str:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(UPDATE)
        await connection.commit()
        return (await index.search("a walrus in the fog", k=1, fresh_as_of=connection))[0].text


async def by_asyncpg(dsn: str, index: AsyncIndex) -> str:
    connection = await asyncpg.connect(dsn)
    await connection.execute(UPDATE)
    found = (await index.search("a walrus in the fog", k=1, fresh_as_of=connection))[0].text
    await connection.close()
    return found


async def by_async_sqlalchemy_session(dsn: str, index: AsyncIndex) -> str:
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
    async with AsyncSession(engine) as session:
        await session.execute(sqlalchemy.text(UPDATE))
        await session.commit()
        found = (await index.search("a walrus in the fog", k=1, fresh_as_of=session))[0].text
    await engine.dispose()
    return found


async def by_async_sqlalchemy_connection(dsn: str, index: AsyncIndex) -> str:
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
    async with engine.connect() as connection:
        await connection.execute(sqlalchemy.text(UPDATE))
        await connection.commit()
        found = (await index.search("a walrus in the fog", k=1, fresh_as_of=connection))[0].text
    await engine.dispose()
    return found


async def by_sync_connection(dsn: str, index: AsyncIndex) -> str:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(UPDATE)
        await index.wait(connection)
        return (await index.search("a walrus in the fog", k=1))[0].text


@pytest.mark.parametrize(
    "write_and_search",
    [by_async_psycopg, by_asyncpg, by_async_sqlalchemy_session, by_async_sqlalchemy_connection, by_sync_connection],
    ids=lambda way: way.__name__,
)
def test_an_asynchronous_reader_finds_its_own_write(
    pg: Database, daemon: DaemonProcess, write_and_search: Callable[[str, AsyncIndex], Awaitable[str]]
) -> None:
    async def journey() -> str:
        async with AsyncIndex(daemon.url, "articles", timeout_s=60) as index:
            return await write_and_search(pg.dsn, index)

    assert asyncio.run(journey()) == "a walrus in the fog"


def test_a_hit_says_where_it_comes_from_and_how_old_it_is(pg: Database, index: Index) -> None:
    # Given a row that was just written.
    pg.execute("update articles set title = 'quartz', lang = 'de' where id = 7")

    # When it is found
    answer = index.search("quartz", k=1, where={"lang": {"$eq": "de"}}, fresh_as_of=NOW)

    # Then everything about it has its type.
    [hit] = answer
    assert (hit.text, hit.metadata, hit.stale) == ("quartz", {"lang": "de"}, False)
    assert (hit.source.table, hit.source.key, hit.document_id) == ("public.articles", "7", "public.articles:7")
    assert 0 < hit.source.commit_lsn <= answer.freshness.applied_lsn
    assert hit.source.committed_at is not None
    assert hit.source.age_s is not None
    assert 0 <= hit.source.age_s < 300
    assert 0.99 < hit.score < 1.01
    assert answer.freshness.lag_s is not None


def test_a_document_is_read_whole_and_explained(pg: Database, index: Index) -> None:
    # Given a row that was just written, and one that was never there
    pg.execute("update articles set title = 'quartz', lang = 'de' where id = 7")
    before = index.wait(NOW)

    # When they are asked for by key, by id, or all at once
    document = index.document(7)
    explained = index.explain("public.articles:7")

    # Then what is there has its text, its source and its time, and what is not says why
    assert document is not None
    assert (document.text, document.metadata, document.key) == ("quartz", {"lang": "de"}, ("7",))
    assert document.freshness.applied_lsn >= before.applied_lsn
    assert 0 < document.commit_lsn <= document.freshness.applied_lsn
    [chunk] = document.chunks
    assert chunk.committed_at is not None
    assert chunk.written_at is not None
    assert chunk.committed_at <= chunk.written_at
    assert (explained.state, explained.in_index, explained.remedy) == ("indexed", True, "")
    assert index.document(["77"]) is None
    assert index.explain(77).state == "no_row"
    assert [one.metadata for one in index.collections()] == [("lang",)]
    assert index.freshness().applied_lsn >= before.applied_lsn


def test_an_asynchronous_reader_reads_documents_too(daemon: DaemonProcess) -> None:
    async def journey() -> tuple[str, str, str]:
        async with AsyncIndex(daemon.url, "articles", timeout_s=60) as index:
            assert (await index.freshness()).lag_s is not None
            document = await index.document(3)
            assert document is not None
            [collection] = await index.collections()
            return document.text, (await index.explain(3)).state, collection.name

    assert asyncio.run(journey()) == ("title 3", "indexed", "articles")


def test_what_is_not_committed_is_refused_and_not_waited_for(pg: Database, index: Index) -> None:
    with psycopg.connect(pg.dsn) as connection:
        connection.execute(UPDATE)

        with pytest.raises(UsageError, match="in a transaction") as refused:
            index.search("a walrus", fresh_as_of=connection)
    assert "commit" in refused.value.hint


def test_every_failure_says_what_to_do(daemon: DaemonProcess, index: Index) -> None:
    with (
        pytest.raises(RequestRefused, match="no collection 'articels'") as misspelt,
        at(daemon.url, "articels") as other,
    ):
        other.search("x")
    assert "articles" in misspelt.value.hint
    with pytest.raises(RequestRefused, match="is not stored") as unstored:
        index.search("x", where={"language": "en"})
    assert "lang" in unstored.value.hint
    with pytest.raises(NotFreshYet, match="did not reach FFFF/0") as late:
        index.search("x", fresh_as_of="FFFF/0", timeout_s=0.2)
    assert late.value.applied_lsn > 0
    assert late.value.retryable
    with pytest.raises(IndexUnavailable, match="nothing answers") as away, at(local(free_port())) as nobody:
        nobody.search("x")
    assert away.value.hint
    with pytest.raises(RequestRefused, match="not cdc-agent"), at(local(daemon.config.vectorstore.port)) as chroma:
        chroma.wait(NOW)
    for wrong in ("yesterday", 7, object(), None):
        with pytest.raises(UsageError, match="fresh_as_of"):
            index.wait(wrong)


def local(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def at(url: str, collection: str = "articles") -> Index:
    return Index(url, collection, timeout_s=10)


def test_the_client_is_light() -> None:
    # When a program imports the client
    heavy = (
        "torch",
        "numpy",
        "chromadb",
        "psycopg",
        "sentence_transformers",
        "starlette",
        "pydantic",
        "prometheus_client",
    )
    script = f"import sys, cdc_agent.client; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    # Then nothing of the daemon comes with it.
    assert result.stdout.strip() == "[]"
