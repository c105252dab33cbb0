"""Search returns live chunks only, the nearest first, and refuses what can never work with a hint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdc_agent.embedding.hashing import HashingEmbedder
from cdc_agent.errors import PoisonText, UsageError
from cdc_agent.ledger.base import Checkpoint, ChunkRef, DeadLetter, Flip, Manifest, NewChunks
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn, Version
from cdc_agent.search import MAX_QUERY_BYTES, Searcher, condition
from cdc_agent.vectorstore.base import Record
from cdc_agent.vectorstore.memory import MemoryStore

COMMIT = Version(Lsn.parse("16/B374D848"), 1)


class Index:
    """A store and a ledger filled by the index write protocol, one step at a time."""

    def __init__(self, path: Path, store: Any = None) -> None:
        self.store = store if store is not None else CountingStore()
        self.ledger = SqliteLedger(path)
        self.embedder = HashingEmbedder()
        self.store.open_collection("articles", dimensions=self.embedder.dimensions, marker={})
        self.searcher = Searcher(
            self.store, self.ledger, {"articles": self.embedder}, columns={"articles": ["lang", "year"]}
        )

    def begin(self, document_id: str, texts: Sequence[str], **metadata: Any) -> tuple[int, list[str]]:
        """Steps 1 to 3: ids are taken and written to the store, but no manifest names them."""
        new = NewChunks(collection="articles", document_id=document_id, count=len(texts))
        generation, ids_by_document = self.ledger.begin_write([new], agent="indexer")
        ids = ids_by_document["articles", document_id]
        vectors = self.embedder.embed(texts)
        reserved = {
            "cdc_doc": document_id,
            "cdc_table": "public.articles",
            "cdc_chunk": 0,
            "cdc_lsn": int(COMMIT.commit_lsn),
            "cdc_commit_ts": "2026-01-02T03:04:05+00:00",
        }
        self.store.upsert(
            "articles",
            [
                Record(id=id, text=text, metadata=reserved | metadata, embedding=vector)
                for id, text, vector in zip(ids, texts, vectors, strict=True)
            ],
        )
        return generation, ids

    def flip(self, document_id: str, generation: int, ids: Sequence[str]) -> None:
        """Step 4: the manifest names these ids and no other."""
        manifest = Manifest(
            collection="articles",
            document_id=document_id,
            version=Version(COMMIT.commit_lsn, generation),
            xid=1,
            relation_oid=1,
            chunks=tuple(ChunkRef(id, b"0" * 16) for id in ids),
        )
        self.ledger.flip(Flip(agent="indexer", checkpoint=Checkpoint(), generation=generation, manifests=[manifest]))

    def add(self, document_id: str, *texts: str, **metadata: Any) -> list[str]:
        generation, ids = self.begin(document_id, texts, **metadata)
        self.flip(document_id, generation, ids)
        return ids


class CountingStore(MemoryStore):
    """Counts queries, and can let something happen right after one."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[int] = []
        self.after_query: list[Any] = []

    def query(self, collection: str, vector: Any, *, k: int, where: Any = None) -> Any:
        hits = super().query(collection, vector, k=k, where=where)
        self.fetched.append(k)
        if self.after_query:
            self.after_query.pop(0)()
        return hits


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path / "ledger.sqlite")
    yield index
    index.ledger.close()


# What is found.


def test_a_document_whose_newer_version_is_parked_says_so(index: Index) -> None:
    # Given two documents, and a newer version of one that could not be indexed
    index.add("public.articles:1", "the cat sleeps on the warm sofa")
    index.add("public.articles:2", "the cat sleeps in the garden")
    letter = DeadLetter(
        agent="indexer",
        collection="articles",
        document_id="public.articles:1",
        table="public.articles",
        key=("1",),
        version=Version(COMMIT.commit_lsn, 1_000),
        reason="embedding",
        error="refused",
        attempts=3,
        parked_at=0.0,
    )
    index.ledger.flip(Flip(agent="indexer", checkpoint=Checkpoint(), generation=0, dead_letters=[letter]))

    # When both are found, then the one that is behind its row says so
    found = {hit.document_id: hit.stale for hit in index.searcher.search("articles", "cat sleeps")}
    assert found == {"public.articles:1": True, "public.articles:2": False}


