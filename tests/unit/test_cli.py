"""What the commands ask the daemon and what they print, against the real HTTP interface over a service of our own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.cli import main
from cdc_agent.cli.output import human_bytes, print_mapping
from cdc_agent.resync_order import ResyncOrder
from cdc_agent.web.access import Tokens
from cdc_agent.web.app import create_app
from cdc_agent.web.server import HttpServer
from cdc_agent.web.service import LetterQuery
from tests.unit.web.test_app import TOKEN, FakeService

CONFIG = """\
source: {{dsn: "postgresql://localhost/shop"}}
collections:
  - {{name: articles, table: articles, text: "{{title}}"}}
http: {{port: {port}, tokens_file: tokens}}
"""


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def config(service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The configuration of a daemon that runs, with tokens."""
    monkeypatch.delenv("CDC_AGENT_TOKEN", raising=False)
    (tmp_path / "tokens").write_text(TOKEN)
    server = HttpServer(create_app(service, tokens=Tokens.load(tmp_path / "tokens")), host="127.0.0.1", port=0)
    server.start()
    path = tmp_path / "agent.yaml"
    path.write_text(CONFIG.format(port=server.port))
    yield path
    server.stop()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(config: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command; returns exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "-c", str(config)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_search_prints_hits(run: Run, service: FakeService) -> None:
    code, out, _ = run("search", "cat", "-k", "3", "--where", '{"lang": "en"}')

    assert code == 0
    assert out == "0.750  public.articles:1\n       the cat sleeps\n"
    assert service.calls == [("articles", "cat", 3, {"lang": "en"}, None)]


def test_search_waits_for_a_commit_and_prints_json(run: Run, service: FakeService) -> None:
    code, out, _ = run("search", "cat", "--min-lsn", "0/100", "--json")

    assert code == 0
    assert json.loads(out)["hits"][0]["source"]["pk"] == "1"
    assert service.calls[0][0] == "wait"


def test_search_asks_which_collection_when_there_are_two(run: Run, config: Path, service: FakeService) -> None:
    # Given a second collection
    config.write_text(config.read_text().replace("http:", '  - {name: pages, table: p, text: "{t}"}\nhttp:'))

    # When none is named
    code, _, err = run("search", "cat")

    # Then they are listed, and naming one works
    assert code == 2
    assert "hint: add --collection NAME, one of: articles, pages" in err
    assert run("search", "cat", "--collection", "pages")[0] == 0
    assert service.calls[0][0] == "pages"


def test_search_repeats_what_the_daemon_refuses(run: Run) -> None:
    code, out, err = run("search", "cat", "-k", "1000")

    assert (code, out) == (2, "")
    assert err.startswith("error: k: should be less than or equal to 100\nhint: fields: ")


def test_wait_prints_how_far_the_index_is(run: Run) -> None:
    assert run("wait", "0/50") == (0, "applied_lsn: 0/100\n", "")


def test_wait_that_ends_too_early_is_a_reason_to_try_again(run: Run) -> None:
    code, _, err = run("wait", "0/500", "--timeout-s", "0")

    assert code == 75
    assert err.startswith("error: the index did not reach 0/500 within 0 s; it is at 0/100\nhint: ")


def test_status_prints_lines(run: Run) -> None:
    assert run("status") == (0, "state: streaming\n", "")


def test_options_may_stand_before_the_command(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "-c", str(config), "status"]) == 0
    assert json.loads(capsys.readouterr().out) == {"state": "streaming"}


def test_a_token_in_the_environment_goes_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_AGENT_TOKEN", "wrong")

    code, _, err = run("status")

    assert code == 78
    assert err.startswith("error: a valid token is required\nhint: ")


def test_a_host_that_is_no_address_is_named(run: Run, config: Path) -> None:
    config.write_text(config.read_text().replace("{port:", "{host: 'a b', port:"))

    code, _, err = run("status")

    assert code in (75, 78)
    assert err.startswith("error: ")


def test_dead_letters_are_listed_in_columns(run: Run) -> None:
    code, out, _ = run("dead-letters", "list")

    header, line = out.splitlines()
    assert code == 0
    assert header.split("\t")[:3] == ["id", "collection", "document_id"]
    assert line.split("\t")[:3] == ["3", "articles", "public.articles:1"]


