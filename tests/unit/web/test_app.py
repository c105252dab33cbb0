"""The HTTP interface over a real socket: answers, refusals that name the field, limits, and who may talk to it."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cdc_agent import metrics
from cdc_agent.errors import (
    ConfigError,
    JournalError,
    JournalFull,
    StoreUnavailable,
    UsageError,
    VectorStoreError,
    WebhookMalformed,
    WebhookRefused,
)
from cdc_agent.events import Event
from cdc_agent.explain import Explanation, State, Verdict
from cdc_agent.explain.facts import GenerationFacts, Progress, RowFacts
from cdc_agent.journal.base import Entry, Letter, Query
from cdc_agent.ledger.base import DeadLetter, Resync
from cdc_agent.lsn import Lsn, Version
from cdc_agent.resync_order import ResyncOrder
from cdc_agent.search import HitSource, SearchHit
from cdc_agent.web import server as server_module
from cdc_agent.web.app import create_app
from cdc_agent.web.requests import MAX_BODY_BYTES
from cdc_agent.web.server import HttpServer
from cdc_agent.web.service import LetterPage, LetterQuery, Problem
from cdc_agent.web.tokens import Tokens
from cdc_agent.webhooks.inbox import Receipt

HIT = SearchHit(
    id="public.articles:1#7.0",
    document_id="public.articles:1",
    text="the cat sleeps",
    score=0.75,
    metadata={"lang": "en", "ratio": float("nan")},
    source=HitSource(table="public.articles", pk="1", commit_lsn="16/B374D848", commit_ts="2026-01-02T03:04:05+00:00"),
)
LETTER = DeadLetter(
    id=3,
    agent="indexer",
    collection="articles",
    document_id="public.articles:1",
    table="public.articles",
    key=("1",),
    version=Version(Lsn.parse("0/10"), 2),
    reason="render",
    error="column is bytea",
    attempts=3,
    parked_at=1_767_323_045.0,
)
AGENT_LETTER = Letter(
    agent="fraud",
    number=1,
    event=Event(
        id="e-2",
        source="agent/bank",
        type="purchase",
        key="7",
        time=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        data={"amount": 5},
        correlation_id="e-1",
        trail=("bank:0a",),
        hops=1,
    ),
    reason="failed",
    error="RuntimeError",
    attempts=5,
    parked_at=dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
)
EXPLANATION = Explanation(
    collection="articles",
    document_id="public.articles:1",
    table="public.articles",
    key=("1",),
    verdict=Verdict(state=State.FILTERED, in_index=False, sentence="It does not belong in it."),
    where="published",
    row=RowFacts(exists=True, matches=False, metadata={"ratio": float("nan")}),
    index=None,
    generation=GenerationFacts(number=1, physical="articles", model="m", fingerprint="f", created_at=""),
    dead_letter=None,
    pending=[],
    progress=Progress(applied_lsn="0/1", captured_lsn="0/2", source_lsn=None, lag_s=0.0, waiting=0, examined=0),
    resyncs=[],
    differences=[],
)
RESYNC = Resync(id=1, table="public.articles", collections=("articles",), rows_done=5, rows_estimated=9)
TOKEN = "a-token-of-enough-characters"


ENTRY = Entry(
    number=7,
    recorded_at=dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
    event=Event(id="e-1", source="github", type="github.push", time=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), data={}),
)


@dataclass(frozen=True)
class FakeAgent:
    name: str = "fraud"
    failed: str = ""


class FakeAgents:
    """One agent with one dead letter, number 1."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self._calls = calls

    def states(self) -> Sequence[FakeAgent]:
        return [FakeAgent()]

    def letters(self, agent: str, limit: int) -> list[Letter]:
        self._calls.append(("letters", agent, limit))
        return [AGENT_LETTER]

    def letter(self, agent: str, number: int) -> Letter | None:
        return AGENT_LETTER if (agent, number) == ("fraud", 1) else None

    def move_letter(self, agent: str, number: int, action: str) -> bool:
        self._calls.append((action, agent, number))
        return (agent, number) == ("fraud", 1)

    def chain(self, event: Event) -> list[Event]:
        return [event]

    def emit(self, events: Sequence[Event]) -> int:
        self._calls.append(("emit", *events))
        return len(events)


