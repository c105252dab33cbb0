"""Every vector store keeps the same contract: memory, Chroma embedded, Chroma behind its server."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import numpy as np
import pytest

from cdc_agent.errors import StoreRejected, StoreUnavailable
from cdc_agent.vectorstore import chroma, memory
from cdc_agent.vectorstore.base import Record, VectorStore
from cdc_agent.vectorstore.chroma import ChromaStore
from cdc_agent.vectorstore.chroma_server import ChromaServer
from cdc_agent.vectorstore.records import CollectionMissing

EAST, NORTH, WEST = [1, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 0, 0]
NORTH_EAST = [0.6, 0.8, 0, 0]


@pytest.fixture
def name(store: VectorStore) -> str:
    """A collection of this test's own, in four dimensions."""
    name = f"test-{uuid.uuid4().hex}"
    store.open_collection(name, dimensions=4, marker={"ledger": "a-uuid", "generation": 1})
    return name


def vector(numbers: list[float]) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def record(id: str, numbers: list[float] = EAST, text: str = "text", **metadata: Any) -> Record:
    return Record(id=id, text=text, metadata=metadata, embedding=vector(numbers))


def all_ids(store: VectorStore, name: str) -> set[str]:
    return {record_id for page in store.ids(name) for record_id in page}


def get_one(store: VectorStore, name: str, record_id: str) -> Record:
    [found] = store.get(name, [record_id])
    return found


class TestCollections:
    def test_a_new_collection_carries_its_marker_and_measures_by_cosine(self, store: VectorStore) -> None:
        # When a collection is opened for the first time, with a marker that has an unset key
        name = f"test-{uuid.uuid4().hex}"
        metadata = store.open_collection(name, dimensions=4, marker={"ledger": "a-uuid", "generation": 1, "no": None})

        # Then its metadata is the marker and the distance
        assert metadata == {"ledger": "a-uuid", "generation": 1, "hnsw:space": "cosine"}

    def test_opening_an_existing_collection_changes_nothing(self, store: VectorStore, name: str) -> None:
        # Given a collection with a record
        store.upsert(name, [record("a")])

        # When it is opened with another marker
        metadata = store.open_collection(name, dimensions=4, marker={"ledger": "somebody else"})

        # Then the old marker is returned and the record is still there
        assert metadata == {"ledger": "a-uuid", "generation": 1, "hnsw:space": "cosine"}
        assert store.count(name) == 1

    def test_a_marker_is_read_as_it_is_and_replaced_without_touching_a_record(
        self, store: VectorStore, name: str
    ) -> None:
        # Given a collection with a record
        store.upsert(name, [record("a", lang="en")])
        assert store.marker(name) == {"ledger": "a-uuid", "generation": 1, "hnsw:space": "cosine"}

        # When it gets another marker
        store.set_marker(name, {"ledger": "another", "generation": None, "more": 2})

        # Then that is read, and by whoever opens it, and the record is as it was
        read = {key: value for key, value in store.marker(name).items() if key != "hnsw:space"}
        opened = store.open_collection(name, dimensions=4, marker={"ledger": "a-uuid"})
        assert read == {key: value for key, value in opened.items() if key != "hnsw:space"}
        assert read == {"ledger": "another", "more": 2}
        assert get_one(store, name, "a").metadata == {"lang": "en"}
        assert [hit.id for hit in store.query(name, vector(EAST), k=1)] == ["a"]

    def test_a_collection_that_was_dropped_is_missing_and_says_so(self, store: VectorStore, name: str) -> None:
        # Given a collection that is dropped, twice
        store.drop_collection(name)
        store.drop_collection(name)

        # When it is used, then the error names the collection and blames no record
        calls = [
            lambda: store.upsert(name, [record("a")]),
            lambda: store.update_metadata(name, {"a": {"x": 1}}),
            lambda: store.delete(name, ["a"]),
            lambda: store.query(name, vector(EAST), k=1),
            lambda: store.get(name, ["a"]),
            lambda: list(store.ids(name)),
            lambda: store.count(name),
        ]
        for call in calls:
            with pytest.raises(CollectionMissing) as caught:
                call()
            assert caught.value.collection == name
            assert caught.value.hint

    def test_a_collection_that_was_dropped_can_be_opened_anew_with_other_dimensions(
        self, store: VectorStore, name: str
    ) -> None:
        # Given a collection with a record, dropped
        store.upsert(name, [record("a")])
        store.drop_collection(name)

        # When it is opened in two dimensions
        store.open_collection(name, dimensions=2, marker={})

        # Then it is empty and takes two dimensions
        assert store.count(name) == 0
        store.upsert(name, [record("b", [1, 0])])
        assert all_ids(store, name) == {"b"}

    def test_a_collection_is_made_anew_under_its_name_in_the_store(self, store: VectorStore, name: str) -> None:
        # Given a collection with a record, known to the store by another name
        store.upsert(name, [record("a")])
        store.rename_collection(name, f"{name}-live")

        # When it is made anew
        store.recreate_collection(name, dimensions=4, marker={"ledger": "another"})

        # Then it is empty, carries the new marker, and has the name that it had
        assert store.count(name) == 0
        assert store.stored()[f"{name}-live"]["ledger"] == "another"
        store.upsert(name, [record("b")])
        assert all_ids(store, name) == {"b"}

    def test_ping_of_a_store_that_answers_returns(self, store: VectorStore) -> None:
        store.ping()


