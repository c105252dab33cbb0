"""Every door and every kind of token: who comes in where. A route without an entry here fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from cdc_agent.errors import ConfigError, NotPermitted
from cdc_agent.grants import Grant
from cdc_agent.web.access import Door, only_doors
from cdc_agent.web.app import create_app
from cdc_agent.web.server import HttpServer
from cdc_agent.web.tokens import Token, Tokens, digest_of, entry, parse_tokens, read_tokens
from tests.unit.web.test_app import FakeService
from tests.unit.web.test_live import FakeSource

#: What each kind of caller is answered: "ok" is anything but 401 and 403.
OPEN = dict.fromkeys(("none", "bad", "search", "metrics", "events", "admin", "tenant"), "ok")
ANYBODY = OPEN | {"none": 401, "bad": 401}
NOBODY = ANYBODY | dict.fromkeys(("search", "metrics", "events", "admin", "tenant"), 403)
SEARCH = NOBODY | {"search": "ok", "tenant": "ok"}
ADMIN = NOBODY | {"admin": "ok"}
METRICS = NOBODY | {"metrics": "ok"}
TABLE = {
    ("GET", "/"): OPEN,
    ("GET", "/live"): METRICS | {"admin": "ok"},
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): ANYBODY,
    ("GET", "/whoami"): ANYBODY,
    ("POST", "/search"): SEARCH,
    ("GET", "/collections"): SEARCH,
    ("GET", "/documents/{collection}/{document:path}"): SEARCH,
    ("POST", "/mcp"): SEARCH,
    ("GET", "/wait"): SEARCH | {"admin": "ok"},
    ("GET", "/metrics"): METRICS,
    ("GET", "/status"): METRICS | {"admin": "ok"},
    ("GET", "/dead-letters"): ADMIN,
    ("POST", "/dead-letters/replay"): ADMIN,
    ("POST", "/dead-letters/discard"): ADMIN,
    ("GET", "/dead-letters/{letter_id:int}"): ADMIN,
    ("POST", "/dead-letters/{letter_id:int}/replay"): ADMIN,
    ("POST", "/dead-letters/{letter_id:int}/discard"): ADMIN,
    ("GET", "/facts"): ADMIN,
    ("GET", "/agents"): METRICS | {"admin": "ok"},
    ("GET", "/agents/letters"): ADMIN,
    ("GET", "/agents/{agent}/letters/{number:int}"): ADMIN,
    ("POST", "/agents/{agent}/letters/{number:int}/{action}"): ADMIN,
    ("POST", "/events"): ADMIN | {"events": "ok"},
    ("GET", "/sagas"): ADMIN,
    ("GET", "/sagas/{saga_id}"): ADMIN,
    ("POST", "/sagas/{saga_id}/{action}"): ADMIN,
    ("POST", "/webhooks/{source}"): OPEN,
    ("GET", "/migrations"): ADMIN,
    ("POST", "/migrations"): ADMIN,
    ("POST", "/migrations/{collection}/{action}"): ADMIN,
    ("GET", "/resyncs"): ADMIN,
    ("POST", "/resyncs"): ADMIN,
    ("POST", "/resyncs/{resync_id:int}/{action}"): ADMIN,
    ("GET", "/verifies"): ADMIN,
    ("POST", "/verifies"): ADMIN,
    ("GET", "/verifies/{number:int}"): ADMIN,
}
#: What stands for the parameters of a path.
VALUES = {
    "letter_id": "3",
    "saga_id": "refund-1",
    "resync_id": "1",
    "number": "1",
    "collection": "articles",
    "action": "pause",
    "source": "github",
    "agent": "fraud",
}
CALLERS = list(OPEN)
SCOPED = [
    Token(digest=digest_of(f"token-for-{s}-only"), grant=Grant(name=s, scopes=frozenset({s}))) for s in CALLERS[2:6]
]
TENANT = Token(
    digest=digest_of("token-for-tenant-only"),
    grant=Grant(name="tenant", scopes=frozenset({"search"}), where={"tenant": "acme"}),
)


@pytest.fixture(scope="module")
def service() -> FakeService:
    return FakeService()


@pytest.fixture(scope="module")
def client(service: FakeService) -> Iterator[httpx.Client]:
    server = HttpServer(
        create_app(service, tokens=Tokens([*SCOPED, TENANT]), live=FakeSource(stopping=True)), host="127.0.0.1", port=0
    )
    server.start()
    # What the small service cannot answer is a failure behind the door, which ends the connection.
    with httpx.Client(
        base_url=f"http://127.0.0.1:{server.port}", headers={"Connection": "close"}, trust_env=False, timeout=20
    ) as client:
        yield client
    server.stop()


def headers(caller: str) -> dict[str, str]:
    return {} if caller == "none" else {"Authorization": f"Bearer token-for-{caller}-only"}


def doors() -> list[tuple[str, str]]:
    """Every method of every route of the application, as it is."""
    app = create_app(FakeService(), live=FakeSource())
    return [
        (method, door.path)
        for door in only_doors(app.routes)
        for method in sorted((door.methods or {"GET"}) - {"HEAD"})
    ]


def test_the_table_names_every_door_and_no_other() -> None:
    assert set(doors()) == set(TABLE), "say in TABLE who may come in"


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(("method", "path"), TABLE)
def test_who_comes_in_where(client: httpx.Client, method: str, path: str, caller: str) -> None:
    concrete = path
    for name, value in VALUES.items():
        concrete = concrete.replace(f"{{{name}:int}}", value).replace(f"{{{name}}}", value)

    # When this caller knocks at this door
    answer = client.request(method, concrete, headers=headers(caller), params={"lsn": "0/1", "timeout_s": "0"})

    # Then it is let in, or told why not, before its request is looked at
    wanted = TABLE[method, path][caller]
    if wanted == "ok":
        assert answer.status_code not in (401, 403), answer.text
    else:
        assert answer.status_code == wanted
        assert set(answer.json()) == {"error", "hint"}


def test_a_path_that_does_not_exist_says_so_only_to_a_known_token(client: httpx.Client) -> None:
    assert client.get("/nowhere").status_code == 401
    assert client.get("/nowhere", headers=headers("metrics")).status_code == 404


def test_a_wrong_method_does_not_open_a_door(client: httpx.Client) -> None:
    assert client.get("/search", headers=headers("metrics")).status_code == 403
    assert client.get("/search", headers=headers("search")).status_code == 405


def test_a_route_that_nobody_watches_is_refused() -> None:
    with pytest.raises(TypeError, match="/secret"):
        only_doors([Route("/secret", lambda _: PlainTextResponse("all of it"))])


def test_a_scope_that_does_not_exist_opens_nothing() -> None:
    with pytest.raises(ValueError, match="serach"):
        Door("/search", lambda _: PlainTextResponse(""), scopes={"serach"})


def test_a_token_can_ask_who_it_is(client: httpx.Client) -> None:
    assert client.get("/whoami", headers=headers("tenant")).json() == {
        "name": "tenant",
        "scopes": ["search"],
        "where": {"tenant": "acme"},
        "tokens": True,
    }


# Tenants at the door; what a search makes of it: tests/unit/test_grants.py.


def test_the_condition_of_a_token_goes_with_each_of_its_searches(client: httpx.Client, service: FakeService) -> None:
    body = {"collection": "articles", "query": "cat", "where": {"lang": "en"}}
    service.calls.clear()

    client.post("/search", json=body, headers=headers("tenant")).raise_for_status()
    client.post("/search", json=body, headers=headers("search")).raise_for_status()

    assert service.calls == [
        ("articles", "cat", 5, {"lang": "en"}, {"tenant": "acme"}),
        ("articles", "cat", 5, {"lang": "en"}, None),
    ]


def test_a_request_cannot_bring_a_condition_of_its_own(client: httpx.Client) -> None:
    body = {"collection": "articles", "query": "cat", "within": None}

    assert client.post("/search", json=body, headers=headers("tenant")).status_code == 400


def test_a_collection_that_cannot_be_parted_is_refused(client: httpx.Client, service: FakeService) -> None:
    service.failure = NotPermitted("this one cannot be parted", hint="store the column")

    answer = client.post("/search", json={"collection": "articles", "query": "cat"}, headers=headers("tenant"))

    service.failure = None
    assert (answer.status_code, answer.json()["error"]) == (403, "this one cannot be parted")


def test_a_tenant_is_not_told_what_is_wrong_with_others(client: httpx.Client, service: FakeService) -> None:
    from cdc_agent.health import Problem

    service.problems = [Problem(name="rows", message="row 7 of other_tenant", hint="look at it")]

    told = {caller: client.get("/readyz", headers=headers(caller)).text for caller in ("tenant", "metrics")}

    service.problems = []
    assert "other_tenant" not in told["tenant"]
    assert "other_tenant" in told["metrics"]


@pytest.mark.parametrize("origin", ["http://[", "http://evil.example", "null"])
def test_an_origin_that_is_not_ours_is_refused_whatever_it_looks_like(client: httpx.Client, origin: str) -> None:
    answer = client.get("/status", headers=headers("admin") | {"Origin": origin})

    assert answer.status_code == 403


# The file.

LONG = "a-token-of-enough-characters"


def entry_with(**changes: object) -> str:
    import yaml

    base: dict[str, object] = {"name": "app", "token": LONG, "scopes": ["search"]}
    return str(yaml.safe_dump([{key: value for key, value in (base | changes).items() if value is not None}]))


def test_a_file_with_one_token_a_line_opens_every_door() -> None:
    tokens = Tokens(parse_tokens(f"# ours\n{LONG}\n\n-{LONG}\n", "tokens"))

    for secret in (LONG, f"-{LONG}"):
        grant = tokens.grant(secret)
        assert grant is not None
        assert grant.allows("admin")
        assert grant.where is None


def test_a_list_says_who_may_do_what() -> None:
    # Given a list with a token, and one of which only the digest is written
    text = entry_with(scopes=["search", "metrics"]) + entry(
        "another-token-of-enough", name="acme", scopes=["search"], where={"tenant": "acme", "level": {"$in": [1, 2]}}
    )

    # When it is read
    tokens = Tokens(parse_tokens(text, "tokens"))

    # Then each token may do what stands beside it
    app, acme = tokens.grant(LONG), tokens.grant("another-token-of-enough")
    assert app == Grant(name="app", scopes=frozenset({"search", "metrics"}))
    assert acme is not None
    assert acme.where == {"$and": [{"tenant": "acme"}, {"level": {"$in": [1, 2]}}]}
    assert tokens.grant("a-token-of-nobody") is None
    # And what opens the door is not in what is kept.
    assert "another-token-of-enough" not in text
    assert LONG not in repr(parse_tokens(text, "tokens"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (entry_with(scopes=None), "scopes is missing"),
        (entry_with(scopes=[]), "scopes is missing"),
        (entry_with(scopes=["serach"]), "no scope 'serach'"),
        (entry_with(name=None), "name is not a short name"),
        (entry_with(name="a\nb"), "name is not a short name"),
        (entry_with(token="short"), "too short"),
        (entry_with(token=12345678901234567890), "no text"),
        (entry_with(token=None), "either token or token_sha256"),
        (entry_with(token_sha256="0" * 64), "either token or token_sha256"),
        (entry_with(token=None, token_sha256="0" * 63), "64 lower-case"),
        (entry_with(scope="search"), "'scope' is not a known key"),
        (entry_with() + entry_with(name="other"), "the same token twice"),
        (entry_with() + entry_with(token=LONG + "x"), "the same name twice"),
        (entry_with(where={}), "where: expected a condition"),
        (entry_with(where="tenant = 'acme'"), "where: expected a condition"),
        (entry_with(where={"tenant": None}), "where"),
        (entry_with(where={"$or": []}), "where"),
        (entry_with(where={"tenant": {"$ne": "globex"}}), r"\$ne is also true of rows without"),
        (entry_with(where={"$or": [{"a": 1}, {"b": {"$nin": [1]}}]}), r"\$nin is also true"),
        (entry_with(where={"tenant": "acme"}, scopes=["search", "admin"]), "may search and nothing else"),
        (entry_with(where={"tenant": "acme"}, scopes=["metrics"]), "may search and nothing else"),
        ("- just text\n", "is not a set of keys"),
        (f"- name: 'x\n  token: {LONG}\n", "not valid YAML"),
        (f"[{LONG}", "not valid YAML"),
    ],
)
def test_a_list_that_protects_less_than_it_seems_to_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_tokens(text, "http.tokens_file: tokens")

    assert caught.value.hint
    assert LONG not in str(caught.value)


def test_a_new_file_takes_the_place_of_the_old_one_unless_something_is_wrong_with_it(tmp_path: Path) -> None:
    # Given tokens from a file that was changed since
    path = tmp_path / "tokens"
    path.write_text(f"{LONG}\n")
    tokens = Tokens.load(path)
    path.write_text(f"{LONG}-newer\n")

    # When it is read again, then the new one counts
    tokens.renew(path)
    assert tokens.grant(LONG) is None
    assert tokens.grant(f"{LONG}-newer") is not None

    # When it is broken, then nothing changes
    path.write_text("short\n")
    with pytest.raises(ConfigError):
        tokens.renew(path)
    assert tokens.grant(f"{LONG}-newer") is not None
    assert [token.grant.name for token in read_tokens_of(f"{LONG}\n", tmp_path)] == ["line 1"]


def read_tokens_of(text: str, folder: Path) -> list[Token]:
    path = folder / "others"
    path.write_text(text)
    return read_tokens(path)