class FakeService:
    """Answers from attributes; remembers what it was asked."""

    def __init__(self) -> None:
        self.applied = Lsn.parse("0/100")
        self.problems: list[Problem] = []
        self.failure: Exception | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.asked: list[LetterQuery] = []
        self.hold: threading.Event | None = None
        self.held = threading.Semaphore(0)
        self.on_wait: Callable[[], None] = lambda: None
        self.turns = True

    def search(
        self,
        collection: str,
        query: str,
        *,
        k: int,
        where: Mapping[str, Any] | None,
        within: Mapping[str, Any] | None = None,
    ) -> Sequence[SearchHit]:
        self.calls.append((collection, query, k, where, within))
        if self.failure:
            raise self.failure
        if self.hold:
            self.held.release()
            self.hold.wait(20)
        return [HIT]

    def agents(self) -> FakeAgents:
        return FakeAgents(self.calls)

    def explain(self, collection: str, document: str, *, within: Mapping[str, Any] | None = None) -> Explanation | None:
        self.calls.append(("explain", collection, document))
        return EXPLANATION if within is None else None

    def collections(self) -> Sequence[Mapping[str, Any]]:
        return [{"name": "articles", "table": "public.articles", "metadata": ["lang"]}]

    def wait(self, lsn: Lsn, timeout_s: float) -> Lsn:
        self.calls.append(("wait", lsn))
        self.on_wait()
        if lsn > self.applied:
            threading.Event().wait(timeout_s)
            raise TimeoutError
        return self.applied

    def source_lsn(self) -> Lsn:
        return Lsn(0x300)

    def applied_lsn(self) -> Lsn:
        return self.applied

    def lag_s(self) -> float | None:
        return 0.5

    def status(self) -> dict[str, Any]:
        return {"state": "streaming"}

    def metrics(self) -> bytes:
        return metrics.render()

    def alive(self) -> bool:
        return self.turns

    def readiness(self) -> Sequence[Problem]:
        return self.problems

    def dead_letters(self, wanted: LetterQuery) -> LetterPage:
        self.asked.append(wanted)
        first = wanted.after < LETTER.id
        return LetterPage(letters=[LETTER] if first else [], next_after=LETTER.id if first else None, total=1)

    def replay_dead_letters(self, wanted: LetterQuery) -> int:
        self.calls.append(("replay", wanted))
        return 7

    def discard_dead_letters(self, wanted: LetterQuery) -> int:
        self.calls.append(("discard", wanted))
        return 7

    def dead_letter(self, letter_id: int) -> DeadLetter | None:
        return LETTER if letter_id == LETTER.id else None

    def replay_dead_letter(self, letter_id: int) -> bool:
        self.calls.append(("replay", letter_id))
        return letter_id == LETTER.id

    def discard_dead_letter(self, letter_id: int) -> bool:
        self.calls.append(("discard", letter_id))
        return letter_id == LETTER.id

    def webhook_limit(self, source: str) -> int | None:
        return 100 if source == "github" else None

    def take_webhook(self, source: str, headers: Mapping[str, str], body: bytes) -> Receipt:
        if self.failure is not None:
            raise self.failure
        self.calls.append((source, headers.get("x-signature"), body))
        return Receipt(events=1, new=1)

    def facts(self, wanted: Query) -> Sequence[Entry]:
        self.calls.append(("facts", wanted))
        return [ENTRY]

    def resyncs(self) -> Sequence[Resync]:
        return [RESYNC]

    def resync_rate(self, resync_id: int) -> float | None:
        return 2.0

    def start_resync(self, order: ResyncOrder) -> Sequence[Resync]:
        self.calls.append(order)
        return order.resyncs({"articles": "public.articles", "notes": "public.notes"}) and [RESYNC]

    def move_resync(self, resync_id: int, action: str) -> Resync | None:
        self.calls.append((resync_id, action))
        return RESYNC if resync_id == RESYNC.id else None


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeService, HttpServer]]:
    service = FakeService()
    server = HttpServer(create_app(service), host="127.0.0.1", port=0)
    server.start()
    yield service, server
    server.stop()


