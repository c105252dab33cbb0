"""The guard of the store builds again what is gone, and leaves alone what is only being renamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_agent.errors import IdentityMismatch
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.storekeeper import Kept, StoreGuard
from cdc_agent.vectorstore.memory import MemoryStore
from cdc_agent.vectorstore.records import CollectionMissing

KEPT = Kept(name="docs", table="public.docs", fingerprint="f", model="m", dimensions=8)


class Keeper:
    """A guard over a memory store, which does something while the guard pauses."""

    def __init__(self, folder: Path, *, mend: bool = True) -> None:
        self.store, self.ledger = MemoryStore(), SqliteLedger(folder / "ledger.db")
        self.meanwhile = lambda: None
        self.guard = StoreGuard(
            store=self.store, ledger=self.ledger, mend=mend, sleep=lambda _: self.meanwhile(), clock=lambda: 0.0
        )
        self.guard.open(KEPT)
        self.ledger.save_collection("docs", "f")
        self.marker = self.store.marker("docs")


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path)
    yield keeper
    keeper.ledger.close()


def test_a_collection_that_is_missing_only_while_it_is_renamed_is_not_built_again(keeper: Keeper) -> None:
    # Given a write that found no collection, because it was being renamed
    keeper.store.drop_collection("docs")
    keeper.meanwhile = lambda: keeper.store.open_collection("docs", dimensions=8, marker=keeper.marker)

    # When the guard is asked to mend that
    keeper.guard.mend(CollectionMissing("docs"))

    # Then nothing is forgotten, and nothing read again
    assert keeper.ledger.resyncs() == []


@pytest.mark.parametrize("marker", [None, {"cdc_ledger": "another"}])
def test_a_collection_that_is_gone_or_somebody_elses_by_then_is_built_again(
    keeper: Keeper, marker: dict[str, str] | None
) -> None:
    # Given a write that found no collection, and what is there a moment later
    keeper.store.drop_collection("docs")
    if marker is not None:
        keeper.meanwhile = lambda: keeper.store.open_collection("docs", dimensions=8, marker=marker)

    # When the guard is asked to mend that
    keeper.guard.mend(CollectionMissing("docs"))

    # Then it is there, it is ours, and its table is read again
    assert keeper.store.marker("docs") == keeper.marker
    assert [(r.collections, r.reason) for r in keeper.ledger.resyncs()] == [(("docs",), "STORE_REPLACED")]


def test_a_collection_that_is_gone_is_only_named_where_nothing_may_be_mended(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, mend=False)
    keeper.store.drop_collection("docs")

    with pytest.raises(IdentityMismatch, match="STORE_REPLACED"):
        keeper.guard.mend(CollectionMissing("docs"))
    keeper.ledger.close()