def test_the_nearest_chunk_comes_first_and_says_where_it_is_from(index: Index) -> None:
    # Given two documents
    index.add("public.articles:1", "the cat sleeps on the warm sofa", lang="en", year=2024)
    index.add("public.articles:2", "quarterly revenue grew again", lang="en", year=2025)

    # When one of them is searched for
    first, _ = index.searcher.search("articles", "cat sleeps sofa")

    # Then it comes first, with its source, and without our own keys among its metadata
    assert first.document_id == "public.articles:1"
    assert first.text == "the cat sleeps on the warm sofa"
    assert first.metadata == {"lang": "en", "year": 2024}
    assert first.source.table == "public.articles"
    assert first.source.pk == "1"
    assert first.source.commit_lsn == "16/B374D848"
    assert first.source.commit_ts == "2026-01-02T03:04:05+00:00"


def test_no_more_than_k_hits_are_returned(index: Index) -> None:
    for number in range(9):
        index.add(f"public.articles:{number}", f"cat {number}")

    assert len(index.searcher.search("articles", "cat", k=4)) == 4


def test_an_empty_collection_has_no_hits(index: Index) -> None:
    assert index.searcher.search("articles", "cat") == []


def test_a_condition_narrows_the_hits(index: Index) -> None:
    index.add("public.articles:1", "cat", lang="en", year=2020)
    index.add("public.articles:2", "cat", lang="de", year=2024)

    hits = index.searcher.search("articles", "cat", where={"lang": "de", "year": {"$gte": 2024}})

    assert [hit.document_id for hit in hits] == ["public.articles:2"]


# What is live.


def test_chunks_that_no_manifest_names_are_not_returned(index: Index) -> None:
    # Given a write that stopped before its commit point
    index.begin("public.articles:1", ["cat"])

    # Then its chunks are not found
    assert index.searcher.search("articles", "cat") == []


def test_old_chunks_are_gone_as_soon_as_the_manifest_flips(index: Index) -> None:
    # Given a document whose old chunks are still in the store
    index.add("public.articles:1", "cat old")
    index.add("public.articles:1", "cat new")

    # Then only the new ones are found
    assert [hit.text for hit in index.searcher.search("articles", "cat")] == ["cat new"]


def test_more_is_fetched_when_dead_chunks_crowd_out_live_ones(index: Index) -> None:
    # Given many dead chunks that are nearer than the live ones
    for number in range(60):
        index.begin(f"public.articles:dead{number}", ["cat"])
    index.add("public.articles:1", "cat and many other words that push it far away from the query")

    # When the live one is searched for
    hits = index.searcher.search("articles", "cat", k=1)

    # Then the search asks for more until it meets it
    assert [hit.document_id for hit in hits] == ["public.articles:1"]
    assert index.store.fetched == [12, 24, 48, 96, 96][: len(index.store.fetched)]
    assert len(index.store.fetched) >= 4


def test_a_search_that_starves_ends(index: Index) -> None:
    # Given nothing but dead chunks, more than any search fetches
    texts = ["cat"] * 2500
    index.begin("public.articles:1", texts)

    # Then the search gives up after a bounded number of calls
    assert index.searcher.search("articles", "cat", k=1) == []
    assert len(index.store.fetched) <= 10
    assert max(index.store.fetched) <= 2000


def test_a_document_that_switches_during_the_search_is_found_in_its_new_form(index: Index) -> None:
    # Given a document that is rewritten between the store's answer and the ledger's
    index.add("public.articles:1", "cat old")
    index.store.after_query.append(lambda: index.add("public.articles:1", "cat new"))

    # When it is searched for
    hits = index.searcher.search("articles", "cat")

    # Then it is there, new, although the store's first answer held the old form only
    assert [hit.text for hit in hits] == ["cat new"]


