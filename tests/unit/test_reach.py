"""When it is looked whether every chunk can be found, and what is done for one that cannot."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdc_agent.errors import StoreUnavailable
from cdc_agent.ledger.base import Checkpoint, ChunkRef, Flip, Manifest, NewChunks, Resync
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn, Version
from cdc_agent.storekeeper import Reach, Reached
from cdc_agent.vectorstore.base import Record
from cdc_agent.vectorstore.finding import unfound
from cdc_agent.vectorstore.memory import MemoryStore
from cdc_agent.vectorstore.wear import Wear

DOCS = Reached("docs", "public.docs")


class ShortsightedStore(MemoryStore):
    """Holds some records that its searches do not show."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: set[str] = set()
        self.searches = 0
        #: For how many vectors each call asked.
        self.searched: list[int] = []
        self.away = False

    def neighbours(self, collection: str, vectors: Any, *, k: int) -> list[list[tuple[str, float]]]:
        if self.away:
            raise StoreUnavailable("away")
        self.searches += 1
        self.searched.append(len(vectors))
        found = super().neighbours(collection, vectors, k=k + len(self.hidden))
        return [[(i, score) for i, score in near if i not in self.hidden][:k] for near in found]


class House:
    """A collection of documents of one chunk each, and what looks after it."""

    def __init__(self, folder: Path) -> None:
        self.ledger, self.store = SqliteLedger(folder / "ledger.db"), ShortsightedStore()
        self.store.open_collection("docs", dimensions=8, marker={})
        self.now = 0.0
        self.wear = Wear(lambda: self.now)
        self.asked: list[Resync] = []
        self._rng = np.random.default_rng(1)
        self.reach = self.in_another_life()

    def in_another_life(self) -> Reach:
        return Reach(
            ledger=self.ledger,
            store=self.store,
            wear=self.wear,
            collections=lambda: [DOCS],
            key_columns={DOCS.table: 1}.__getitem__,
            request=lambda resync: self.asked.append(self.ledger.start_resync(resync)),
            stop=threading.Event(),
            clock=lambda: self.now,
        )

    def add(self, *keys: str, chunks: int = 1) -> None:
        for key in keys:
            document = f"public.docs:{key}"
            new = NewChunks(collection="docs", document_id=document, count=chunks)
            generation, ids = self.ledger.begin_write([new], agent="indexer")
            refs = tuple(ChunkRef(i, b"0" * 16) for i in ids["docs", document])
            vectors = self._rng.standard_normal((chunks, 8)).astype(np.float32)
            records = [Record(id=c.id, text=key, metadata={}, embedding=v) for c, v in zip(refs, vectors, strict=True)]
            self.store.upsert("docs", records)
            version = Version(Lsn(generation), 0)
            manifest = Manifest(
                collection="docs", document_id=document, version=version, xid=1, relation_oid=1, chunks=refs
            )
            self.ledger.flip(
                Flip(agent="indexer", checkpoint=Checkpoint(), generation=generation, manifests=[manifest])
            )

    def hide(self, key: str) -> None:
        document = f"public.docs:{key}"
        self.store.hidden.add(self.ledger.manifests("docs", [document])[document].chunks[-1].id)

    def look(self, at: float) -> list[tuple[str, ...]]:
        """Keys that are asked for at this look."""
        self.now, self.asked = at, []
        self.reach.look_after(DOCS)
        assert all(resync.rewrite and resync.collections == ("docs",) for resync in self.asked)
        return [key for resync in self.asked for key in resync.keys]

    def written_anew(self, key: str) -> None:
        self.add(key)
        for resync in self.ledger.resyncs(running_only=True):
            self.ledger.save_resync(replace(resync, state="done"))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    house.add(*"abcde")
    house.look(0.0)
    yield house
    house.ledger.close()


def test_nothing_is_searched_for_while_little_was_deleted(house: House) -> None:
    house.hide("b")
    searches = house.store.searches
    house.wear.note_deleted("docs", 99)

    assert house.look(100.0) == []
    assert house.store.searches == searches


def test_after_many_deletions_what_cannot_be_found_is_read_again(house: House) -> None:
    house.hide("b")
    house.hide("d")

    house.wear.note_deleted("docs", 100)

    assert house.look(100.0) == [("b",), ("d",)]


def test_a_collection_that_is_being_filled_is_left_alone_for_a_minute_at_the_most(house: House) -> None:
    house.hide("b")
    house.wear.note_deleted("docs", 100)

    for second in range(60):
        house.now = float(second)
        house.wear.note_written("docs")
        assert house.look(second) == []

    house.wear.note_written("docs")
    assert house.look(60.0) == [("b",)]


def test_what_was_written_anew_is_searched_for_again_until_it_is_found_with_longer_and_longer_pauses(
    house: House,
) -> None:
    house.hide("b")
    house.wear.note_deleted("docs", 100)
    assert house.look(100.0) == [("b",)]

    # While its row is being read nothing more is asked for
    assert house.look(110.0) == []

    # When it cannot be found where it was written anew either
    house.written_anew("b")
    house.hide("b")
    assert house.look(120.0) == [("b",)]
    house.written_anew("b")
    house.hide("b")
    assert house.look(121.5) == []
    assert house.look(122.0) == [("b",)]

    # And when at last it can, that is the end of it
    house.written_anew("b")
    assert house.look(130.0) == []
    searches = house.store.searches
    assert house.look(10_000.0) == []
    assert house.store.searches == searches


def test_a_life_that_ended_before_it_had_looked_is_made_up_for(house: House) -> None:
    house.hide("c")

    house.reach = house.in_another_life()

    assert house.look(1.0) == [("c",)]


def test_a_store_that_is_away_at_the_start_is_asked_again_later(house: House) -> None:
    house.hide("c")
    house.reach = house.in_another_life()
    house.store.away = True
    with pytest.raises(StoreUnavailable):
        house.look(1.0)
    house.store.away = False

    assert house.look(2.0) == []
    assert house.look(6.0) == [("c",)]


def test_a_store_that_is_away_is_asked_again_later(house: House) -> None:
    house.hide("b")
    house.wear.note_deleted("docs", 100)
    house.store.away = True
    with pytest.raises(StoreUnavailable):
        house.look(100.0)

    house.store.away = False

    # Not at once: it may be away because there is so much to do
    assert house.look(101.0) == []
    assert house.look(105.0) == [("b",)]


def test_no_call_searches_for_more_than_a_hundred_chunks(house: House) -> None:
    # Given a document of very many chunks, the last of which cannot be found
    house.add("long", chunks=250)
    house.hide("long")
    house.wear.note_deleted("docs", 100)

    assert house.look(100.0) == [("long",)]
    assert max(house.store.searched) <= 100


def test_what_many_others_are_as_close_as_is_not_lost() -> None:
    # Given two hundred records of one text, of which a search shows a hundred, and one of another text that none shows
    store = ShortsightedStore()
    store.open_collection("docs", dimensions=2, marker={})
    same, other = np.array([1, 0], dtype=np.float32), np.array([0, 1], dtype=np.float32)
    vectors = {f"same-{n}": same for n in range(200)} | {"other": other}
    records = [Record(id=i, text="t", metadata={}, embedding=vector) for i, vector in vectors.items()]
    store.upsert("docs", records)
    store.hidden = {"same-199", "other"}

    assert unfound(store, "docs", vectors) == ["other"]