@pytest.fixture
def service(running: tuple[FakeService, HttpServer]) -> FakeService:
    service, _ = running
    service.__init__()  # type: ignore[misc]
    return service


@pytest.fixture
def client(running: tuple[FakeService, HttpServer], service: FakeService) -> Iterator[httpx.Client]:
    _, server = running
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False, timeout=20) as client:
        yield client


SEARCH = {"collection": "articles", "query": "cat"}


# Search and wait.


def test_search_answers_hits_with_their_source_and_how_fresh_they_are(client, service):
    answer = client.post("/search", json=SEARCH | {"k": 3, "where": {"lang": "en"}})

    assert answer.status_code == 200
    assert answer.json() == {
        "applied_lsn": "0/100",
        "lag_s": 0.5,
        "hits": [
            {
                "id": "public.articles:1#7.0",
                "document_id": "public.articles:1",
                "text": "the cat sleeps",
                "score": 0.75,
                "metadata": {"lang": "en", "ratio": None},
                "source": {
                    "table": "public.articles",
                    "pk": "1",
                    "commit_lsn": "16/B374D848",
                    "commit_ts": "2026-01-02T03:04:05+00:00",
                },
                "stale": False,
            }
        ],
    }
    assert service.calls == [("articles", "cat", 3, {"lang": "en"}, None)]


def test_search_has_defaults(client, service):
    client.post("/search", json=SEARCH)

    assert service.calls == [("articles", "cat", 5, None, None)]


def test_search_waits_for_a_commit_first(client, service):
    answer = client.post("/search", json=SEARCH | {"min_lsn": "0/100"})

    assert answer.status_code == 200
    assert [call[0] for call in service.calls] == ["wait", "articles"]


@pytest.mark.parametrize("ask", ["search", "wait"])
def test_a_commit_that_is_not_reached_in_time_is_504(client, service, ask):
    # Given an index that is behind
    # When a later commit is asked for, with no time to wait
    if ask == "search":
        answer = client.post("/search", json=SEARCH | {"min_lsn": "0/200", "timeout_s": 0})
    else:
        answer = client.get("/wait", params={"lsn": "0/200", "timeout_s": 0})

    # Then the answer says how far the index is, and nothing was searched
    assert answer.status_code == 504
    assert answer.json()["error"] == "the index did not reach 0/200 within 0 s; it is at 0/100"
    assert answer.json()["applied_lsn"] == "0/100"
    assert "timeout_s" in answer.json()["hint"]
    assert [call[0] for call in service.calls] == ["wait"]


def test_wait_answers_how_far_the_index_is(client):
    assert client.get("/wait", params={"lsn": "0/FF"}).json() == {"applied_lsn": "0/100", "lag_s": 0.5}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"query": "cat"}, "collection is missing"),
        (SEARCH | {"k": 0}, "k: should be greater than or equal to 1"),
        (SEARCH | {"k": "5"}, "k: should be a valid integer"),
        (SEARCH | {"top_k": 5}, "top_k is not a known field"),
        (SEARCH | {"where": "lang"}, "where: should be an object"),
        (SEARCH | {"query": 7}, "query: should be text"),
        (SEARCH | {"min_lsn": "soon"}, "min_lsn: not an LSN: 'soon'"),
        (SEARCH | {"min_lsn": 7}, 'min_lsn: should be text like 16/B374D848, or "now"'),
        (SEARCH | {"timeout_s": 1e9}, "timeout_s: should be less than or equal to 300"),
        ([], "the body is not a JSON object"),
    ],
)
def test_a_wrong_field_is_named(client, service, body, error):
    answer = client.post("/search", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"].startswith(error)
    assert "collection, query, k, where, min_lsn, timeout_s" in answer.json()["hint"]
    assert service.calls == []


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b'{"k": NaN}'])
def test_a_body_that_is_no_json_is_refused(client, body):
    answer = client.post("/search", content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]


