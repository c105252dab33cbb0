"""What ``examples/run docs_refresh`` shows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.docs_refresh.vendors import Vendors
from examples.stage.stage import Stage
from tests.support.fake_github import FakeGithub
from tests.support.fake_notion import FakeNotion

_FOUND_S = 30.0


@contextmanager
def prepared(settings: dict[str, Any], folder: Path) -> Iterator[Vendors]:
    """GitHub and Notion, which the daemon is led to."""
    with FakeGithub() as github, FakeNotion() as notion:
        github.push({"docs/refunds.md": "# Refunds\n\nMoney comes back within fourteen days.\n"})
        vendors = Vendors(github, notion)
        vendors.prepare(settings, folder)
        yield vendors


def play(stage: Stage, vendors: Vendors) -> None:
    vendors.url = stage.agent.url
    print("\n> Somebody pushes a file; GitHub delivers the webhook twice", flush=True)
    files = {
        "docs/refunds.md": "# Refunds\n\nMoney comes back within fourteen days.\n",
        "docs/shipping.md": "# Shipping\n\nParcels leave at noon.\n",
    }
    vendors.push(files, times=2)
    stage.wait_for("docs_changed")
    found(stage, "handbook", "when do parcels leave?", "Parcels leave at noon.")
    print("\n> Somebody writes a page in Notion", flush=True)
    vendors.write("Holidays", "The office is closed on the first of May.", times=2)
    stage.wait_for("docs_changed", 2)
    found(stage, "wiki", "when is the office closed?", "The office is closed on the first of May.")


def found(stage: Stage, collection: str, query: str, text: str) -> None:
    """Ask until the answer is there: a feed looks when its webhook rings."""
    began = time.monotonic()
    while time.monotonic() < began + _FOUND_S:
        hits = stage.post("/search", {"collection": collection, "query": query, "k": 1}).json()["hits"]
        if hits and text in hits[0]["text"]:
            print(f"  search   {query:<26} {hits[0]['text'].splitlines()[-1]!r}", flush=True)
            return
        time.sleep(0.1)
    raise SystemExit(f"{text!r} was not found in {_FOUND_S:g} s; the daemon's log is {stage.agent.log_path}")
