"""Notion's pages in the index: by signed webhook through the real daemon. An event is a doorbell without content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest

from cdc_agent.cli import main
from cdc_agent.config.specs import collection_spec
from cdc_agent.events import Column, Relation, Row
from tests.support import senders
from tests.support.daemon import DaemonProcess
from tests.support.fake_notion import FakeNotion, block
from tests.support.oracle import assert_index_equals_rows, assert_index_equals_table
from tests.support.postgres import Database
from tests.support.vendor import Fault
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]
TOKEN = "secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl"
NOTES = {"name": "notes", "table": "public.notes", "text": "{body}"}
COLUMNS = ("id", "title", "body", "properties", "url", "parent", "created_at", "edited_at")
#: Title and paragraphs of each page that is to be found, by id.
Pages = Mapping[str, tuple[str, list[str]]]


@pytest.fixture
def notion() -> Iterator[FakeNotion]:
    with FakeNotion() as notion:
        yield notion


def wiki(notion: FakeNotion, **more: Any) -> dict[str, Any]:
    feed = {"kind": "notion", "webhook": "pages", "api_url": notion.url, "token_file": "./token", "list_every_s": 3600}
    return {
        "name": "wiki",
        "feed": {**feed, **more},
        "text": "{title}\n\n{body}",
        "metadata": ["url"],
        "chunking": {"max_tokens": 32},
    }


@pytest.fixture
def daemon(pg: Database, new_daemon: NewDaemon, notion: FakeNotion) -> DaemonProcess:
    pg.execute("create table notes (id int primary key, body text)")
    pg.execute("insert into notes values (1, 'one')")
    daemon = new_daemon(pg, collections=[NOTES, wiki(notion)], webhooks={"pages": {"kind": "notion", "secret": TOKEN}})
    (daemon.folder / "token").write_text(notion.token)
    return daemon


def deliver(daemon: DaemonProcess, event: Any) -> None:
    headers, body = senders.notion(event, TOKEN)
    answer = httpx.post(f"{daemon.url}/webhooks/pages", headers=headers, content=body)
    assert answer.status_code == 202, answer.text


def write(notion: FakeNotion, title: str, paragraphs: list[str], page: str = "") -> str:
    return notion.write(title, [block("paragraph", paragraph) for paragraph in paragraphs], page=page)


def assert_index_holds(daemon: DaemonProcess, pages: Pages, timeout_s: float = 30.0) -> None:
    relation = Relation(
        oid=1,
        root_oid=1,
        schema="notion",
        name="wiki",
        columns=tuple(Column(name=name, type_oid=25) for name in COLUMNS),
        key=("id",),
    )
    rows = []
    for page, (title, paragraphs) in pages.items():
        url = f"https://www.notion.so/{page.replace('-', '')}"
        values = (page, title, "\n\n".join(paragraphs), "", url, "", "", "")
        rows.append(Row(relation, tuple(value.encode() for value in values)))
    assert_index_equals_rows(daemon.config, collection_spec(daemon.config.collections[1]), rows, timeout_s)


def verify(daemon: DaemonProcess) -> dict[str, Any]:
    number = daemon.post("/verifies", {}).json()["id"]
    until(lambda: daemon.get(f"/verifies/{number}").json()["state"] in ("done", "failed"), 60, "the audit to end")
    return dict(daemon.get(f"/verifies/{number}").json())


LONG = [
    f"Paragraph {n} tells of matter {n * 7919} and of how the people of place {n * 104729} deal with it."
    for n in range(30)
]


def test_a_page_is_found_edited_thrown_away_and_taken_back(
    pg: Database, daemon: DaemonProcess, notion: FakeNotion
) -> None:
    # Given a wiki with some pages
    refunds = write(notion, "Refunds", ["We pay money back."])
    long = write(notion, "Matters", LONG)
    wanted = {refunds: ("Refunds", ["We pay money back."]), long: ("Matters", LONG)}
    daemon.start()
    assert_index_holds(daemon, wanted)

    # When a page is made that Notion's search does not show yet, and its event comes twice
    new = write(notion, "Brand new", ["A zebra."])
    notion.hidden.add(new)
    event = notion.event("page.created", new)
    deliver(daemon, event)
    deliver(daemon, event)
    wanted[new] = ("Brand new", ["A zebra."])
    assert_index_holds(daemon, wanted)

    # And one paragraph of thirty is edited: one or two chunks are embedded
    before = daemon.metric("cdc_agent_chunks_embedded_total")
    edited = [*LONG[:15], "This paragraph was rewritten from its beginning to its end by somebody.", *LONG[16:]]
    write(notion, "Matters", edited, page=long)
    deliver(daemon, notion.event("page.content_updated", long))
    wanted[long] = ("Matters", edited)
    assert_index_holds(daemon, wanted)
    assert 1 <= daemon.metric("cdc_agent_chunks_embedded_total") - before <= 2

    # And one is thrown away, and taken back, with the events in the wrong order
    notion.throw_away(refunds)
    deliver(daemon, notion.event("page.deleted", refunds))
    assert_index_holds(daemon, {page: text for page, text in wanted.items() if page != refunds})
    notion.throw_away(refunds, back=True)
    deliver(daemon, notion.event("page.undeleted", refunds))
    deliver(daemon, notion.event("page.deleted", refunds))
    assert_index_holds(daemon, wanted)

    # Then what the audit says is nothing, the hidden page included, and the table is as it was
    report = verify(daemon)
    assert report["state"] == "done", report
    assert report["found"] == {}, report
    assert_index_holds(daemon, wanted)
    assert_index_equals_table(daemon, pg)
    assert daemon.problems() == []
    assert notion.token not in daemon.log


@pytest.mark.fault("feed-never-told", "feed-away")
def test_what_was_never_told_is_found_and_a_notion_that_fails_is_waited_for(
    daemon: DaemonProcess, notion: FakeNotion
) -> None:
    page = write(notion, "Quiet", ["Nobody rang."])
    daemon.configure(collections=[NOTES, wiki(notion, list_every_s=1)])
    daemon.start()
    assert_index_holds(daemon, {page: ("Quiet", ["Nobody rang."])})

    # When a page is edited without a word, and Notion fails, limits us and talks nonsense meanwhile
    notion.script(
        Fault(503),
        Fault(429, {"retry-after": "1"}),
        Fault(200, body=b"<html>"),
        Fault(302, {"location": "http://169.254.169.254/"}),
    )
    notion.edited_at = "2026-11-01T10:05:00.000Z"
    write(notion, "Quiet", ["Nobody rang again."], page=page)
    other = write(notion, "Other", ["New."])

    # Then it is found in the end
    assert_index_holds(daemon, {page: ("Quiet", ["Nobody rang again."]), other: ("Other", ["New."])})
    until(lambda: daemon.problems() == [], 15, "the problem to be over")


@pytest.mark.fault("feed-killed")
def test_a_daemon_that_is_killed_amid_an_edit_ends_equal_to_notion(daemon: DaemonProcess, notion: FakeNotion) -> None:
    page = write(notion, "Page", ["First."])
    daemon.start()
    assert_index_holds(daemon, {page: ("Page", ["First."])})
    daemon.kill()

    notion.edited_at = "2026-11-01T10:05:00.000Z"
    write(notion, "Page", LONG, page=page)
    daemon.start(failpoint="after_append:kill@1", ready=False)
    assert daemon.wait_exit() == -9
    daemon.start()

    assert_index_holds(daemon, {page: ("Page", LONG)})
    assert verify(daemon)["found"] == {}


def test_check_says_whether_notion_shows_anything(
    daemon: DaemonProcess, notion: FakeNotion, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        main(["check", "-c", str(daemon.path)])
        return next(line for line in capsys.readouterr().out.splitlines() if "feed wiki" in line)

    assert "no page is shared with the integration" in said()
    write(notion, "Page", [])
    assert said() == "ok    feed wiki: Notion shows 1 page(s)"
    (daemon.folder / "token").write_text("another")
    assert "refuses the token" in said()
