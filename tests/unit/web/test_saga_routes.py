"""The routes of sagas over a real journal: who waits is listed, answered once, and by whom is not theirs to say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cdc_agent.errors import UsageError
from cdc_agent.grants import Grant
from cdc_agent.sagas import Approval, Saga, Step
from cdc_agent.sagas.operations import SagaOperations
from cdc_agent.web.app import create_app
from cdc_agent.web.live import _without_keys
from cdc_agent.web.tokens import Token, Tokens, digest_of
from tests.support.saga_world import House, World

TOKEN = "of-anna-and-nobody-else"
TOKENS = Tokens([Token(digest=digest_of(TOKEN), grant=Grant(name="anna", scopes=frozenset({"admin"})))])


class Service:
    def __init__(self, house: House | None) -> None:
        self.house = house

    def agents(self) -> Any:
        raise UsageError("there are none")

    def sagas(self) -> SagaOperations:
        if self.house is None:
            raise UsageError("this daemon has no sagas")
        return self.house.operations


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    world = World()
    steps = [Step("reserve", world.does("reserve"), undo=world.does("release")), Approval("agree")]
    house = House(tmp_path / "journal.sqlite", Saga("payout", steps))
    yield house
    house.file.close()


@pytest.fixture
def client(house: House) -> TestClient:
    return client_of(Service(house))


def client_of(service: Any) -> TestClient:
    app = create_app(service, tokens=TOKENS)
    return TestClient(app, base_url="http://127.0.0.1", headers={"Authorization": f"Bearer {TOKEN}"})


def test_sagas_are_listed_by_page_and_shown_with_their_history(client: TestClient, house: House) -> None:
    ids = [house.start("payout", number, {"cents": number}) for number in (1, 2, 3)]

    first = client.get("/sagas", params={"limit": 2}).json()
    second = client.get("/sagas", params={"limit": 2, "after": first["next_after"]}).json()
    shown = client.get(f"/sagas/{ids[0]}").json()

    assert [saga["id"] for saga in first["sagas"] + second["sagas"]] == ids
    assert (first["counts"], second["next_after"]) == ({"waiting": 3}, None)
    assert (shown["state"], shown["step"], shown["data"]) == ("waiting", "agree", {"cents": 1})
    assert shown["history"][-1]["type"] == "saga.approval_wanted"
    assert client.get("/sagas", params={"state": "completed"}).json()["sagas"] == []
    assert len(client.get("/sagas", params={"state": "all", "saga": "payout"}).json()["sagas"]) == 3


@pytest.mark.parametrize(
    ("action", "state"), [("approve", "completed"), ("reject", "compensating"), ("cancel", "compensating")]
)
def test_who_waits_is_answered_once_and_it_is_known_by_which_token(
    client: TestClient, house: House, action: str, state: str
) -> None:
    id_ = house.start("payout")

    answer = client.post(f"/sagas/{id_}/{action}", json={"by": "the boss", "note": "because"})
    again = client.post(f"/sagas/{id_}/{action}", json={})

    assert (answer.status_code, answer.json()["state"]) == (200, state)
    assert again.status_code == 400
    assert id_ in again.json()["error"]
    [said] = [
        e for e in house.book.history(house.one()) if e.event.type in {f"saga.{action}{e}" for e in ("d", "ed", "led")}
    ]
    assert said.event.data | {"by": "the boss", "note": "because", "token": "anna"} == said.event.data


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/sagas?state=sleeping", None, 400),
        ("GET", "/sagas?limit=0", None, 400),
        ("GET", "/sagas/nobody", None, 404),
        ("POST", "/sagas/nobody/approve", {}, 404),
        ("POST", "/sagas/{id}/bless", {}, 404),
        ("POST", "/sagas/{id}/approve", {"step": "other"}, 400),
        ("POST", "/sagas/{id}/approve", {"token": "carl"}, 400),
        ("POST", "/sagas/{id}/approve", {"note": "x" * 5_000}, 400),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    client: TestClient, house: House, method: str, path: str, body: Any, status: int
) -> None:
    id_ = house.start("payout")

    answer = client.request(method, path.format(id=id_), json=body)

    assert (answer.status_code, set(answer.json())) == (status, {"error", "hint"})
    assert house.one().state == "waiting"


def test_without_sagas_it_says_so() -> None:
    answer = client_of(Service(None)).get("/sagas")

    assert (answer.status_code, answer.json()["error"]) == (400, "this daemon has no sagas")


def test_whoever_may_see_numbers_only_is_not_told_who_waits() -> None:
    state = {"sagas": {"counts": {"waiting": 1}, "waiting": [{"key": "anna@example.org"}]}}

    assert _without_keys(state) == {"sagas": {"counts": {"waiting": 1}, "waiting": []}}
    assert _without_keys({"sagas": None}) == {"sagas": None}
