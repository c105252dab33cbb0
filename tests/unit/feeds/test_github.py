"""What GitHub's API says becomes a listing and documents; what it cannot say is an error, and nobody else is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc_agent.errors import FeedUnavailable
from cdc_agent.feeds.api import Api, below
from cdc_agent.feeds.github import HEADERS, GithubFeed, web_url_of
from cdc_agent.feeds.markdown import title_of
from cdc_agent.feeds.patterns import path_filter
from tests.support.fake_github import FakeGithub, blob_sha
from tests.support.vendor import Fault


@pytest.fixture
def github() -> Iterator[FakeGithub]:
    with FakeGithub() as github:
        yield github


NewFeed = Callable[..., GithubFeed]


@pytest.fixture
def api(github: FakeGithub) -> Iterator[Api]:
    api = Api(github.url, name="GitHub", token_file=None, headers=HEADERS, wall_clock=lambda: 1000.0)
    yield api
    api.close()


@pytest.fixture
def feed_of(github: FakeGithub, tmp_path: Path) -> Iterator[NewFeed]:
    """Makes feeds of the repository, and closes them."""
    made: list[GithubFeed] = []

    def make(**more: object) -> GithubFeed:
        made.append(_feed_of(github, tmp_path, **more))
        return made[-1]

    yield make
    for feed in made:
        feed.close()


def _feed_of(github: FakeGithub, folder: Path, **more: object) -> GithubFeed:
    (folder / "token").write_text(github.token)
    limits = {name: more.pop(name) for name in ("max_bytes", "whole_s") if name in more}
    api = Api(github.url, name="GitHub", token_file=folder / "token", headers=HEADERS, **limits)  # type: ignore[arg-type]
    settings = {
        "repository": github.repository,
        "branch": "main",
        "paths": ["**/*.md"],
        "web_url": "https://github.com",
        "max_file_bytes": 1000,
        "max_documents": 100,
        **more,
    }
    return GithubFeed(api, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("*.md", "a.md", "docs/a.md"),
        ("**/*.md", "a.md", "a.mdx"),
        ("**/*.md", "x/y/z.md", "x/y/z.md/q"),
        ("docs/**/*.md", "docs/a.md", "doc/a.md"),
        ("docs/**", "docs/x/y", "docs"),
        ("/docs/?.md", "docs/a.md", "docs/ab.md"),
        ("a+b(c).md", "a+b(c).md", "aab(c).md"),
        ("*.md", "ä\nö.md", "ä/ö.md"),
    ],
)
def test_a_pattern_matches_whole_paths(pattern: str, matching: str, other: str) -> None:
    assert path_filter(["nothing", pattern]).fullmatch(matching)
    assert not path_filter(["nothing", pattern]).fullmatch(other)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# Refunds\n\nWe pay.", "Refunds"),
        ("---\ntitle: 'In front'\n---\n# Below\n", "In front"),
        ("---\ndate: 2026\n---\n\n# Below #\n", "Below"),
        ("Text first.\n\n# Then a heading\n", "Then a heading"),
        ("```sh\n# no heading\n```\n", "a"),
        ("", "a"),
    ],
)
def test_a_file_is_called_what_it_calls_itself(text: str, title: str) -> None:
    assert title_of(text, "docs/a.md") == title


@pytest.mark.parametrize("truncate_over", [None, 2])
def test_a_listing_holds_files_alone_however_the_tree_is_told(
    github: FakeGithub, feed_of: NewFeed, truncate_over: int | None
) -> None:
    # Given files, links and folders, and an API that cuts a tree that is too large
    files = {f"docs/{n}/page.md": f"# {n}" for n in range(4)} | {"README.md": "# R", "a.txt": "x", "big.md": "x" * 1001}
    github.push(files, links={"docs/link.md": "../README.md"})
    github.truncate_over = truncate_over

    feed = feed_of()

    # Then the listing is the branch's Markdown, by the hash of its content, without what is too large, which is told
    wanted = {path: blob_sha(text.encode()) for path, text in files.items() if path.endswith(".md") and len(text) < 99}
    assert dict(feed.list()) == wanted
    assert "1 file(s) are larger than 1000 bytes and not indexed, such as big.md" in feed.oddities()[0]
    # A second listing of the same commit asks for the branch alone.
    asked = len(github.asked)
    feed.list()
    assert len(github.asked) == asked + 1


def test_a_document_has_every_column(github: FakeGithub, feed_of: NewFeed) -> None:
    github.push({"docs/a b.md": "# Ä\n\nText."})
    feed = feed_of()
    ((key, etag),) = feed.list().items()

    found = feed.fetch(key, etag)

    assert found is not None
    row = dict(zip(feed.columns, (value.decode() for value in found.row if value is not None), strict=True))
    assert row == {
        "path": "docs/a b.md",
        "title": "Ä",
        "body": "# Ä\n\nText.",
        "url": "https://github.com/octo/handbook/blob/main/docs/a%20b.md",
        "repository": "octo/handbook",
        "branch": "main",
        "sha": etag,
    }
    assert github.asked[-1].headers["x-github-api-version"] == "2022-11-28"
    assert github.asked[-1].headers["user-agent"].startswith("cdc-agent/")


def test_a_blob_that_is_another_one_is_not_believed(github: FakeGithub, feed_of: NewFeed) -> None:
    github.push({"a.md": "# The truth"})
    feed = feed_of()
    ((key, etag),) = feed.list().items()
    github.blobs[etag] = b"# A lie"

    with pytest.raises(FeedUnavailable, match="is not that blob"):
        feed.fetch(key, etag)

    # One that a force push took away is waited for, and the listing made anew
    del github.blobs[etag]
    with pytest.raises(FeedUnavailable, match="its branch has moved"):
        feed.fetch(key, etag)
    github.push({"b.md": "# Moved"})
    assert list(feed.list()) == ["b.md"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(500), "answers HTTP 500"),
        (Fault(301, {"location": "https://elsewhere.example/"}), "has moved .HTTP 301., and we follow nobody"),
        (Fault(200, body=b"<html>"), "no JSON"),
        (Fault(200, body=b'{"commit": 5}'), "lacks commit.sha"),
        (Fault(200, body=b"[1]"), "lacks commit.sha"),
        (Fault(200, body=b" " * 3000), "more than 2000 bytes"),
        (Fault(401, body=b"{}"), "refuses the token .HTTP 401."),
        (Fault(403, body=b'{"message": "Resource not accessible"}'), "refuses the token .HTTP 403."),
    ],
)
def test_what_cannot_be_is_refused_by_name(github: FakeGithub, feed_of: NewFeed, fault: Fault, message: str) -> None:
    github.push({"a.md": "# A"})
    feed = feed_of(max_bytes=2000)
    github.script(fault)

    with pytest.raises(FeedUnavailable, match=message) as caught:
        feed.list()

    assert caught.value.retryable
    assert github.token not in str(caught.value)
    assert len(github.asked) == 1
    assert list(feed.list()) == ["a.md"]


@pytest.mark.parametrize(
    ("status", "headers", "pause_s"),
    [
        (429, {"retry-after": "7"}, 7),
        (403, {"retry-after": "9"}, 9),
        (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1030"}, 30),
        (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "99999999"}, 3600),
        (429, {"retry-after": "tomorrow"}, 60),
        (429, {"x-ratelimit-remaining": "5", "x-ratelimit-reset": "1030"}, 60),
    ],
)
def test_a_limit_says_how_long_it_wants(
    github: FakeGithub, api: Api, status: int, headers: dict[str, str], pause_s: float
) -> None:
    github.script(Fault(status, headers))

    with pytest.raises(FeedUnavailable, match="limits our requests") as caught:
        api.get("/repos")

    assert caught.value.retry_after_s == pause_s


def test_a_secondary_limit_is_known_by_its_words(github: FakeGithub, api: Api) -> None:
    github.script(Fault(403, body=b'{"message": "You have exceeded a secondary rate limit."}'))

    with pytest.raises(FeedUnavailable, match="limits our requests"):
        api.get("/repos")


def test_no_name_leaves_its_place_in_an_address() -> None:
    assert below("repos", "a/../b", "ü?x#y") == "/repos/a%2F..%2Fb/%C3%BC%3Fx%23y"
    for name in ("", ".", ".."):
        with pytest.raises(FeedUnavailable):
            below("repos", name)


@pytest.mark.parametrize(
    ("address", "web"),
    [
        ("https://api.github.com", "https://github.com"),
        ("https://git.corp.example/api/v3", "https://git.corp.example"),
    ],
)
def test_people_read_where_the_server_is(address: str, web: str) -> None:
    assert web_url_of(address) == web
