"""The routes of migrations, over a service that only notes what it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from cdc_agent.daemon.consumers import StillBusy
from cdc_agent.errors import UsageError
from cdc_agent.web.app import create_app


class Notes:
    def __init__(self) -> None:
        self.asked: list[tuple[str | None, ...]] = []
        self.fails: Exception | None = None

    def agents(self) -> Any:
        raise UsageError("this daemon runs no agents of yours")

    def migrations(self) -> Sequence[Mapping[str, Any]]:
        return [{"collection": "docs", "generation": 1}]

    def start_migration(self, collection: str | None) -> Sequence[Mapping[str, Any]]:
        self.asked.append(("start", collection))
        return self._answer()

    def move_migration(self, collection: str, action: str) -> Sequence[Mapping[str, Any]]:
        self.asked.append((action, collection))
        return self._answer()

    def _answer(self) -> Sequence[Mapping[str, Any]]:
        if self.fails is not None:
            raise self.fails
        return self.migrations()


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def client(notes: Notes) -> TestClient:
    return TestClient(create_app(notes), base_url="http://127.0.0.1")  # type: ignore[arg-type]


def test_generations_are_listed_begun_and_moved(client: TestClient, notes: Notes) -> None:
    # When generations are listed, begun and moved
    listed = client.get("/migrations")
    begun = client.post("/migrations", json={"collection": "docs"})
    everything = client.post("/migrations", json={})
    moved = [client.post(f"/migrations/docs/{step}") for step in ("switch", "rollback", "finish", "abort")]

    # Then the service was asked for that, and its answer is the answer
    assert [r.status_code for r in (listed, begun, everything, *moved)] == [200, 202, 202, 200, 200, 200, 200]
    assert all(r.json() == {"generations": [{"collection": "docs", "generation": 1}]} for r in (listed, begun, *moved))
    steps = [("switch", "docs"), ("rollback", "docs"), ("finish", "docs"), ("abort", "docs")]
    assert notes.asked == [("start", "docs"), ("start", None), *steps]


def test_a_step_that_does_not_exist_is_a_404_and_asks_nobody(client: TestClient, notes: Notes) -> None:
    answer = client.post("/migrations/docs/explode")

    assert answer.status_code == 404
    assert "switch, rollback, finish, abort" in answer.json()["hint"]
    assert notes.asked == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(UsageError("no such collection", hint="look"), 400), (StillBusy("it is behind", hint="wait"), 503)],
)
def test_a_refusal_says_why_and_what_to_do(client: TestClient, notes: Notes, error: Exception, status: int) -> None:
    notes.fails = error
    answer = client.post("/migrations/docs/switch")

    assert answer.status_code == status
    assert answer.json()["error"] == error.args[0]
    assert answer.json()["hint"] in ("look", "wait")


def test_a_field_that_does_not_exist_is_refused(client: TestClient) -> None:
    answer = client.post("/migrations", json={"colection": "docs"})

    assert answer.status_code == 400
    assert "colection is not a known field" in answer.json()["error"]
