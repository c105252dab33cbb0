"""examples/docs_refresh: what is pushed and written is found, what goes leaves, and the team is told once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.docs_refresh.vendors import Vendors
from examples.stage.world import World
from tests.support.daemon import DaemonProcess
from tests.support.examples import Shop
from tests.support.fake_github import FakeGithub
from tests.support.fake_notion import FakeNotion
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]
REFUNDS = "# Refunds\n\nMoney comes back.\n"


@pytest.fixture
def vendors() -> Iterator[Vendors]:
    with FakeGithub() as github, FakeNotion() as notion:
        yield Vendors(github, notion)


def texts(shop: Shop, collection: str) -> list[str]:
    hits = shop.daemon.search(collection, "anything at all", k=20)
    return sorted(hit["text"].splitlines()[-1] for hit in hits)


@pytest.mark.parametrize("mishap", ["calm", "every-attempt-twice", "agents_handled:kill@2", "agents_settled:kill@2"])
def test_what_is_pushed_and_written_is_found_and_told_once(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World, vendors: Vendors, mishap: str
) -> None:
    # Given a handbook of one file, and an empty wiki
    vendors.github.push({"docs/refunds.md": REFUNDS})
    shop = Shop("docs_refresh", pg, new_daemon, tmp_path, world, mishap=mishap, prepare=vendors.prepare)
    vendors.url = shop.daemon.url

    # When a file is pushed and a page written, each delivered twice, whatever befalls the daemon meanwhile
    vendors.push({"docs/refunds.md": REFUNDS, "docs/shipping.md": "# Shipping\n\nParcels leave.\n"}, times=2)
    page = vendors.write("Holidays", "The office is closed.", times=1)
    shop.wait_for("docs_changed", 2)

    # Then both are found, and each was told once
    until(lambda: texts(shop, "handbook") == ["Money comes back.", "Parcels leave."], 30, "the file")
    until(lambda: texts(shop, "wiki") == ["The office is closed."], 30, "the page")
    assert sorted(effect.body["text"] for effect in world.effects("/chat")) == [
        "The handbook changed: docs/shipping.md",
        f"The wiki changed: page {page}, created",
    ]

    # When one file and the page go
    vendors.push({"docs/shipping.md": "# Shipping\n\nParcels leave.\n"}, times=2)
    vendors.throw_away(page, times=2)
    shop.wait_for("docs_changed", 4)
    shop.settle()

    # Then they leave the index, and the table beside them is as it was
    until(lambda: texts(shop, "handbook") == ["Parcels leave."], 30, "the file to leave")
    until(lambda: texts(shop, "wiki") == [], 30, "the page to leave")
    assert texts(shop, "questions") == ["From nine to five."]
    assert len(world.effects()) == 4
