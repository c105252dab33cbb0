"""Sagas in the real daemon: begun by an agent because of a row, answered from the command line, killed everywhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from playwright.sync_api import expect

from tests.support.browser import open_browser
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.saga_child import PLACES
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]
NOTES = {"name": "notes", "table": "public.notes", "text": "{body}"}

#: A payment that failed is refunded; whoever is number 3, 6, 9… has no account to be paid to.
PROGRAM = """
    import json, os
    from pathlib import Path
    from cdc_agent import Agents
    from cdc_agent.sagas import Approval, Refused, Saga, Step

    WORLD = Path(__file__).with_name("world.jsonl")
    app = Agents()

    def does(name):
        def function(context):
            if name == "pay" and context.data["id"] % 3 == 0:
                raise Refused("there is no such account")
            with WORLD.open("a") as world:
                world.write(json.dumps([name, context.idempotency_key]) + "\\n")
            context.emit(name + "_done", key=str(context.data["id"]))
        return function

    def gateway_a(context):
        raise ConnectionError("gateway a does not answer")

    refund = Saga("refund", [
        Step("reserve", does("reserve"), undo=does("release")),
        Approval("agree"),
        Step("pay", gateway_a, attempts=2, backoff_s=0.01, alternatives=[does("pay")]),
        Step("tell", does("tell")),
    ])
    app.add(refund)

    @app.on_change("public.payments", ops="c")
    def failed(event, context):
        context.start(refund, {"id": event.data["after"]["id"]})