def test_a_document_that_grows_during_the_search_is_found_whole(index: Index) -> None:
    # Given a document that keeps its chunk and gets two more, of which the store has one when it is asked
    [first] = index.add("a", "the cat sleeps")
    _, [second] = index.begin("a", ["the cat wakes"])
    later: list[str] = []

    def grow() -> None:
        generation, ids = index.begin("a", ["the cat sleeps again"])
        later.extend(ids)
        index.flip("a", generation, [first, second, *ids])

    index.store.after_query = [grow]

    # Then the answer holds all of it, and not the part that was there first
    assert {hit.id for hit in index.searcher.search("articles", "the cat")} == {first, second, *later}


def test_a_document_that_switches_again_and_again_is_found_whole(index: Index) -> None:
    # Given a version that is being written when the store is asked, becomes live, and is replaced within the next look
    [old] = index.add("a", "the cat sleeps")
    generation, [between] = index.begin("a", ["the cat wakes"])
    newest: list[str] = []

    def become_live() -> None:
        index.flip("a", generation, [between])
        index.store.delete("articles", [old])
        newest.extend(index.begin("a", ["the cat eats"])[1])

    def replace_it() -> None:
        number, ids = index.begin("a", ["the cat sleeps again"])
        newest.extend(ids)
        index.flip("a", number, newest)

    # While something else switches at the first look, so that there is a second one
    index.store.after_query = [lambda: index.add("b", "the dog barks"), become_live, replace_it]

    # Then the answer is whole
    found = {hit.id for hit in index.searcher.search("articles", "the cat")}
    assert {chunk_id for chunk_id in found if chunk_id.startswith("a#")} == set(newest)


def test_a_document_that_never_rests_is_left_out(index: Index) -> None:
    # Given one that switches after every look, beside one that stays
    [kept] = index.add("b", "the cat sleeps in the garden")
    ids = index.add("a", "the cat sleeps")

    def switch() -> None:
        index.store.delete("articles", ids)
        ids[:] = index.add("a", "the cat sleeps", "the cat wakes")

    index.store.after_query = [switch] * 20

    assert [hit.id for hit in index.searcher.search("articles", "the cat")] == [kept]


def test_a_quiet_store_is_asked_once(index: Index) -> None:
    index.add("public.articles:1", "cat")

    index.searcher.search("articles", "cat")

    assert index.store.fetched == [20]


# What can never work.


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"collection": "article"}, "there is no collection 'article'", "collections here: articles"),
        ({"query": " \n"}, "query is empty", "in words"),
        ({"query": "ä" * MAX_QUERY_BYTES}, f"the most is {MAX_QUERY_BYTES}", "one passage"),
        ({"query": "\ud800"}, "not Unicode", "UTF-8"),
        ({"k": 0}, "k is 0", "from 1 to 100"),
        ({"k": 101}, "k is 101", "from 1 to 100"),
        ({"k": True}, "k is True", "whole number"),
        ({"where": {"language": "en"}}, "'language' is not stored", "stored columns: lang, year"),
    ],
)
def test_what_can_never_work_is_refused(index: Index, changes: dict[str, Any], message: str, hint: str) -> None:
    arguments = {"collection": "articles", "query": "cat", "k": 5} | changes

    with pytest.raises(UsageError) as caught:
        index.searcher.search(**arguments)

    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_query_that_the_model_refuses_is_the_callers_to_mend(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a model that reads less than the query
    def refuse(text: str) -> Any:
        raise PoisonText("text 0 has 900 tokens", index=0)

    monkeypatch.setattr(index.embedder, "embed_query", refuse)

    with pytest.raises(UsageError, match="900 tokens"):
        index.searcher.search("articles", "cat")


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ({"lang": "en"}, {"lang": "en"}),
        ({"lang": "en", "year": 2020}, {"$and": [{"lang": "en"}, {"year": 2020}]}),
        ({"$or": [{"lang": "en", "year": 1}, {"year": {"$lt": 3}}]}, None),
        ({"$and": [{"lang": "en"}]}, {"lang": "en"}),
        ({"year": {"$in": [1, 2]}}, {"year": {"$in": [1, 2]}}),
        ({"year": {"$gt": 1, "$lt": 3}}, {"$and": [{"year": {"$gt": 1}}, {"year": {"$lt": 3}}]}),
        ({"cdc_doc": "public.articles:1"}, {"cdc_doc": "public.articles:1"}),
    ],
)
def test_conditions_are_taken_in_the_form_that_stores_know(where: dict[str, Any], taken: dict[str, Any] | None) -> None:
    assert condition(where, ["lang", "year"]) == (
        taken or {"$or": [{"$and": [{"lang": "en"}, {"year": 1}]}, {"year": {"$lt": 3}}]}
    )


