"""The routes of agents: what is told from outside is checked, and dead letters move."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cdc_agent.events import Event, Kind
from cdc_agent.web.app import create_app
from cdc_agent.web.server import HttpServer
from tests.unit.web.test_app import FakeService

TOLD = {"specversion": "1.0", "id": "e-9", "source": "cli", "type": "order.paid", "time": "2026-01-01T00:00:00Z"}


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[httpx.Client]:
    server = HttpServer(create_app(service), host="127.0.0.1", port=0)
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
        yield client
    server.stop()


def test_agents_and_their_letters_are_listed(service: FakeService, client: httpx.Client) -> None:
    assert client.get("/agents").json() == {"agents": [{"name": "fraud", "failed": ""}]}

    [letter] = client.get("/agents/letters", params={"agent": "fraud"}).json()["letters"]
    assert service.calls == [("letters", "fraud", 100)]
    assert (letter["number"], letter["type"], letter["trail"]) == (1, "purchase", ["bank"])
    # What happened may be secret, and stands only where one letter is asked for.
    assert "event" not in letter


def test_one_letter_comes_with_its_event_and_what_led_to_it(client: httpx.Client) -> None:
    letter = client.get("/agents/fraud/letters/1").json()

    assert letter["event"]["data"] == {"amount": 5}
    assert [event["id"] for event in letter["chain"]] == ["e-2"]
    assert client.get("/agents/fraud/letters/2").status_code == 404
    assert client.get(f"/agents/fraud/letters/{2**70}").status_code == 404


@pytest.mark.parametrize("action", ["replay", "discard"])
def test_a_letter_is_replayed_or_discarded(service: FakeService, client: httpx.Client, action: str) -> None:
    assert client.post(f"/agents/fraud/letters/1/{action}").status_code == 202
    assert service.calls == [(action, "fraud", 1)]
    assert client.post(f"/agents/fraud/letters/5/{action}").status_code == 404


def test_a_letter_can_do_nothing_else(client: httpx.Client) -> None:
    assert client.post("/agents/fraud/letters/1/burn").status_code == 404


@pytest.mark.parametrize("many", [False, True])
def test_events_are_told_one_or_many(service: FakeService, client: httpx.Client, many: bool) -> None:
    command = TOLD | {"id": "e-10", "kind": "command", "subject": "7", "data": {"a": 1}}

    answer = client.post("/events", json=[TOLD, command] if many else TOLD)

    assert answer.status_code == 202
    [(_, *events)] = service.calls
    assert answer.json() == {"events": len(events), "new": len(events)}
    assert isinstance(events[0], Event)
    assert [event.kind for event in events] == [Kind.FACT, Kind.COMMAND][: len(events)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"5", "no JSON object"),
        (b"[5]", "no JSON object"),
        (b"{}", "specversion"),
        (b'{"specversion": "1.0", "id": "", "source": "s", "type": "t"}', "id is missing"),
        (b'{"specversion": "1.0", "id": "a", "source": "s", "type": "t", "kind": "wish"}', "kind"),
        (b'{"specversion": "1.0", "id": "a", "source": "s", "type": "t", "time": "noon"}', "time"),
    ],
)
def test_what_is_no_event_is_said(service: FakeService, client: httpx.Client, body: bytes, said: str) -> None:
    answer = client.post("/events", content=body)

    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert service.calls == []


def test_too_many_at_once_are_refused(service: FakeService, client: httpx.Client) -> None:
    many: list[dict[str, Any]] = [TOLD] * 1001

    assert client.post("/events", json=many).status_code == 413
    assert service.calls == []