"""


@pytest.fixture
def daemon(pg: Database, new_daemon: NewDaemon, tmp_path: Path) -> DaemonProcess:
    pg.execute("create table notes (id int primary key, body text)")
    pg.execute("create table payments (id int primary key)")
    pg.execute("insert into notes values (1, 'one')")
    (tmp_path / "shop.py").write_text(textwrap.dedent(PROGRAM))
    return new_daemon(pg, collections=[NOTES], agents=[f"{tmp_path / 'shop.py'}:app"])


def world(tmp_path: Path) -> list[tuple[str, str]]:
    """Every call of the outside world."""
    path = tmp_path / "world.jsonl"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def sagas(daemon: DaemonProcess, state: str = "all") -> list[dict[str, Any]]:
    return list(daemon.get("/sagas", state=state).json()["sagas"])


def cli(daemon: DaemonProcess, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "cdc_agent.cli", "sagas", *arguments, "-c", str(daemon.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout or done.stderr


def test_a_saga_waits_until_somebody_answers_it_from_the_command_line(
    pg: Database, daemon: DaemonProcess, tmp_path: Path
) -> None:
    # Given two sagas that wait for an approval, also after a restart
    daemon.start()
    assert cli(daemon, "list") == "no sagas\n"
    pg.execute("insert into payments values (1), (2)")
    until(lambda: len(sagas(daemon, "waiting")) == 2, 30.0, "two sagas to wait")
    daemon.terminate()
    daemon.start()

    # When they are listed, shown, and one approved, the other rejected
    listed = json.loads(cli(daemon, "list", "--json"))
    first, second = (saga["id"] for saga in listed["sagas"])
    assert listed["counts"] == {"waiting": 2}
    assert "saga.approval_wanted" in cli(daemon, "show", first)
    assert first in shown_live(daemon)
    assert "does not wait for pay" in cli(daemon, "approve", first, "--step", "pay", code=2)
    assert f"saga {first} is running at pay" in cli(daemon, "approve", first, "--by", "anna", "--step", "agree")
    assert "compensating" in cli(daemon, "reject", second, "--note", "no")

    # Then each has come to its end, which everybody can see
    until(lambda: sagas(daemon, "open") == [], 30.0, "both sagas to end")
    assert [saga["state"] for saga in sagas(daemon)] == ["completed", "compensated"]
    names = [name for name, _ in world(tmp_path)]
    assert sorted(names) == ["pay", "release", "reserve", "reserve", "tell"]
    shown = json.loads(cli(daemon, "show", first, "--json"))
    assert shown["results"]["agree"] == {"approved": True, "by": "anna", "token": "local"}
    assert [said["type"] for said in shown["history"]][-1] == "saga.completed"
    assert "only what still goes forward" in cli(daemon, "cancel", first, code=2)
    assert daemon.metric("cdc_agent_sagas_ended_total", outcome="completed") == 1
    assert daemon.metric("cdc_agent_sagas", state="waiting") == 0
    assert_index_equals_table(daemon, pg)


def test_whoever_looks_at_the_live_page_sees_what_waits_and_answers_it(pg: Database, daemon: DaemonProcess) -> None:
    # Given the page of a daemon with two sagas that wait
    daemon.start()
    pg.execute("insert into payments values (1), (2)")
    until(lambda: len(sagas(daemon, "waiting")) == 2, 30.0, "two sagas to wait")
    with open_browser() as browser:
        page = browser.new_page()
        page.goto(daemon.url)
        waiting = page.locator("#sagas-waiting li")
        expect(waiting).to_have_count(2, timeout=20_000)
        expect(page.locator("#sagas-states")).to_have_text("2 waiting for an approval")
        expect(waiting.first).to_contain_text("waits for agree")
        page.locator("#sagas-panel").screenshot(path=daemon.path.with_name("sagas.png"))

        # When somebody says yes to one, and is sure
        yes = waiting.first.get_by_role("button", name="Approve")
        yes.click()
        yes.click()

        # Then it goes on, and the other still waits
        expect(waiting).to_have_count(1, timeout=20_000)
    until(lambda: [saga["state"] for saga in sagas(daemon)] == ["completed", "waiting"], 30.0, "one to complete")


def shown_live(daemon: DaemonProcess) -> str:
    """What the live page is told of sagas that wait."""
    with httpx.stream("GET", f"{daemon.url}/live", timeout=30) as answer:
        for line in answer.iter_lines():
            state = orjson.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
            if state.get("sagas"):
                return str(state["sagas"]["waiting"])
    return ""


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.fault("killed-in-a-saga")
def test_a_daemon_that_is_killed_at_every_place_carries_each_saga_to_one_end(
    pg: Database, daemon: DaemonProcess, tmp_path: Path
) -> None:
    # Given a daemon that dies, life after life, at another passage of another place, while payments fail
    payments = Payments(pg, daemon)
    for passage in (1, 2, 5):
        for place in PLACES:
            daemon.start(failpoint=f"{place}:kill@{passage}", ready=False)
            until(payments.go_on, 60.0, f"the death at {place}@{passage}")
            assert daemon.wait_exit() == -signal.SIGKILL, daemon.log[-4000:]

    # When it lives at last
    daemon.start()
    until(lambda: not payments.approve() and payments.all_ended(), 60.0, "all sagas to end")

    # Then each saga has come to one end, with every effect once by its key
    calls = world(tmp_path)
    effects = set(calls)
    for saga in sagas(daemon):
        history = [said["type"] for said in daemon.get(f"/sagas/{saga['id']}").json()["history"]]
        payment = daemon.get(f"/sagas/{saga['id']}").json()["data"]["id"]
        done = {name for name, key in effects if key.startswith(f"{saga['id']}:")}
        well = payment % 3 != 0
        assert saga["state"] == ("completed" if well else "compensated")
        assert done == ({"reserve", "pay", "tell"} if well else {"reserve", "release"})
        assert history.count("saga.completed") + history.count("saga.compensated") == 1
    assert len(calls) - len(effects) <= 3 * len(PLACES)
    facts = daemon.get("/facts", type="reserve_done", limit=1000).json()["facts"]
    assert sorted(int(fact["subject"]) for fact in facts) == list(range(1, payments.number + 1))
    assert_index_equals_table(daemon, pg)


class Payments:
    """They fail, one after the other, and somebody approves each refund."""

    def __init__(self, pg: Database, daemon: DaemonProcess) -> None:
        self._pg, self._daemon = pg, daemon
        self.number = 0

    def go_on(self) -> bool:
        """One more when all before are dealt with; whether the daemon has died."""
        try:
            self.approve()
            if self.all_ended():
                self.number += 1
                self._pg.execute("insert into payments values (%s)", [self.number])
        except httpx.TransportError:
            # It dies, or is not there yet.
            return not self._daemon.running
        return not self._daemon.running

    def approve(self) -> bool:
        """Everything that waits; whether anything did."""
        waiting = sagas(self._daemon, "waiting")
        for saga in waiting:
            self._daemon.post(f"/sagas/{saga['id']}/approve", {})
        return bool(waiting)

    def all_ended(self) -> bool:
        return len(sagas(self._daemon)) == self.number and not sagas(self._daemon, "open")
