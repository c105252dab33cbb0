"""``explain``: why is this row, or is it not, in the index? Every answer, and what it says to do is right."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import chromadb
import httpx
import pytest

from cdc_agent.cli import main
from tests.support.daemon import DaemonProcess
from tests.support.fake_openai import FakeOpenAI, hang, server_error
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

ARTICLES = {
    "name": "articles",
    "table": "public.articles",
    "text": "{body}",
    "metadata": ["lang"],
    "where": "published",
    "chunking": {"max_tokens": 40},
}
PARTS = {"name": "parts", "table": "public.parts", "text": "{body}"}
NewDaemon = Callable[..., DaemonProcess]


@pytest.fixture
def daemon(pg: Database, new_daemon: NewDaemon) -> DaemonProcess:
    pg.execute("create table articles (id int primary key, body text, lang text, published bool)")
    pg.execute("insert into articles select i, 'body number ' || i, 'en', i <> 2 from generate_series(1, 5) i")
    pg.execute("insert into articles values (6, '  ', 'en', true)")
    pg.execute("create table parts (maker text, number int, body text, primary key (maker, number))")
    pg.execute("insert into parts values ('a,b', 7, 'a bolt')")
    daemon = new_daemon(pg, collections=[ARTICLES, PARTS])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    return daemon


def asked(daemon: DaemonProcess, document: str, collection: str = "articles") -> dict[str, Any]:
    answer = daemon.get(f"/documents/{collection}/{quote(document, safe='')}")
    assert answer.status_code == 200, answer.text
    facts: dict[str, Any] = answer.json()
    return facts


def state(daemon: DaemonProcess, document: str, collection: str = "articles") -> str:
    return str(asked(daemon, document, collection)["verdict"]["state"])


def test_every_reason_has_its_verdict(pg: Database, daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]) -> None:
    # Then a row that is found is explained with its chunks, when each was written, and by which commit
    facts = asked(daemon, "1")
    assert facts["verdict"] == {
        "state": "indexed",
        "in_index": True,
        "sentence": "It is in the index, as the row is now: 1 chunk.",
        "remedy": "",
    }
    [chunk] = facts["index"]["chunks"]
    assert (chunk["text"], chunk["position"], chunk["present"]) == ("body number 1", 0, True)
    assert chunk["commit_lsn"]
    assert chunk["commit_ts"]
    assert chunk["written_at"]
    assert facts["index"]["read_from_table"] is True
    assert facts["index"]["metadata"] == facts["row"]["metadata"] == {"lang": "en"}
    assert facts["generation"]["number"] == 1
    assert (facts["key"], facts["document_id"]) == (["1"], "public.articles:1")
    # by its document's id, and in another spelling, too
    assert (
        asked(daemon, "public.articles:1")["document_id"] == asked(daemon, "001")["document_id"] == "public.articles:1"
    )
    # and so are those that are not found
    filtered = asked(daemon, "2")["verdict"]
    assert (filtered["state"], filtered["in_index"]) == ("filtered", False)
    assert "(published)" in filtered["sentence"]
    assert state(daemon, "6") == "empty"
    assert state(daemon, "77") == "no_row"
    assert state(daemon, "a%2Cb,7", "parts") == "indexed"
    # What cannot be a key, and what is no collection, says what can be
    nonsense = daemon.get("/documents/articles/abc")
    assert (nonsense.status_code, nonsense.json()["hint"]) == (400, "its key is id")
    assert daemon.get("/documents/parts/7").json()["hint"].startswith("several columns as a JSON list")
    assert "articles, parts" in daemon.get("/documents/artciles/7").json()["hint"]
    # The command line says the same, and its exit code tells one from the other
    command = ["explain", "-c", str(daemon.path)]
    assert main([*command, "articles", "1"]) == 0
    assert "body number 1" in capsys.readouterr().out
    assert main([*command, "articles", "2"]) == 1
    assert "does not satisfy the collection's where (published)" in capsys.readouterr().out
    assert main([*command, "--json", "parts", '["a,b", "7"]']) == 0
    assert json.loads(capsys.readouterr().out)["key"] == ["a,b", "7"]


def test_what_is_wrong_with_nothing_on_its_way_is_mended_as_it_says(pg: Database, daemon: DaemonProcess) -> None:
    # Given an index that lost a chunk behind our back
    [chunk] = asked(daemon, "3")["index"]["chunks"]
    chroma = chromadb.HttpClient(host="127.0.0.1", port=daemon.config.vectorstore.port)
    chroma.get_collection("articles", embedding_function=None).delete(ids=[chunk["id"]])

    # Then nothing is on its way to mend it, and it says how to
    verdict = asked(daemon, "3")["verdict"]
    assert verdict["state"] == "wrong"
    assert "the store lacks this chunk" in verdict["sentence"]
    assert "--table public.articles --key '3' --rewrite" in verdict["remedy"]

    # When that is done
    answer = daemon.post("/resyncs", {"table": "public.articles", "keys": [["3"]], "rewrite": True})
    assert answer.status_code == 202, answer.text

    # Then it is as it should be
    until(lambda: state(daemon, "3") == "indexed", 30.0, "the row to be indexed again")


def test_what_waits_for_the_model_is_named_and_a_dead_letter_too(
    pg: Database, fake_openai: FakeOpenAI, new_daemon: NewDaemon
) -> None:
    # Given an index whose model takes no text with a certain word, and for now none at all
    pg.execute("create table articles (id int primary key, body text, lang text, published bool)")
    pg.execute("insert into articles select i, 'body number ' || i, 'en', true from generate_series(1, 3) i")
    embedding = {"backend": "openai", "url": fake_openai.base_url, "model": "fake", "dimensions": 8}
    daemon = new_daemon(pg, collections=[ARTICLES], embedding=embedding)
    daemon.start()
    until(lambda: {state(daemon, key) for key in "123"} == {"indexed"}, what="the first copy")
    fake_openai.poison = "poison"
    fake_openai.script(server_error(503), hang())

    # When a row is changed
    pg.execute("update articles set body = 'another body' where id = 1")
    until(lambda: [p["name"] for p in daemon.problems() or []] == ["embedding"], what="the model to be missed")

    # Then its change is named as what waits, and the old version as what is found
    facts = asked(daemon, "1")
    assert (facts["verdict"]["state"], facts["verdict"]["in_index"]) == ("pending", True)
    assert [change["op"] for change in facts["pending"]] == ["u"]
    assert facts["pending"][0]["commit_lsn"] in facts["verdict"]["remedy"]
    assert "embedding" in facts["verdict"]["remedy"]
    assert facts["index"]["chunks"][0]["text"] == "body number 1"

    # When the model is back, but not for another row
    fake_openai.release()
    pg.execute("update articles set body = 'poison' where id = 2")
    until(lambda: state(daemon, "2") == "parked", 30.0, "the row to be parked")

    # Then that one is explained by its dead letter, and how to have it indexed
    facts = asked(daemon, "2")
    letter = facts["dead_letter"]
    assert facts["verdict"]["remedy"].endswith(f"cdc-agent dead-letters replay {letter['id']}")
    assert letter["reason"] == "embedding"
    assert "poison" not in letter["error"]
    assert state(daemon, "1") == "indexed"


def test_a_store_that_is_away_leaves_what_the_ledger_says(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a store that does not answer
    pg.execute("create table articles (id int primary key, body text, lang text, published bool)")
    pg.execute("insert into articles values (4, 'a body', 'en', true)")
    daemon = new_daemon(pg, collections=[ARTICLES], vectorstore={"timeout_s": 1.0})
    daemon.start()
    assert_index_equals_table(daemon, pg)
    chroma = int((Path(daemon.settings["state_dir"]) / "chroma.pid").read_text())
    os.kill(chroma, signal.SIGSTOP)
    try:
        # Then the verdict does not guess
        facts = asked(daemon, "4")
        assert facts["verdict"]["state"] == "unknown"
        assert "1 chunks of it are in the index" in facts["verdict"]["sentence"]
        assert facts["index"]["chunks"][0]["present"] is None
    finally:
        os.kill(chroma, signal.SIGCONT)


def test_a_tenant_is_told_of_its_own_documents_alone(pg: Database, new_daemon: NewDaemon, tmp_path: Path) -> None:
    # Given documents of two tenants, and a token that sees one of them
    pg.execute("create table articles (id int primary key, body text, lang text, published bool)")
    pg.execute("insert into articles values (1, 'ours', 'en', true), (2, 'theirs', 'de', true), (3, 'x', 'en', false)")
    token = "a-token-that-is-long-enough"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"- {{name: tenant, token: {token}, scopes: [search], where: {{lang: en}}}}\n")
    daemon = new_daemon(pg, collections=[ARTICLES], http={"tokens_file": str(tokens)})
    daemon.start(ready=False)

    def ask(path: str) -> httpx.Response:
        return httpx.get(daemon.url + path, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def found() -> bool:
        try:
            return ask("/documents/articles/1").status_code == 200
        except httpx.TransportError:
            return False

    until(found, 60.0, "the first copy")

    # Then another's, one that is in no index, and one that does not exist are told apart by nothing
    answers = [ask(f"/documents/articles/{key}") for key in (2, 3, 99)]
    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert {re.sub(r"'\d+'", "", answer.text) for answer in answers} == {answers[0].text.replace("'2'", "")}

    # When one of its own becomes another's, then it is not shown any more, be the index behind or not
    pg.execute("update articles set lang = 'de' where id = 1")
    assert ask("/documents/articles/1").status_code == 404