def test_an_empty_body_says_what_is_missing(client):
    assert client.post("/search").json()["error"] == "collection is missing"


@pytest.mark.parametrize("query", [{}, {"lsn": "x"}, {"lsn": "0/1", "timeout_s": "soon"}, {"lsn": "0/1", "a": "b"}])
def test_wait_refuses_what_it_cannot_read(client, query):
    answer = client.get("/wait", params=query)

    assert answer.status_code == 400
    assert answer.json()["hint"] == "fields: lsn, timeout_s"


@pytest.mark.parametrize(
    ("failure", "status", "error"),
    [
        (UsageError("no such collection", hint="there is: articles"), 400, "no such collection"),
        (StoreUnavailable("the store is away", hint="start it"), 503, "the store is away"),
        (VectorStoreError("the store is corrupt", hint="resync"), 500, "the store is corrupt"),
    ],
)
def test_errors_of_the_daemon_are_json_with_a_hint(client, service, failure, status, error):
    service.failure = failure

    answer = client.post("/search", json=SEARCH)

    assert answer.status_code == status
    assert answer.json() == {"error": error, "hint": failure.hint}
    assert ("retry-after" in answer.headers) == (status == 503)


def test_a_bug_is_500_without_its_details(client, service):
    service.failure = RuntimeError("a secret detail")

    answer = client.post("/search", json=SEARCH)

    assert answer.status_code == 500
    assert set(answer.json()) == {"error", "hint"}
    assert "secret" not in answer.text


# Health, metrics, status.


def test_health_says_that_the_process_lives(client):
    assert client.get("/healthz").json()["status"] == "ok"


def test_a_loop_that_stands_still_is_not_healthy(client, service):
    service.turns = False

    answer = client.get("/healthz")

    assert (answer.status_code, answer.json()["status"]) == (503, "hung")
    assert "replication loop" in answer.json()["error"]