class TestWrites:
    def test_what_was_written_is_read_back_as_it_was(self, store: VectorStore, name: str) -> None:
        # Given a record with every type of metadata and text that is not easy
        written = record(
            "public.t:ü,7#1.0", NORTH_EAST, "ein\x00Text\n😀", s="ß", i=2**53 + 1, f=0.5, yes=True, no=False
        )

        # When it is written and read
        store.upsert(name, [written])
        [found] = store.get(name, [written.id], with_embeddings=True)

        # Then text, metadata with their types, and vector are the same
        assert (found.id, found.text, found.metadata) == (written.id, written.text, written.metadata)
        assert {key: type(value) for key, value in found.metadata.items()} == {
            "s": str, "i": int, "f": float, "yes": bool, "no": bool,
        }  # fmt: skip
        np.testing.assert_allclose(found.embedding, written.embedding, atol=1e-6)

    def test_vectors_are_read_only_where_asked_for(self, store: VectorStore, name: str) -> None:
        store.upsert(name, [record("a")])
        assert get_one(store, name, "a").embedding is None

    def test_writing_again_replaces_text_and_vector(self, store: VectorStore, name: str) -> None:
        # Given a record
        store.upsert(name, [record("a", EAST, "old")])

        # When the same id is written with new content, twice
        store.upsert(name, [record("a", NORTH, "new")])
        store.upsert(name, [record("a", NORTH, "new")])

        # Then there is one record, and search finds the new content
        assert store.count(name) == 1
        [hit] = store.query(name, vector(NORTH), k=5)
        assert (hit.text, round(hit.score, 5)) == ("new", 1.0)

    @pytest.mark.fault("store-limits")
    def test_metadata_is_merged_and_none_removes_a_key(self, store: VectorStore, name: str) -> None:
        # Given a record with three keys
        store.upsert(name, [record("a", stays=1, changes="old", goes="x")])

        # When it is written with one of them changed, one None, one new
        store.upsert(name, [record("a", changes="new", goes=None, comes=True)])

        # Then the keys that were not named stay
        assert get_one(store, name, "a").metadata == {"stays": 1, "changes": "new", "comes": True}

    def test_metadata_may_be_empty_or_become_empty(self, store: VectorStore, name: str) -> None:
        # When records have no metadata, or lose their last key, or never had the key that they lose
        store.upsert(name, [record("empty"), record("lost", x=1), record("never", x=None)])
        store.upsert(name, [record("empty"), record("lost", x=None)])

        # Then all of them have none
        assert [found.metadata for found in store.get(name, ["empty", "lost", "never"])] == [{}, {}, {}]
        assert [hit.metadata for hit in store.query(name, vector(EAST), k=3)] == [{}, {}, {}]

    @pytest.mark.fault("store-limits")
    def test_of_an_id_that_a_batch_names_twice_the_last_one_wins(self, store: VectorStore, name: str) -> None:
        # When one batch holds an id twice
        store.upsert(name, [record("a", EAST, "first"), record("b"), record("a", NORTH, "last")])

        # Then both ids are there, one with what came last
        assert all_ids(store, name) == {"a", "b"}
        assert get_one(store, name, "a").text == "last"

    @pytest.mark.fault("store-limits")
    def test_more_records_than_one_call_takes_are_all_written(self, store: VectorStore, name: str) -> None:
        # Given two and a half calls' worth of records
        ids = [f"doc#{n}" for n in range(2 * chroma.RECORDS_PER_CALL + 50)]

        # When they are written, changed, and read
        store.upsert(name, [record(record_id) for record_id in ids])
        store.update_metadata(name, {record_id: {"seen": True} for record_id in ids})
        found = store.get(name, [*ids, *ids[:10]])

        # Then each is there once, and can be deleted
        assert sorted(record.id for record in found) == sorted(ids)
        assert all(record.metadata == {"seen": True} for record in found)
        store.delete(name, ids)
        assert store.count(name) == 0

    def test_metadata_only_writes_keep_text_and_vector(self, store: VectorStore, name: str) -> None:
        # Given two records
        store.upsert(name, [record("a", NORTH_EAST, "text a", x=1, y=2), record("b", x=1)])

        # When metadata of one is changed, of the other left, and of a third one that is not there
        store.update_metadata(name, {"a": {"x": None, "z": "new"}, "b": {}, "missing": {"x": 1}})

        # Then only metadata changed, and nothing was created
        [found] = store.get(name, ["a"], with_embeddings=True)
        assert (found.text, found.metadata) == ("text a", {"y": 2, "z": "new"})
        np.testing.assert_allclose(found.embedding, vector(NORTH_EAST), atol=1e-6)
        assert all_ids(store, name) == {"a", "b"}

    def test_deleting_takes_away_what_is_there_and_ignores_the_rest(self, store: VectorStore, name: str) -> None:
        # Given two records
        store.upsert(name, [record("a"), record("b")])

        # When one of them and a missing one are deleted, one even twice
        store.delete(name, ["a", "missing", "a"])
        store.delete(name, [])

        # Then only the other one is left, for search too
        assert all_ids(store, name) == {"b"}
        assert [hit.id for hit in store.query(name, vector(EAST), k=5)] == ["b"]

    def test_nothing_to_write_is_no_error(self, store: VectorStore, name: str) -> None:
        store.upsert(name, [])
        store.update_metadata(name, {})
        assert store.get(name, []) == []
        assert list(store.ids(name)) == []

    @pytest.mark.parametrize(
        "bad",
        [
            record("x", [1, 0, 0]),
            record("x", [float("nan"), 0, 0, 0]),
            record("x", [float("inf"), 0, 0, 0]),
            Record(id="x", text="no vector", metadata={}),
            record(""),
            record("x", text="half a character \ud800"),
            record("x", key="\ud800"),
            record("x", key=float("nan")),
            record("x", key=2**63),
            record("x", key=[1]),
            record("x", **{"": 1}),
            record("x", **{"chroma:document": "a"}),
            record("x", **{"#document": "a"}),
        ],
        ids=lambda bad: f"{bad.id}-{bad.metadata}"[:30],
    )
    @pytest.mark.fault("store-limits")
    def test_a_record_that_no_store_keeps_as_it_is_is_rejected(
        self, store: VectorStore, name: str, bad: Record
    ) -> None:
        # When a batch holds a bad record
        with pytest.raises(StoreRejected):
            store.upsert(name, [record("good"), bad])

        # Then nothing of the batch was written
        assert store.count(name) == 0

    def test_metadata_that_no_store_keeps_is_rejected_in_a_metadata_only_write(
        self, store: VectorStore, name: str
    ) -> None:
        store.upsert(name, [record("a")])
        with pytest.raises(StoreRejected):
            store.update_metadata(name, {"a": {"key": float("inf")}})

    @pytest.mark.fault("store-limits", "position-order")
    def test_the_largest_integers_are_kept(self, store: VectorStore, name: str) -> None:
        store.upsert(name, [record("a", lsn=2**63 - 1, low=-(2**63))])
        assert get_one(store, name, "a").metadata == {"lsn": 2**63 - 1, "low": -(2**63)}

    def test_writers_and_readers_in_several_threads_do_not_disturb_each_other(
        self, store: VectorStore, name: str
    ) -> None:
        # Given four threads that write and search
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(10):
                    store.upsert(name, [record(f"{number}-{turn}", NORTH_EAST)])
                    store.query(name, vector(EAST), k=3)
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]

        # When they run at the same time
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        # Then everything was written
        assert failures == []
        assert store.count(name) == 40


