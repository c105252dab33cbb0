"""Every vector store lets a collection have another name in the store than we call it by."""

from __future__ import annotations

import threading
import uuid

import numpy as np
import pytest

from cdc_agent.errors import StoreRejected
from cdc_agent.vectorstore.base import Record, VectorStore
from cdc_agent.vectorstore.chroma import ChromaStore
from cdc_agent.vectorstore.chroma_server import ChromaServer
from cdc_agent.vectorstore.records import CollectionMissing


def record(text: str) -> Record:
    return Record(id="a", text=text, metadata={}, embedding=np.array([1, 0], dtype=np.float32))


def texts(store: VectorStore, name: str) -> list[str]:
    return [hit.text for hit in store.query(name, np.array([1, 0], dtype=np.float32), k=5)]


@pytest.fixture
def prefix() -> str:
    """Names of this test's own: the server is the session's."""
    return f"names-{uuid.uuid4().hex}"


def two_generations(store: VectorStore, prefix: str) -> tuple[str, str]:
    one, two = f"{prefix}", f"{prefix}@2"
    store.alias(two, f"{prefix}.g2")
    for name, number in ((one, 1), (two, 2)):
        store.open_collection(name, dimensions=2, marker={"number": number})
        store.upsert(name, [record(f"generation {number}")])
    return one, two


def test_a_collection_is_opened_under_its_alias(store: VectorStore, prefix: str) -> None:
    one, two = two_generations(store, prefix)

    assert {name for name in store.stored() if name.startswith(prefix)} == {prefix, f"{prefix}.g2"}
    assert store.stored()[f"{prefix}.g2"]["number"] == 2
    assert (texts(store, one), texts(store, two)) == (["generation 1"], ["generation 2"])


def test_names_are_exchanged_under_a_reader_who_never_notices(store: VectorStore, prefix: str) -> None:
    # Given two generations, and a reader of each that never rests
    one, two = two_generations(store, prefix)
    stop, faults = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            for name, wanted in ((one, "generation 1"), (two, "generation 2")):
                try:
                    if texts(store, name) != [wanted]:
                        faults.append(f"{name} is not {wanted}")
                except Exception as exc:
                    faults.append(repr(exc))

    reader = threading.Thread(target=read)
    reader.start()

    # When their names in the store are exchanged, there and back
    try:
        for _ in range(5):
            store.rename_collection(one, f"{prefix}.g1")
            store.rename_collection(two, prefix)
            assert store.stored()[prefix]["number"] == 2
            store.rename_collection(two, f"{prefix}.g2")
            store.rename_collection(one, prefix)
            assert store.stored()[prefix]["number"] == 1
    finally:
        stop.set()
        reader.join(20)

    # Then what we call them by has led to the same all the time
    assert faults == []


def test_a_name_that_is_taken_is_refused(store: VectorStore, prefix: str) -> None:
    one, two = two_generations(store, prefix)

    with pytest.raises(StoreRejected):
        store.rename_collection(two, prefix)
    assert (texts(store, one), texts(store, two)) == (["generation 1"], ["generation 2"])


def test_what_is_dropped_after_a_renaming_is_what_we_call_so(store: VectorStore, prefix: str) -> None:
    # Given names that were exchanged
    one, two = two_generations(store, prefix)
    store.rename_collection(one, f"{prefix}.g1")
    store.rename_collection(two, prefix)

    # When the first generation is dropped, even twice
    store.drop_collection(one)
    store.drop_collection(one)

    # Then the second, which has its old name in the store, is there
    assert texts(store, two) == ["generation 2"]
    with pytest.raises(CollectionMissing):
        texts(store, one)


def test_another_process_knows_names_only_by_what_it_is_told(chroma_server: ChromaServer, prefix: str) -> None:
    # Given names that were exchanged
    store = ChromaStore.http(chroma_server.host, chroma_server.port)
    one, two = two_generations(store, prefix)
    store.rename_collection(one, f"{prefix}.g1")
    store.rename_collection(two, prefix)

    # When another store object is told of them
    other = ChromaStore.http(chroma_server.host, chroma_server.port)
    other.alias(two, prefix)
    other.alias(one, f"{prefix}.g1")

    # Then it reads the same
    assert (texts(other, one), texts(other, two)) == (["generation 1"], ["generation 2"])
    store.close()
    other.close()