@pytest.mark.fault("slow-searches")
def test_health_and_status_answer_while_every_search_hangs(client, service, running):
    # Given more searches than there are threads for them, all stuck
    service.hold = threading.Event()
    port = running[1].port
    threads = [
        threading.Thread(target=httpx.post, args=(f"http://127.0.0.1:{port}/search",), kwargs={"json": SEARCH})
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for _ in range(16):
        assert service.held.acquire(timeout=20)

    # Then health, readiness and status answer
    try:
        for path in ("/healthz", "/readyz", "/status", "/metrics"):
            assert client.get(path, timeout=5).status_code == 200
    finally:
        service.hold.set()
        for thread in threads:
            thread.join()


def test_readiness_lists_problems_with_their_remedies(client, service):
    assert client.get("/readyz").json() == {"status": "ready", "problems": []}

    service.problems = [Problem(name="SLOT_LOST", message="the slot is gone", hint="resync")]
    answer = client.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["error"] == "not ready: SLOT_LOST"
    assert answer.json()["problems"] == [{"name": "SLOT_LOST", "message": "the slot is gone", "hint": "resync"}]


def test_metrics_are_in_prometheus_format(client):
    answer = client.get("/metrics")

    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE cdc_agent_freshness_seconds histogram" in answer.text


def test_status_is_what_the_daemon_says(client):
    assert client.get("/status").json() == {"state": "streaming"}


# Webhooks and facts.


def test_a_webhook_is_handed_over_as_it_came(client, service):
    answer = client.post("/webhooks/github", content=b"\xff {}", headers={"X-Signature": "s"})

    assert (answer.status_code, answer.json()) == (202, {"events": 1, "new": 1})
    assert service.calls == [("github", "s", b"\xff {}")]


@pytest.mark.parametrize(
    ("failure", "status"),
    [(WebhookRefused("no"), 401), (WebhookMalformed("no"), 400), (JournalFull("no"), 503), (JournalError("no"), 500)],
)
def test_a_webhook_that_is_not_taken_says_whose_fault_it_is(client, service, failure, status):
    service.failure = failure

    assert client.post("/webhooks/github", content=b"{}").status_code == status


@pytest.mark.parametrize(
    ("source", "content", "headers", "status"),
    [
        ("gitlab", b"{}", {}, 404),
        ("github", b"x" * 101, {}, 413),
        ("github", b"{}", {"content-encoding": "gzip"}, 415),
    ],
)
def test_what_is_no_delivery_is_not_handed_over(client, service, source, content, headers, status):
    answer = client.post(f"/webhooks/{source}", content=content, headers=headers)

    assert answer.status_code == status
    assert service.calls == []


def test_facts_are_cloudevents_with_their_place(client, service):
    answer = client.get("/facts", params={"type": "github.*", "since": "2026-11-27T12:00:00+02:00", "limit": 1})

    [fact] = answer.json()["facts"]
    assert answer.json()["next_after"] == 7
    assert (fact["specversion"], fact["id"], fact["entry"]) == ("1.0", "e-1", 7)
    assert fact["recordedtime"] == "2026-01-02T03:04:05.000+00:00"
    [(_, wanted)] = service.calls
    assert (wanted.type, wanted.since.isoformat(), wanted.limit) == ("github.*", "2026-11-27T12:00:00+02:00", 1)


@pytest.mark.parametrize(
    "params", [{"since": "yesterday"}, {"since": "2026-11-27T12:00:00"}, {"limit": 0}, {"typ": "a"}]
)
def test_a_question_about_facts_that_is_none_is_refused(client, params):
    assert client.get("/facts", params=params).status_code == 400


# Dead letters and resyncs.


def test_dead_letters_are_listed_and_shown(client):
    letter = client.get("/dead-letters/3").json()

    assert client.get("/dead-letters").json() == {"dead_letters": [letter], "next_after": 3, "total": 1}
    assert letter["version"] == "0/10.2"
    assert letter["key"] == ["1"]
    assert letter["parked_at"] == "2026-01-02T03:04:05.000+00:00"


def test_some_dead_letters_are_listed_page_by_page(client, service):
    answer = client.get("/dead-letters", params={"collection": "docs", "reason": "render", "after": 3, "limit": 10})

    assert answer.json() == {"dead_letters": [], "next_after": None, "total": 1}
    assert service.asked == [LetterQuery(collection="docs", reason="render", after=3, limit=10)]


@pytest.mark.parametrize("limit", ["0", "1001", "many"])
def test_a_page_of_another_size_is_refused(client, limit):
    answer = client.get("/dead-letters", params={"limit": limit})

    assert (answer.status_code, answer.json()["error"].partition(":")[0]) == (400, "limit")


@pytest.mark.parametrize(("action", "status"), [("replay", 202), ("discard", 200)])
@pytest.mark.parametrize("body", [{"reason": "render"}, {"collection": "docs"}, {"all": True}])
def test_many_dead_letters_are_replayed_or_discarded_at_once(client, service, action, status, body):
    answer = client.post(f"/dead-letters/{action}", json=body)

    assert (answer.status_code, answer.json()) == (status, {f"{action}ed": 7})
    assert service.calls == [(action, LetterQuery(collection=body.get("collection"), reason=body.get("reason")))]


@pytest.mark.parametrize("action", ["replay", "discard"])
def test_all_dead_letters_are_not_meant_by_saying_nothing(client, service, action):
    answer = client.post(f"/dead-letters/{action}", json={})

    assert (answer.status_code, answer.json()["hint"]) == (400, "give collection, reason, or all: true")
    assert service.calls == []


@pytest.mark.parametrize(("action", "status"), [("replay", 202), ("discard", 200)])
def test_a_dead_letter_is_replayed_or_discarded(client, service, action, status):
    answer = client.post(f"/dead-letters/3/{action}")

    assert answer.status_code == status
    assert service.calls == [(action, 3)]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/dead-letters/4"),
        ("POST", "/dead-letters/4/replay"),
        ("POST", "/dead-letters/4/discard"),
        ("GET", f"/dead-letters/{10**30}"),
    ],
)
def test_a_dead_letter_that_is_not_there_is_404(client, method, path):
    answer = client.request(method, path)

    assert answer.status_code == 404
    assert answer.json()["error"].startswith("there is no dead letter")