class TestSearch:
    def test_many_vectors_are_looked_for_in_one_call(self, store: VectorStore, name: str) -> None:
        store.upsert(name, [record("west", WEST), record("ne", NORTH_EAST), record("north", NORTH)])

        # When two directions are looked for, and none
        found = store.neighbours(name, [vector(EAST), vector(WEST)], k=2)

        # Then each has its neighbours, nearest first
        assert [[(i, round(score, 4)) for i, score in near] for near in found] == [
            [("ne", 0.6), ("north", 0.0)],
            [("west", 1.0), ("north", 0.0)],
        ]
        assert store.neighbours(name, [], k=2) == []

    def test_the_nearest_come_first_with_cosine_similarity_as_score(self, store: VectorStore, name: str) -> None:
        # Given records in four directions, one of them long
        store.upsert(
            name,
            [record("west", WEST), record("far-east", [9, 0, 0, 0], "far", kind="x"), record("ne", NORTH_EAST),
             record("north", NORTH)],
        )  # fmt: skip

        # When the east is looked for
        hits = store.query(name, vector(EAST), k=4)

        # Then direction counts and length does not
        assert [hit.id for hit in hits] == ["far-east", "ne", "north", "west"]
        assert [round(hit.score, 4) for hit in hits] == [1.0, 0.6, 0.0, -1.0]
        assert (hits[0].text, hits[0].metadata) == ("far", {"kind": "x"})

    def test_k_limits_the_hits_and_may_exceed_them(self, store: VectorStore, name: str) -> None:
        store.upsert(name, [record("a"), record("b")])
        assert [len(store.query(name, vector(EAST), k=k)) for k in (0, 1, 2, 50)] == [0, 1, 2, 2]

    def test_an_empty_collection_has_no_hits(self, store: VectorStore, name: str) -> None:
        assert store.query(name, vector(EAST), k=3) == []

    def test_a_search_vector_of_other_dimensions_is_rejected(self, store: VectorStore, name: str) -> None:
        store.upsert(name, [record("a")])
        with pytest.raises(StoreRejected):
            store.query(name, vector([1, 0]), k=1)

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            ({}, "all"),
            ({"x": 1}, "int1 flt1"),
            ({"x": "1"}, "str1"),
            ({"x": True}, "true"),
            ({"x": {"$eq": 1.0}}, "int1 flt1"),
            ({"x": {"$eq": 1.5}}, "flt15 int1"),
            ({"x": {"$eq": "b"}}, "strb"),
            ({"x": {"$ne": 1}}, "flt15 int2 none other str1 strb true"),
            ({"x": {"$ne": 1.5}}, "flt1 int2 none other str1 strb true"),
            ({"x": {"$ne": True}}, "flt1 flt15 int1 int2 none other str1 strb"),
            ({"x": {"$ne": "b"}}, "flt1 flt15 int1 int2 none other str1 true"),
            ({"x": {"$gt": 1}}, "flt15 int2"),
            ({"x": {"$gt": 1.5}}, "int2"),
            ({"x": {"$gte": 1}}, "flt1 flt15 int1 int2"),
            ({"x": {"$gte": 1.5}}, "flt15 int1 int2"),
            ({"x": {"$lt": 1.5}}, "flt1"),
            ({"x": {"$lte": 1.5}}, "flt1 flt15 int1"),
            ({"x": {"$in": [1, 2]}}, "flt1 int1 int2"),
            ({"x": {"$in": ["1", "b"]}}, "str1 strb"),
            ({"x": {"$in": [True]}}, "true"),
            ({"x": {"$nin": [1]}}, "flt15 int2 none other str1 strb true"),
            ({"x": {"$nin": ["1", "b"]}}, "flt1 flt15 int1 int2 none other true"),
            ({"x": {"$contains": "b"}}, ""),
            ({"x": {"$not_contains": "b"}}, "all"),
            ({"$and": [{"x": {"$gte": 1}}, {"x": {"$lt": 2}}]}, "flt1 flt15 int1"),
            ({"$or": [{"x": 1}, {"y": 1}]}, "flt1 int1 other"),
            ({"$or": [{"$and": [{"x": 1}, {"y": 1}]}, {"x": "b"}]}, "strb"),
            ({"nowhere": 1}, ""),
            ({"nowhere": {"$ne": 1}}, "all"),
        ],
        ids=str,
    )
    def test_filters_mean_what_they_mean_in_chroma(
        self, store: VectorStore, name: str, where: dict[str, Any], expected: str
    ) -> None:
        # Given records whose x has every type, or is missing
        values = {"int1": 1, "flt1": 1.0, "int2": 2, "flt15": 1.5, "true": True, "str1": "1", "strb": "b", "none": None}
        store.upsert(name, [*(record(id, x=value) for id, value in values.items()), record("other", y=1)])

        # When a filtered search is made
        hits = store.query(name, vector(EAST), k=20, where=where)

        # Then the same records are found by every store
        everything = {*values, "other"}
        assert {hit.id for hit in hits} == (everything if expected == "all" else set(expected.split()))

    @pytest.mark.parametrize(
        "where",
        [
            {"x": 1, "y": 1},
            {"x": {"$gt": 1, "$lt": 3}},
            {"x": {"$like": "a"}},
            {"x": {"$gt": "a"}},
            {"x": {"$gt": True}},
            {"x": {"$in": []}},
            {"x": {"$in": [1, "a"]}},
            {"x": {"$in": [1, 1.0]}},
            {"x": None},
            {"x": [1]},
            {"x": {"$eq": None}},
            {"$and": [{"x": 1}]},
            {"$or": []},
        ],
        ids=str,
    )
    def test_what_is_no_filter_is_rejected(self, store: VectorStore, name: str, where: dict[str, Any]) -> None:
        store.upsert(name, [record("a", x=1)])
        with pytest.raises(StoreRejected):
            store.query(name, vector(EAST), k=1, where=where)


