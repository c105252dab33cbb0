"""A Notion page becomes Markdown; what happened to it is asked of Notion itself, and believed only when it is sure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.errors import FeedUnavailable
from cdc_agent.events import Event
from cdc_agent.feeds.api import Api
from cdc_agent.feeds.base import EVERYTHING, Ring
from cdc_agent.feeds.notion import HEADERS, NotionFeed
from tests.support.fake_notion import FakeNotion, block, text
from tests.support.vendor import Fault

EDITED = dt.datetime(2026, 11, 1, 10, 0, tzinfo=dt.UTC).timestamp()


@pytest.fixture
def notion() -> Iterator[FakeNotion]:
    with FakeNotion() as notion:
        yield notion


@pytest.fixture
def feed(notion: FakeNotion, tmp_path: Path) -> Iterator[NotionFeed]:
    (tmp_path / "token").write_text(notion.token)
    api = Api(notion.url, name="Notion", token_file=tmp_path / "token", headers=HEADERS)
    feed = NotionFeed(api, max_document_bytes=2000, max_documents=20, wall_clock=lambda: EDITED + 3600)
    yield feed
    feed.close()


def body_of(feed: NotionFeed, page: str) -> str:
    found = feed.fetch(page, "listed")
    assert found is not None
    return (found.row[feed.columns.index("body")] or b"").decode()


PAGE = [
    block("heading_1", "Refunds"),
    block("paragraph", "We pay money back."),
    block("bulleted_list_item", "by card", block("bulleted_list_item", "within days"), block("paragraph", "or so")),
    block("numbered_list_item", "first"),
    block("to_do", "done", checked=True),
    block("to_do", "open", checked=False),
    block("quote", "one\ntwo"),
    block("code", "a = 1\nb = 2", language="python"),
    block("divider"),
    {
        "type": "table",
        "table": {"table_width": 2},
        "children": [{"type": "table_row", "table_row": {"cells": [text("a"), text("b")]}, "children": []}],
    },
    {
        "type": "column_list",
        "column_list": {},
        "children": [{"type": "column", "column": {}, "children": [block("paragraph", "in a column")]}],
    },
    {
        "type": "child_page",
        "child_page": {"title": "Another page"},
        "children": [block("paragraph", "not of this one")],
    },
    {
        "type": "image",
        "image": {"type": "file", "file": {"url": "https://s3/signed?expires=1"}, "caption": text("A map")},
    },
    {"type": "bookmark", "bookmark": {"url": "https://example.com", "caption": []}},
    {"type": "unsupported", "unsupported": {}},
    {"type": "paragraph", "paragraph": {"rich_text": text("see ") + text("here", href="https://example.com/x")}},
]
MARKDOWN = """\
# Refunds

We pay money back.

- by card
    - within days

    or so

1. first
- [x] done
- [ ] open
> one
> two

```python
a = 1
b = 2
```

---

| a | b |

in a column

- Another page

A map