@pytest.mark.parametrize(
    ("action", "said"),
    [("replay", "dead letter 3 is being indexed again\n"), ("discard", "dead letter 3 is forgotten\n")],
)
def test_a_dead_letter_is_dealt_with(run: Run, service: FakeService, action: str, said: str) -> None:
    assert run("dead-letters", action, "3") == (0, said, "")
    assert service.calls == [(action, 3)]


@pytest.mark.parametrize(
    ("action", "said"),
    [("replay", "7 dead letters are being indexed again\n"), ("discard", "7 dead letters are forgotten\n")],
)
def test_many_dead_letters_are_dealt_with_at_once(run: Run, service: FakeService, action: str, said: str) -> None:
    assert run("dead-letters", action, "--reason", "render") == (0, said, "")
    assert service.calls == [(action, LetterQuery(reason="render"))]


@pytest.mark.parametrize("args", [(), ("3", "--all"), ("3", "--collection", "articles")])
def test_which_dead_letters_are_meant_must_be_clear(run: Run, service: FakeService, args: tuple[str, ...]) -> None:
    code, _, err = run("dead-letters", "discard", *args)

    assert (code, service.calls) == (2, [])
    assert "give the number of a dead letter, or --collection, --reason or --all" in err


def test_a_dead_letter_is_shown(run: Run) -> None:
    _, out, _ = run("dead-letters", "show", "3")

    assert "error: column is bytea\n" in out
    assert "key:\n  - 1\n" in out


def test_a_dead_letter_that_is_not_there_is_a_usage_error(run: Run) -> None:
    code, _, err = run("dead-letters", "show", "4")

    assert code == 2
    assert err.startswith("error: there is no dead letter 4\n")


def test_a_resync_of_some_rows_is_begun(run: Run, service: FakeService) -> None:
    code, out, _ = run("resync", "--table", "public.articles", "--key", "1", "--key", '["a", 7]', "--reason", "audit")

    assert code == 0
    wanted = ResyncOrder(table="public.articles", keys=(("1",), ("a", "7")), reason="audit")
    assert service.calls == [wanted]
    assert out.splitlines()[1].startswith("1\tpublic.articles\trunning\t5\t9\t")


def test_keys_without_a_table_are_refused(run: Run, service: FakeService) -> None:
    code, _, err = run("resync", "--key", "1")

    assert code == 2
    assert err == "error: --key without --table\nhint: say which table the key belongs to\n"
    assert service.calls == []


