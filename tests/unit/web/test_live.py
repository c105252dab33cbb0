"""``/`` and ``/live`` over a real socket: the page's policy, and a stream that costs nothing and holds nobody up."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import orjson
import pytest

from cdc_agent.grants import Grant
from cdc_agent.web import live as live_module
from cdc_agent.web.app import create_app
from cdc_agent.web.live import Part
from cdc_agent.web.server import HttpServer
from cdc_agent.web.tokens import Token, Tokens, digest_of
from tests.support.wait import until
from tests.unit.web.test_app import FakeService


class FakeSource:
    """Counts what is read of it."""

    def __init__(self, *, stopping: bool = False) -> None:
        self.stopping = stopping
        self.log: list[dict[str, Any]] = [{"number": 1, "op": "c", "key": ["1"]}]
        self.reads = 0
        self.broken = False
        self.hold: threading.Event | None = None

    @property
    def newest_change(self) -> int:
        return len(self.log)

    def parts(self) -> Sequence[Part]:
        return (Part("pulse", 0.02, self._pulse), Part("work", 0.02, self._work))

    def hello(self) -> dict[str, Any]:
        return {"version": "1"}

    def changes(self, after: int) -> Sequence[dict[str, Any]]:
        return self.log[after:]

    def _pulse(self) -> dict[str, Any]:
        self.reads += 1
        return {"reads": self.reads}

    def _work(self) -> dict[str, Any]:
        if self.hold is not None:
            self.hold.wait(20)
        if self.broken:
            raise RuntimeError("no")
        resync = {"id": 1, "keys": [["anna@example.org"]], "where": "name = 'Anna'", "error": "", "rows_done": 5}
        return {"resyncs": [resync], "dead_letters": {"count": 1, "first": [{"key": ["anna@example.org"]}]}}


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def url(source: FakeSource) -> Iterator[str]:
    server = HttpServer(create_app(FakeService(), live=source), host="127.0.0.1", port=0)
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    source.stopping = True
    server.stop()


def events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, orjson.loads(line.removeprefix("data: "))


def watch(url: str, token: str = "") -> Any:
    return httpx.stream("GET", f"{url}/live", headers={"Authorization": f"Bearer {token}"} if token else {})


# -- the page ----------------------------------------------------------------------------------------------------


def test_the_page_is_one_document_that_may_do_next_to_nothing(url: str) -> None:
    answer = httpx.get(url)

    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        [inside] = re.findall(rf"<{kind}>(.*?)</{kind}>", answer.text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    # Nothing from elsewhere, and nothing that parses text as markup or runs it.
    assert not re.search(r"(src|href)=[\"']?https?:", answer.text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", answer.text)
    assert not re.search(r"\sstyle=|\son\w+=", answer.text)


# -- the stream --------------------------------------------------------------------------------------------------


def test_nothing_is_read_while_nobody_watches(url: str, source: FakeSource) -> None:
    # Given nobody
    assert httpx.get(url).status_code == 200
    assert source.reads == 0

    # When somebody watches and goes
    with httpx.stream("GET", f"{url}/live") as response:
        heard = events(response)
        while next(heard)[0] != "state":
            continue
    assert source.reads > 0

    # Then reading ends soon
    def is_quiet() -> bool:
        before = source.reads
        time.sleep(0.1)
        return source.reads == before

    until(is_quiet, what="reading to end")


def test_a_watcher_hears_who_it_is_then_the_past_then_what_comes(url: str, source: FakeSource) -> None:
    with httpx.stream("GET", f"{url}/live") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        heard = events(response)
        assert next(heard) == ("hello", {"version": "1"})
        assert next(heard) == ("changes", source.log)
        name, state = next(heard)
        assert (name, "pulse" in state) == ("state", True)

        # When something changes, then only that is told
        source.log.append({"number": 2, "op": "u", "key": ["1"]})
        assert next(body for name, body in heard if name == "changes") == [{"number": 2, "op": "u", "key": ["1"]}]


def test_a_part_that_hangs_or_fails_leaves_the_others_alive(url: str, source: FakeSource) -> None:
    # Given a part that hangs
    source.hold = threading.Event()
    with httpx.stream("GET", f"{url}/live") as response:
        states = (body for name, body in events(response) if name == "state")
        assert "work" not in next(states)

        # When it fails instead, then it is null, and comes back when it can be read
        source.broken = True
        source.hold.set()
        assert next(state for state in states if "work" in state)["work"] is None
        source.broken = False
        assert next(state for state in states if state["work"])["work"]["resyncs"]


def test_two_watchers_cost_one_reading(url: str, source: FakeSource) -> None:
    def readings(heard: Iterator[tuple[str, Any]]) -> list[int]:
        return [next(body["pulse"]["reads"] for name, body in heard if name == "state") for _ in range(3)]

    with httpx.stream("GET", f"{url}/live") as one, httpx.stream("GET", f"{url}/live") as other:
        first, second = readings(events(one)), readings(events(other))

    # Both were told of the same series of readings, each of them newer than the one before.
    assert first == sorted(set(first))
    assert second == sorted(set(second))


def test_too_many_watchers_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "MAX_WATCHERS", 1)
    with httpx.stream("GET", f"{url}/live") as response:
        heard = events(response)
        next(heard)

        refused = httpx.get(f"{url}/live")

    assert refused.status_code == 503
    assert refused.json()["hint"]


def test_a_watcher_is_told_that_the_daemon_stops(url: str, source: FakeSource) -> None:
    with httpx.stream("GET", f"{url}/live") as response:
        heard = events(response)
        next(heard)

        source.stopping = True

        # The stream ends by itself.
        assert list(heard)[-1] == ("bye", {})


@pytest.mark.parametrize(("scope", "sees"), [("admin", True), ("metrics", False)])
def test_keys_of_rows_are_for_administrators(source: FakeSource, scope: str, sees: bool) -> None:
    # Given a token for metrics, or for everything
    token = Token(digest=digest_of("a-token-of-its-own"), grant=Grant(name="one", scopes=frozenset({scope})))
    server = HttpServer(create_app(FakeService(), tokens=Tokens([token]), live=source), host="127.0.0.1", port=0)
    server.start()
    source.log[0]["key"] = ["anna@example.org"]

    # When it watches
    with watch(f"http://127.0.0.1:{server.port}", "a-token-of-its-own") as response:
        heard: list[Any] = []
        for name, body in events(response):
            heard.append(body)
            if name == "state" and "work" in body:
                break
    source.stopping = True
    server.stop()

    # Then numbers are there in any case, and names of rows only for who administers
    assert heard[-1]["work"]["dead_letters"]["count"] == 1
    assert heard[-1]["work"]["resyncs"][0]["rows_done"] == 5
    assert ("Anna" in str(heard) or "anna" in str(heard)) == sees