def test_resyncs_are_listed_and_begun(client, service):
    assert client.get("/resyncs").json()["resyncs"][0]["rows_done"] == 5

    answer = client.post("/resyncs", json={"table": "public.articles", "keys": [["1"], ["2"]], "reason": "audit"})

    assert answer.status_code == 202
    assert service.calls == [ResyncOrder(table="public.articles", keys=(("1",), ("2",)), reason="audit")]


def test_progress_has_a_rate_and_an_estimate_of_the_time_left(client):
    found = client.get("/resyncs").json()["resyncs"][0]

    assert (found["rows_per_s"], found["eta_s"]) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"keys": [["1"]]}, "keys without table"),
        ({"where": "true"}, "where without table"),
        ({"table": "public.notes", "where": "true", "keys": [["1"]]}, "keys and where at once"),
        ({"table": "nothing"}, "no collection is made of table nothing"),
        ({"collection": "nothing"}, "there is no collection 'nothing'"),
        ({"collection": "notes", "table": "public.articles"}, "collection notes is not made of table public.articles"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(client, body, error):
    answer = client.post("/resyncs", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"] == error


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
def test_a_resync_is_paused_resumed_and_cancelled(client, service, action):
    assert client.post(f"/resyncs/1/{action}").json()["id"] == 1
    assert service.calls == [(1, action)]


@pytest.mark.parametrize("path", ["/resyncs/2/pause", "/resyncs/1/explode", f"/resyncs/{10**30}/cancel"])
def test_a_resync_or_an_action_that_is_not_there_is_404(client, path):
    assert client.post(path).status_code == 404


# Limits and refusals.


def test_an_unknown_route_and_a_wrong_method_are_json(client):
    for answer, status in ((client.get("/nowhere"), 404), (client.get("/search"), 405)):
        assert answer.status_code == status
        assert set(answer.json()) == {"error", "hint"}


@pytest.mark.fault("oversize-request")
def test_a_body_that_says_it_is_too_large_is_refused(client):
    answer = client.post("/search", content=b"x" * (MAX_BODY_BYTES + 1))

    assert answer.status_code == 413
    assert answer.json()["hint"] == f"the most is {MAX_BODY_BYTES} bytes"


@pytest.mark.fault("oversize-request")
def test_a_body_that_grows_too_large_is_refused_while_it_comes(client):
    # Given a body of unknown length that never ends
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 50 * MAX_BODY_BYTES:
            sent += 64 * 1024
            yield b"x" * 64 * 1024

    # When it is sent
    try:
        assert client.post("/search", content=endless()).status_code == 413
    except httpx.TransportError:
        pass  # The server hung up while we were still sending; which of the two we see is a race.

    # Then only a part of it was taken
    assert sent < 50 * MAX_BODY_BYTES


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}])
def test_web_pages_of_other_sites_are_refused(client, service, headers):
    answer = client.post("/dead-letters/3/discard", headers=headers)

    assert answer.status_code == 403
    assert answer.json()["hint"]
    assert service.calls == []


def test_our_own_pages_are_served(client, running):
    origin = f"http://127.0.0.1:{running[1].port}"

    assert client.post("/search", json=SEARCH, headers={"Origin": origin}).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8765", "[::1]:8765"])
def test_every_name_of_this_machine_is_taken(client, host):
    assert client.get("/status", headers={"Host": host}).status_code == 200


# Tokens.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"# two of them\n{TOKEN}\n\nanother-token-of-enough-characters\n")
    server = HttpServer(create_app(FakeService(), tokens=Tokens.load(path)), host="127.0.0.1", port=0)
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
        yield client
    server.stop()


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", "bearer another-token-of-enough-characters"])
def test_a_known_token_opens_the_door(guarded, header):
    headers = {"Authorization": header, "Host": "search.example"}

    assert guarded.get("/status", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer # two of them"]
)
def test_anything_else_does_not(guarded, header):
    answer = guarded.get("/status", headers={"Authorization": header})

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert set(answer.json()) == {"error", "hint"}


