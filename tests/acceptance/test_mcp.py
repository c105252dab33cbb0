"""A language model's program lists the tools and calls them: over stdio, and at ``/mcp`` of the daemon."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

ARTICLES = {
    "name": "articles",
    "table": "public.articles",
    "text": "{title}",
    "metadata": ["lang"],
    "where": "published",
}
TOOLS = {"search", "get_document", "explain", "freshness", "collections"}
NewDaemon = Callable[..., DaemonProcess]
Connect = Callable[..., AbstractAsyncContextManager[Client]]
OURS, THEIRS = "the-token-of-our-tenant", "a-token-for-everything"


@asynccontextmanager
async def over_stdio(daemon: DaemonProcess, token: str = "") -> AsyncIterator[Client]:
    command = ["-m", "cdc_agent.cli", "mcp", "-c", str(daemon.path)]
    environment = {**os.environ, "CDC_AGENT_TOKEN": token}
    async with Client(StdioServerParameters(command=sys.executable, args=command, env=environment)) as client:
        yield client


@asynccontextmanager
async def over_http(daemon: DaemonProcess, token: str = "") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http,
        Client(streamable_http_client(f"{daemon.url}/mcp", http_client=http)) as client,
    ):
        yield client


WAYS = pytest.mark.parametrize("connect", [over_stdio, over_http], ids=["stdio", "http"])


def create_articles(pg: Database) -> None:
    pg.execute("create table articles (id int primary key, title text, lang text, published bool)")
    pg.execute("insert into articles select i, 'title ' || i, 'en', i <> 4 from generate_series(1, 5) i")
    pg.execute("insert into articles values (6, 'ein Titel', 'de', true)")


async def answer(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """What a tool that succeeds answers, as a program reads it; a model reads the same as text."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert json.loads(result.content[0].text) == result.structured_content
    return dict(result.structured_content or {})


async def refusal(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return str(result.content[0].text)


@WAYS
def test_every_tool_is_listed_and_answers(pg: Database, new_daemon: NewDaemon, connect: Connect) -> None:
    create_articles(pg)
    daemon = new_daemon(pg, collections=[ARTICLES])
    daemon.start()
    assert_index_equals_table(daemon, pg)

    async def journey() -> None:
        async with connect(daemon) as client:
            # Then the tools are there, say what they take and give, and that they change nothing
            listed = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(listed) == TOOLS
            assert "query" in listed["search"].input_schema["properties"]
            assert all(tool.annotations and tool.annotations.read_only_hint for tool in listed.values())
            assert all(tool.output_schema and tool.description for tool in listed.values())

            # and what was just committed is found by whoever asks for it, with its source and its age
            pg.execute("update articles set title = 'a walrus in the fog' where id = 3")
            found = await answer(client, "search", query="a walrus in the fog", k=1, fresh_as_of="now", timeout_s=30)
            [hit] = found["hits"]
            assert (hit["text"], hit["table"], hit["key"], hit["stale"]) == (
                "a walrus in the fog",
                "public.articles",
                "3",
                False,
            )
            assert 0 <= hit["age_s"] < 300
            assert found["freshness"]["applied_lsn"]
            filtered = await answer(client, "search", query="title", k=9, where={"lang": {"$eq": "de"}})
            assert [hit["metadata"] for hit in filtered["hits"]] == [{"lang": "de"}]

            # and so do the others
            document = await answer(client, "get_document", document_id=hit["document_id"])
            assert (document["text"], document["metadata"], document["key"]) == (hit["text"], {"lang": "en"}, ["3"])
            explained = await answer(client, "explain", document_id="4", collection="articles")
            assert (explained["state"], explained["in_index"]) == ("filtered", False)
            assert (await answer(client, "freshness"))["lag_s"] is not None
            known = (await answer(client, "collections"))["collections"]
            assert known == [{"name": "articles", "table": "public.articles", "metadata": ["lang"]}]

            # What cannot be done says what can
            assert "collections here: articles" in await refusal(client, "search", query="x", collection="articels")
            assert "stored columns: lang" in await refusal(client, "search", query="x", where={"language": "en"})
            assert "The tool explain says why" in await refusal(client, "get_document", document_id="4")
            assert "did not reach FFFF/0" in await refusal(
                client, "search", query="x", fresh_as_of="FFFF/0", timeout_s=0.1
            )

    asyncio.run(journey())
    # When it is told to stop, then it does, whoever has called its tools
    assert daemon.terminate() == 0, daemon.log[-4000:]
    if connect is over_stdio:
        # and a tool says that the daemon is gone

        async def alone() -> None:
            async with connect(daemon) as client:
                assert "is `cdc-agent run` running" in await refusal(client, "freshness")

        asyncio.run(alone())


@WAYS
def test_a_token_sees_its_own_tenant_alone(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, connect: Connect
) -> None:
    # Given a daemon that asks for tokens, one of which sees German alone
    create_articles(pg)
    tokens = tmp_path / "tokens"
    tokens.write_text(
        f"- {{name: ours, token: {OURS}, scopes: [search], where: {{lang: de}}}}\n"
        f"- {{name: theirs, token: {THEIRS}, scopes: [search, admin]}}\n"
    )
    daemon = new_daemon(pg, collections=[ARTICLES], http={"tokens_file": str(tokens)})
    daemon.start(ready=False)

    def copied() -> bool:
        headers = {"Authorization": f"Bearer {THEIRS}"}
        try:
            return (
                "not ready" not in httpx2.get(f"{daemon.url}/readyz", headers=headers).text
                and len(httpx2.get(f"{daemon.url}/status", headers=headers).json()["resyncs"]) == 0
            )
        except httpx2.TransportError:
            return False

    until(copied, 60.0, "the first copy")

    async def texts(client: Client) -> list[str]:
        found = await answer(client, "search", query="title", k=20)
        return sorted(hit["text"] for hit in found["hits"])

    # When both ask, in turns, then each sees what is its own
    async def journey() -> None:
        async with connect(daemon, OURS) as ours, connect(daemon, THEIRS) as theirs:
            for _ in range(2):
                assert await texts(ours) == ["ein Titel"]
                assert len(await texts(theirs)) == 5
            assert "there is no document" in await refusal(ours, "get_document", document_id="1")
            assert "there is no document" in await refusal(ours, "explain", document_id="public.articles:4")

    asyncio.run(journey())


def test_a_web_page_may_not_call_the_tools(pg: Database, new_daemon: NewDaemon) -> None:
    create_articles(pg)
    daemon = new_daemon(pg, collections=[ARTICLES])
    daemon.start()

    answered = httpx2.post(f"{daemon.url}/mcp", json={}, headers={"Origin": "https://elsewhere.example"}, timeout=30)

    assert answered.status_code == 403

    # nor does anybody hold a connection open for news that never come
    assert httpx2.get(f"{daemon.url}/mcp", headers={"Accept": "text/event-stream"}, timeout=30).status_code == 405