def test_keys_come_from_a_file_and_go_in_portions(
    run: Run, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_agent.cli.resync._KEYS_AT_ONCE", 2)
    file = tmp_path / "keys"
    file.write_text('1\n["a", 7]\n\n3\n')

    assert run("resync", "--table", "public.articles", "--keys", str(file), "--rewrite")[0] == 0

    parts = [(("1",), ("a", "7")), (("3",),)]
    assert service.calls == [ResyncOrder(table="public.articles", keys=part, rewrite=True) for part in parts]


@pytest.mark.parametrize("content", [None, "", "[1"])
def test_a_file_without_keys_is_a_usage_error(
    run: Run, service: FakeService, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)

    code, _, err = run("resync", "--table", "public.articles", "--keys", str(file))

    assert code == 2
    assert err.startswith(f"error: --keys {file}: ")
    assert service.calls == []


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
def test_a_resync_is_moved_by_its_number(run: Run, service: FakeService, action: str) -> None:
    code, out, _ = run("resync", action, "1")

    assert code == 0
    assert service.calls == [(1, action)]
    assert out.splitlines()[1].startswith("1\tpublic.articles\t")


def test_moving_a_resync_needs_a_number_that_there_is(run: Run) -> None:
    assert run("resync", "pause")[0] == 2
    assert run("resync", "pause", "99")[0] == 2


def test_a_resync_that_failed_says_why_and_is_an_error(run: Run, service: FakeService) -> None:
    from dataclasses import replace

    (begun,) = service.resyncs()
    service.resyncs = lambda: [replace(begun, state="failed", error="the table is gone")]  # type: ignore[method-assign]

    code, _, err = run("resync", "--wait")

    assert code == 1
    assert err.splitlines()[-1] == "resync 1 failed: the table is gone"


def test_a_resync_is_followed_until_it_is_done(run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a resync that is done when it is looked at for the second time
    monkeypatch.setattr("cdc_agent.cli.resync._POLL_S", 0)
    from dataclasses import replace

    (begun,) = service.resyncs()
    states = iter([begun, replace(begun, state="done", rows_done=9)])
    service.resyncs = lambda: [next(states)]  # type: ignore[method-assign]

    # When it is followed
    code, out, err = run("resync", "--wait", "--json")

    # Then the last state is printed
    assert code == 0
    assert err == ""
    assert json.loads(out)["resyncs"][0]["state"] == "done"


@pytest.mark.parametrize(
    ("size", "shown"), [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**40, "5.0 TiB")]
)
def test_sizes_are_readable(size: int | None, shown: str) -> None:
    assert human_bytes(size) == shown


def test_nested_facts_are_indented(capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, Any] = {"a": {"b": 1, "c": None}, "d": [{"e": 1, "f": 2}], "g": []}

    print_mapping(facts)

    assert capsys.readouterr().out == "a:\n  b: 1\n  c: -\nd:\n  - e=1, f=2\ng: -\n"


# Tokens.


def test_a_new_token_opens_what_it_was_made_for(run: Run, tmp_path: Path) -> None:
    from cdc_agent.web.tokens import Tokens, read_tokens

    # When two tokens are made, one of them for a tenant
    path = tmp_path / "new-tokens"
    code, out, err = run("token", "new", "acme", "--where", '{"tenant": "acme"}', "--file", str(path), "--json")
    assert (code, err) == (0, "")
    code, shown, _ = run("token", "new", "board", "--scopes", "search,metrics", "--file", str(path))
    assert code == 0

    # Then the file lets both in, for that and nothing else, and does not hold them
    tenant, board = json.loads(out)["token"], shown.splitlines()[0].rpartition(" ")[2]
    tokens = Tokens.load(path)
    grants = [tokens.grant(token) for token in (tenant, board)]
    assert [(g.name, sorted(g.scopes), g.where) for g in grants if g] == [
        ("acme", ["search"], {"tenant": "acme"}),
        ("board", ["metrics", "search"], None),
    ]
    assert tenant not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(read_tokens(path)) == 2
    assert sorted(p.name for p in tmp_path.iterdir() if "new-tokens" in p.name) == ["new-tokens"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--scopes", "serach"], "no scope 'serach'"),
        (["x", "--where", "{}"], "where"),
        (["x", "--where", '{"a": 1}', "--scopes", "admin"], "may search and nothing else"),
        (["twice", "--file", "{list}"], "the same name twice"),
        (["x", "--file", "{plain}"], "one token a line"),
        (["x", "--file", "{folder}/nowhere/tokens"], "cannot be written"),
    ],
)
def test_a_token_that_would_not_do_is_refused(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    # Given a file of each form
    files = {"list": tmp_path / "list", "plain": tmp_path / "plain", "folder": tmp_path}
    run("token", "new", "twice", "--file", str(files["list"]))
    files["plain"].write_text("a-token-of-enough-characters\n")
    before = {name: path.read_text() for name, path in files.items() if path.is_file()}

    filled = [a.format(**files) if a.startswith(("{list", "{plain", "{folder")) else a for a in arguments]
    code, out, err = run("token", "new", *filled)

    assert code in (2, 78)
    assert words in err
    assert "hint: " in err
    assert out == ""
    assert {name: path.read_text() for name, path in files.items() if path.is_file()} == before


def test_a_file_of_digests_opens_nothing_for_the_command_line(tmp_path: Path) -> None:
    from cdc_agent.cli.daemon_client import _token_in
    from cdc_agent.errors import ConfigError
    from cdc_agent.web.tokens import entry

    path = tmp_path / "tokens"
    path.write_text(entry("a-token-of-enough-characters", name="app", scopes=["search"], where=None))

    with pytest.raises(ConfigError) as caught:
        _token_in(path)

    assert "CDC_AGENT_TOKEN" in caught.value.hint
    # One that is written out is taken, the one that may do most.
    path.write_text(path.read_text() + "- name: all\n  token: another-token-of-enough\n  scopes: [search, admin]\n")
    assert _token_in(path) == "another-token-of-enough"