def nested(depth: int) -> dict[str, Any]:
    where: dict[str, Any] = {"year": 1}
    for _ in range(depth):
        where = {"$or": [where, {"year": 2}]}
    return where


@pytest.mark.parametrize(
    "where",
    [
        {},
        [],
        "year",
        {"year": None},
        {"year": {}},
        {"year": {"$gt": 1, "$lt": "x"}},
        {"year": {"$regex": "x"}},
        {"year": {"$gt": "x"}},
        {"year": {"$in": []}},
        {"year": {"$in": [1, "a"]}},
        {"year": {"$in": 1}},
        {"year": [1]},
        {"year": math.nan},
        {"year": 2**63},
        {"year": {"$in": [math.inf]}},
        {"$and": []},
        {"$and": {"year": 1}},
        {"$or": [1, 2]},
        {"$not": {"year": 1}},
        nested(50),
        nested(900),
    ],
)
def test_conditions_that_no_store_takes_are_refused(where: Any) -> None:
    with pytest.raises(UsageError) as caught:
        condition(where, ["year"])

    assert caught.value.message.startswith("where: ")
    assert "operators:" in caught.value.hint


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"year": {"$regex": "x"}}, "where: year: there is no operator $regex"),
        ({"$and": [{"lang": "en"}, {"year": {"$gt": "x"}}]}, "where: $and[1].year: $gt takes a number"),
        (
            {"$or": [{"lang": "en"}, {"$and": [{"year": [1, 2]}]}]},
            "where: $or[1].$and[0].year: $eq takes one value; a list",
        ),
        ({"$or": [{"lang": "en"}, {"yaer": 1}]}, "where: $or[1].'yaer' is not stored"),
        ({"$or": [{}]}, "where: $or[0]: expected a condition, got {}"),
        ({"$and": {"year": 1}}, "where: $and: takes a list of conditions"),
        ({"$not": {"year": 1}}, "where: there is no operator '$not' around conditions"),
    ],
)
def test_a_refusal_says_where_in_the_condition(where: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        condition(where, ["lang", "year"])

    assert caught.value.message.startswith(said)


def test_a_question_asked_again_is_not_embedded_again(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a model that notes what it is asked
    asked: list[str] = []
    embed = index.embedder.embed_query
    monkeypatch.setattr(index.embedder, "embed_query", lambda text: asked.append(text) or embed(text))

    # When the same words are searched with another condition, and then other words
    index.searcher.search("articles", "cat")
    index.searcher.search("articles", "cat", k=1, where={"lang": "en"})
    index.searcher.search("articles", "dog")

    assert asked == ["cat", "dog"]


def test_a_vector_is_asked_for_once_a_search(index: Index) -> None:
    for number in range(30):
        index.begin(f"public.articles:dead{number}", ["cat"])

    index.searcher.search("articles", "cat", k=1)

    assert index.embedder.queries_embedded == 1
    assert np.isfinite(index.embedder.embed_query("cat")).all()
