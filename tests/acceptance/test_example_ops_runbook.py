"""examples/ops_runbook: old temporary files go, nothing else does, and the incident is told once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from cdc_agent.testing import Bench
from examples.stage.stage import settings_of
from examples.stage.world import World
from tests.support import senders
from tests.support.daemon import DaemonProcess
from tests.support.examples import MISHAPS, Shop, app_of
from tests.support.fake_chat import FakeChat
from tests.support.postgres import Database

NewDaemon = Callable[..., DaemonProcess]
SECRET = settings_of("ops_runbook")["webhooks"]["monitoring"]["secret"]

#: No change of a row is heard of here, and that deliveries come twice is part of the test.
CAN_BEFALL = [mishap for mishap in MISHAPS if mishap not in ("killed-when-heard", "every-event-twice")]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, age_s in (("a.tmp", 7200), ("b.tmp", 7200), ("in-use.tmp", 0), ("report.pdf", 7200)):
        (folder / name).write_text("…")
        os.utime(folder / name, (time.time() - age_s,) * 2)


def report(shop: Shop, folder: str, delivery: str = "msg_1", percent: int = 96) -> int:
    body = {"type": "disk.usage", "data": {"folder": folder, "percent": percent}}
    headers, raw = senders.standard(body, SECRET, time.time(), delivery)
    return httpx.post(f"{shop.daemon.url}/webhooks/monitoring", headers=headers, content=raw).status_code


@pytest.mark.parametrize("mishap", CAN_BEFALL)
def test_old_temporary_files_go_and_the_team_hears_of_it_once(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World, mishap: str
) -> None:
    shop = Shop("ops_runbook", pg, new_daemon, tmp_path, world, mishap=mishap)
    cache = shop.sandbox / "var" / "cache"
    fill(cache)

    # When monitoring says it, and says it again, because it did not hear our answer
    assert report(shop, "var/cache") == 202
    shop.wait_for("incident_told")
    assert report(shop, "var/cache") == 202
    shop.settle()

    # Then what may go has gone, and the team was told once, with the number that is true
    assert files_in(cache) == ["in-use.tmp", "report.pdf"]
    [told] = world.effects("/chat")
    assert told.body["text"] == "var/cache: 2 temporary files removed."
    types = [event.type for event in shop.facts() if event.key == "var/cache"]
    assert types == ["runbook_followed", "clear_temp_files", "temp_files_cleared", "tell_team", "incident_told"]
    assert shop.facts("runbook_followed")[0].data["runbook"] == "public.runbooks:1"


def test_nothing_outside_the_sandbox_is_touched(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World
) -> None:
    # Given folders outside, one of them behind a link
    shop = Shop("ops_runbook", pg, new_daemon, tmp_path, world)
    outside = tmp_path / "outside"
    fill(outside)
    (shop.sandbox / "link").symlink_to(outside)

    # When somebody who may speak for monitoring names them
    for number, folder in enumerate(["../outside", "link", str(outside), "", "no/such"]):
        assert report(shop, folder, f"msg_{number}") == 202
    shop.settle()

    # Then nothing goes, and each is a letter for a person
    assert files_in(outside) == ["a.tmp", "b.tmp", "in-use.tmp", "report.pdf"]
    assert shop.facts("clear_temp_files") == []
    assert [(letter.agent, letter.reason) for letter in shop.letters()] == [("look_up", "parked")] * 5


def test_a_model_sums_up_where_there_is_one(pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World) -> None:
    with FakeChat("A full disk was cleared.") as fake:
        shop = Shop("ops_runbook", pg, new_daemon, tmp_path, world, env={"EXAMPLE_LLM": fake.base_url})
        fill(shop.sandbox / "logs")
        assert report(shop, "logs") == 202
        shop.wait_for("incident_told")

        # Then it was asked with the log of this incident
        assert world.effects("/chat")[0].body["text"] == "A full disk was cleared."
        [request] = fake.requests
        assert "temp_files_cleared {'files': 2}" in request.body["messages"][1]["content"]


def test_what_stands_in_the_command_is_all_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A test of the agents in memory, with a real folder
    monkeypatch.setenv("EXAMPLE_SANDBOX", str(tmp_path))
    fill(tmp_path / "logs")

    def search(*_: Any, **__: Any) -> list[Any]:
        return [SimpleNamespace(document_id="runbooks:1")]

    with Bench(app_of("ops_runbook"), search=search, only={"look_up", "clear"}) as bench:
        for name in ("../a.tmp", "/etc/passwd", "report.pdf"):
            bench.command("clear_temp_files", {"folder": "logs", "names": [name]}, key="logs")
        bench.run()
        assert [letter.reason for letter in bench.letters] == ["parked"] * 3
        assert bench.facts() == []
    assert len(files_in(tmp_path / "logs")) == 4