[https://example.com](https://example.com)

see [here](https://example.com/x)"""


def test_a_page_becomes_markdown_through_all_its_pages_and_levels(notion: FakeNotion, feed: NotionFeed) -> None:
    page = notion.write("About money", PAGE)

    assert body_of(feed, page) == MARKDOWN


def test_a_page_has_every_column(notion: FakeNotion, feed: NotionFeed) -> None:
    parent = notion.write("Above", [])
    properties = {
        "Status": {"type": "status", "status": {"name": "Ready"}},
        "Tags": {"type": "multi_select", "multi_select": [{"name": "a"}, {"name": "b"}]},
        "Due": {"type": "date", "date": {"start": "2026-12-01", "end": None}},
        "Empty": {"type": "select", "select": None},
        "Cost": {"type": "number", "number": 0},
        "Formula": {"type": "formula", "formula": {"type": "string", "string": "x"}},
    }
    page = notion.write("Money", [block("paragraph", "Text.")], parent=parent, properties=properties)

    found = feed.fetch(page, "")

    assert found is not None
    assert found.etag == notion.edited_at
    assert dict(zip(feed.columns, (value.decode() for value in found.row if value is not None), strict=True)) == {
        "id": page,
        "title": "Money",
        "body": "Text.",
        "properties": "Cost: 0\nDue: 2026-12-01\nStatus: Ready\nTags: a, b",
        "url": f"https://www.notion.so/{page.replace('-', '')}",
        "parent": parent,
        "created_at": "2026-01-01T00:00:00.000Z",
        "edited_at": notion.edited_at,
    }


def test_a_listing_goes_through_all_pages_and_leaves_the_trash_out(notion: FakeNotion, feed: NotionFeed) -> None:
    pages = [notion.write(f"Page {n}", []) for n in range(8)]
    notion.throw_away(pages[3])

    assert dict(feed.list()) == dict.fromkeys([*pages[:3], *pages[4:]], notion.edited_at)


def test_the_time_of_an_edit_of_this_minute_is_not_believed(notion: FakeNotion, feed: NotionFeed) -> None:
    notion.edited_at = "2026-11-01T10:59:00.000Z"
    page = notion.write("Young", [])

    found = feed.fetch(page, "")

    assert found is not None
    assert found.etag == ""


def test_what_lies_in_the_trash_or_below_something_there_is_gone(notion: FakeNotion, feed: NotionFeed) -> None:
    above = notion.write("Above", [])
    page = notion.write("Below", [], parent=above)
    assert feed.fetch(page, "") is not None

    notion.throw_away(above)
    assert feed.fetch(page, "") is None
    notion.throw_away(above, back=True)
    assert feed.fetch(page, "") is not None
    notion.throw_away(page)
    assert feed.fetch(page, "listed") is None
    assert feed.fetch("00000000-0000-0000-0000-000000000000", "") is None


@pytest.mark.parametrize(
    "blocks",
    [
        [block("paragraph", "x" * 500) for _ in range(5)],
        [block("toggle", "a", block("toggle", "b", *[block("paragraph", "y" * 600) for _ in range(4)]))],
    ],
)
def test_a_page_that_is_too_large_is_left_out_and_told_of(
    notion: FakeNotion, feed: NotionFeed, blocks: list[dict[str, Any]]
) -> None:
    page = notion.write("Large", blocks)
    assert feed.fetch(page, "listed") is None
    assert feed.oddities() == [f"1 page(s) are larger than 2000 bytes and not indexed, such as {page}"]

    notion.write("Small", [], page=page)
    assert feed.fetch(page, "listed") is not None
    assert feed.oddities() == []


def test_a_block_that_will_not_tell_what_it_holds_does_not_hold_up_its_page(
    notion: FakeNotion, feed: NotionFeed
) -> None:
    page = notion.write("Page", [{"type": "ai_block", "ai_block": {}, "children": []}, block("paragraph", "The rest.")])
    notion._children[page][0] |= {"has_children": True, "id": "11111111-1111-1111-1111-111111111111"}

    assert body_of(feed, page) == "The rest."


@pytest.mark.parametrize(
    ("kind", "key", "ring"),
    [
        ("page.content_updated", "13950b26c2034f3bb97d93ec06319565", "keys"),
        ("page.properties_updated", "13950b26-c203-4f3b-b97d-93ec06319565", "keys"),
        ("page.deleted", "13950b26-c203-4f3b-b97d-93ec06319565", "both"),
        ("page.moved", "13950b26-c203-4f3b-b97d-93ec06319565", "both"),
        ("database.deleted", "13950b26-c203-4f3b-b97d-93ec06319565", "whole"),
        ("database.content_updated", "13950b26-c203-4f3b-b97d-93ec06319565", None),
        ("comment.created", "13950b26-c203-4f3b-b97d-93ec06319565", None),
        ("page.created", "../users/me", None),
    ],
)
def test_an_event_says_where_to_look(feed: NotionFeed, kind: str, key: str, ring: str | None) -> None:
    event = Event(id="1", source="pages", type=f"notion.{kind}", key=key, time=dt.datetime.now(dt.UTC), data={})
    keys = frozenset(["13950b26-c203-4f3b-b97d-93ec06319565"])

    wanted = {"keys": Ring(keys), "both": Ring(keys, whole=True), "whole": EVERYTHING, None: None}[ring]
    assert feed.heed(event) == wanted


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(429, {"retry-after": "3"}), "limits our requests"),
        (Fault(401), "refuses the token"),
        (Fault(502), "answers HTTP 502"),
        (Fault(200, body=b'{"results": 5}'), "not a list"),
        (Fault(200, body=b'{"results": [{"object": "page", "last_edited_time": "t"}]}'), "lacks id"),
        (Fault(200, body=b'{"results": [], "has_more": true}'), "lacks next_cursor"),
        (Fault(409, body=b'{"message": "Conflict occurred while saving."}'), "not a list: Conflict"),
    ],
)
def test_what_cannot_be_is_refused_by_name(notion: FakeNotion, feed: NotionFeed, fault: Fault, message: str) -> None:
    notion.write("Page", [])
    notion.script(fault)

    with pytest.raises(FeedUnavailable, match=message):
        feed.list()
    assert len(feed.list()) == 1


def test_requests_are_paced_but_for_a_few_at_once(notion: FakeNotion) -> None:
    slept: list[float] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    api = Api(notion.url, name="Notion", token_file=None, headers=HEADERS, per_s=4, clock=lambda: now, sleep=sleep)
    for _ in range(13):
        with pytest.raises(FeedUnavailable):
            api.get("/v1/users/me")
    api.close()

    assert slept == pytest.approx([0.25, 0.25, 0.25])
