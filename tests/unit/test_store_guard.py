"""The guard of the store builds again what is gone, and leaves alone what is only being renamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.errors import IdentityMismatch
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.storekeeper import Kept, StoreGuard
from cdc_agent.vectorstore.memory import MemoryStore
from cdc_agent.vectorstore.records import CollectionDamaged, CollectionMissing, StoreFailing, StoreHungUp

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


def hangs_up(keeper: Keeper, monkeypatch: pytest.MonkeyPatch, times: int, error: Exception) -> None:
    """The store fails at removing so many times."""
    honest, left = keeper.store.recreate_collection, [error] * times

    def recreate(name: str, **more: Any) -> None:
        if left:
            raise left.pop()
        honest(name, **more)

    monkeypatch.setattr(keeper.store, "recreate_collection", recreate)


def test_a_server_that_restarts_while_we_mend_is_waited_for(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a collection that is damaged, and a server that hangs up three times
    hangs_up(keeper, monkeypatch, 3, StoreHungUp("gone"))

    # When it is to be mended, then it is built again
    keeper.guard.mend(CollectionDamaged("docs", "it cannot be read"))
    assert [(r.collections, r.reason) for r in keeper.ledger.resyncs()] == [(("docs",), "STORE_CORRUPT")]


@pytest.mark.parametrize(
    ("error", "times"), [(StoreHungUp("gone"), 4), (StoreFailing("broken"), 1)], ids=["dies of it", "fails at it"]
)
def test_a_collection_that_cannot_even_be_removed_is_named(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int
) -> None:
    hangs_up(keeper, monkeypatch, times, error)

    with pytest.raises(IdentityMismatch, match="cannot even be removed") as raised:
        keeper.guard.mend(CollectionDamaged("docs", "it cannot be read"))
    assert "put the store's folder away" in raised.value.hint
    assert keeper.ledger.resyncs() == []