class TestListing:
    @pytest.fixture(autouse=True)
    def small_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A hundred records fill several pages."""
        monkeypatch.setattr(chroma, "IDS_PER_PAGE", 40)
        monkeypatch.setattr(chroma, "PAGE_OVERLAP", 10)
        monkeypatch.setattr(memory, "IDS_PER_PAGE", 40)

    def test_every_id_is_listed_once_in_bounded_pages(self, store: VectorStore, name: str) -> None:
        # Given a little more than two pages of records
        ids = {f"doc#{n}" for n in range(2 * chroma.IDS_PER_PAGE + 10)}
        store.upsert(name, [record(record_id) for record_id in ids])

        # When they are listed
        pages = list(store.ids(name))

        # Then no page is too large, and none is missing or named twice
        assert all(len(page) <= chroma.IDS_PER_PAGE for page in pages)
        assert sorted(record_id for page in pages for record_id in page) == sorted(ids)

    @pytest.mark.parametrize("deletes", [1, 10, 11, 40])
    def test_ids_that_stay_are_listed_though_others_are_deleted_meanwhile(
        self, store: VectorStore, name: str, deletes: int
    ) -> None:
        # Given a listing of two and a half pages that has given its first page
        ids = [f"doc#{n}" for n in range(2 * chroma.IDS_PER_PAGE + 30)]
        store.upsert(name, [record(record_id) for record_id in ids])
        listing = store.ids(name)
        first = next(listing)

        # When records of that page are deleted before it goes on
        store.delete(name, first[:deletes])
        rest = {record_id for page in listing for record_id in page}

        # Then nobody else was passed over
        assert set(ids) - set(first) <= rest


class TestChroma:
    """What only Chroma can get wrong."""

    @pytest.fixture
    def http(self, chroma_server: ChromaServer) -> Any:
        store = ChromaStore.http(chroma_server.host, chroma_server.port, timeout_s=20)
        yield store
        store.close()

    @pytest.fixture
    def somebody_else(self, chroma_server: ChromaServer) -> Any:
        store = ChromaStore.http(chroma_server.host, chroma_server.port, timeout_s=20)
        yield store
        store.close()

    def test_a_collection_recreated_by_somebody_else_is_found_again(
        self, http: ChromaStore, somebody_else: ChromaStore
    ) -> None:
        # Given a collection that we have used
        name = f"test-{uuid.uuid4().hex}"
        http.open_collection(name, dimensions=4, marker={})
        http.upsert(name, [record("before")])

        # When somebody else deletes and creates it, which gives it a new identity
        somebody_else.drop_collection(name)
        somebody_else.open_collection(name, dimensions=4, marker={})

        # Then our writes and reads reach the new one
        http.upsert(name, [record("after")])
        assert all_ids(http, name) == {"after"} == all_ids(somebody_else, name)

    def test_a_collection_that_measures_otherwise_is_rejected(self, http: ChromaStore) -> None:
        # Given a collection that another program created with Chroma's default distance
        name = f"test-{uuid.uuid4().hex}"
        http._api.create_collection(name)

        # When we open it, then we refuse, because its scores would mean something else
        with pytest.raises(StoreRejected, match="l2"):
            http.open_collection(name, dimensions=4, marker={})

    def test_a_name_that_chroma_does_not_take_is_rejected(self, http: ChromaStore) -> None:
        with pytest.raises(StoreRejected, match="3-512 characters"):
            http.open_collection("a", dimensions=4, marker={})

    def test_a_batch_of_too_many_bytes_is_cut_until_it_fits(self, http: ChromaStore) -> None:
        # Given six records of ten megabytes each, where the server takes forty in one request
        name = f"test-{uuid.uuid4().hex}"
        http.open_collection(name, dimensions=4, marker={})
        records = [record(f"large#{n}", text="x" * 10_000_000) for n in range(6)]

        # When they are written in one batch
        http.upsert(name, records)

        # Then all are there; and one that is too large by itself is rejected
        assert http.count(name) == 6
        with pytest.raises(StoreRejected, match="this large"):
            http.upsert(name, [record("huge", text="x" * 45_000_000)])

    def test_a_server_that_is_not_there_is_unavailable(self) -> None:
        # Given a store whose server does not run (port 9 is discard, nobody listens there)
        store = ChromaStore.http("127.0.0.1", 9, timeout_s=2)

        # When it is used, then it is unavailable
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            store.ping()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            store.open_collection("some-name", dimensions=4, marker={})
        store.close()

    def test_a_server_that_is_not_chroma_is_unavailable(self, fake_openai: Any) -> None:
        # Given something else that speaks HTTP on the configured port
        port = int(fake_openai.base_url.rsplit(":", 1)[1].removesuffix("/v1"))
        store = ChromaStore.http("127.0.0.1", port, timeout_s=2)

        # When it is used, then no record is blamed
        with pytest.raises(StoreUnavailable):
            store.ping()
        with pytest.raises(StoreUnavailable):
            store.count("some-name")
        store.close()

    def test_a_proxy_of_the_environment_does_not_stand_before_our_own_machine(
        self, chroma_server: ChromaServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a company's proxy that does not answer
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.delenv("NO_PROXY", raising=False)

        # When the store on loopback is opened, then it is reached
        store = ChromaStore.http(chroma_server.host, chroma_server.port)
        store.ping()
        store.close()

    def test_an_embedded_store_keeps_everything_when_it_is_closed(self, tmp_path: Any) -> None:
        # Given an embedded store with a record, closed
        store = ChromaStore.embedded(tmp_path / "store")
        store.open_collection("kept", dimensions=4, marker={"ledger": "a-uuid"})
        store.upsert("kept", [record("a", x=1)])
        store.close()

        # When it is opened again
        again = ChromaStore.embedded(tmp_path / "store")

        # Then search finds the record without the collection having been opened
        assert [hit.id for hit in again.query("kept", vector(EAST), k=5, where={"x": 1})] == ["a"]
        again.close()