def test_health_needs_no_token(guarded):
    assert guarded.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("# none\n", "holds no token"), ("short\n", "too short"), (f"{TOKEN} x\n", "odd signs")],
)
def test_a_tokens_file_that_protects_nothing_is_refused(tmp_path: Path, content, message):
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigError, match=message) as caught:
        Tokens.load(path)

    assert caught.value.hint


# The server itself.


def test_a_port_that_is_taken_is_named():
    # Given a port in use
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        # When a server wants it
        with pytest.raises(ConfigError) as caught:
            HttpServer(create_app(FakeService()), host="127.0.0.1", port=port).start()

    # Then the error names it
    assert caught.value.message == f"http.port: {port} on 127.0.0.1 is taken by another process"
    assert "http.port" in caught.value.hint


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_ours_is_named(host):
    with pytest.raises(ConfigError, match=r"http\.host"):
        HttpServer(create_app(FakeService()), host=host, port=0).start()


def test_a_server_stops_while_a_client_waits():
    # Given a client that waits for a commit that never comes
    service = FakeService()
    asked = threading.Event()
    service.on_wait = asked.set
    server = HttpServer(create_app(service), host="127.0.0.1", port=0)
    server.start()
    waiting = threading.Thread(
        target=_ignore_errors, args=(f"http://127.0.0.1:{server.port}/wait?lsn=1/0&timeout_s=300",)
    )
    waiting.start()
    assert asked.wait(20)

    # When the server stops
    server.stop()
    waiting.join(20)

    # Then both are gone, long before the client's time is up
    assert not server.alive
    assert not waiting.is_alive()


@pytest.mark.fault("silent-clients")
def test_a_connection_that_asks_for_nothing_is_closed(monkeypatch):
    # Given a server with little patience
    monkeypatch.setattr(server_module, "HEADER_TIMEOUT_S", 0.2)
    server = HttpServer(create_app(FakeService()), host="127.0.0.1", port=0)
    server.start()

    # When a client connects and sends half a request
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent:
        silent.sendall(b"GET /healthz HT")

        # Then the server hangs up
        assert silent.recv(1) == b""
    server.stop()


def test_five_hundred_connections_that_say_nothing_keep_nobody_out():
    # Given a server, and five hundred connections of which half have begun a request
    server = HttpServer(create_app(FakeService()), host="127.0.0.1", port=0)
    server.start()
    with contextlib.ExitStack() as held, httpx.Client(trust_env=False, timeout=20) as client:
        address = ("127.0.0.1", server.port)
        sockets = [held.enter_context(socket.create_connection(address, timeout=20)) for _ in range(500)]
        for silent in sockets[:250]:
            silent.sendall(b"GET /status HT")

        # When somebody asks whether it lives
        answers = [client.get(f"http://127.0.0.1:{server.port}/healthz") for _ in range(20)]

    # Then it says so, at once
    server.stop()
    assert {answer.status_code for answer in answers} == {200}
    assert min(answer.elapsed.total_seconds() for answer in answers) < 0.1


def _ignore_errors(url: str) -> None:
    try:
        httpx.get(url, timeout=60)
    except httpx.HTTPError:
        pass


@pytest.mark.parametrize("path", ["/documents/articles/public.articles%3A1", "/documents/articles/a%2Fb%252Cc"])
def test_a_document_is_named_by_any_id(service: FakeService, client: httpx.Client, path: str) -> None:
    answer = client.get(path)

    assert answer.status_code == 200
    assert service.calls == [("explain", "articles", "public.articles:1" if "public" in path else "a/b%2Cc")]
    assert answer.json()["verdict"] == {
        "state": "filtered",
        "in_index": False,
        "sentence": "It does not belong in it.",
        "remedy": "",
    }
    assert answer.json()["row"]["metadata"] == {"ratio": None}


def test_collections_say_what_conditions_may_name(client: httpx.Client) -> None:
    answer = client.get("/collections")

    assert answer.json() == {"collections": [{"name": "articles", "table": "public.articles", "metadata": ["lang"]}]}
