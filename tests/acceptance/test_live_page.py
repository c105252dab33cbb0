"""The live page in a real Chromium, against the real daemon and a real Postgres: what people see, and what they do.

The tests share one daemon, each with rows of its own, so they may run alone and in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.support.browser import open_browser
from tests.support.daemon import DaemonProcess
from tests.support.fake_openai import FakeOpenAI, server_error
from tests.support.otlp import Collector
from tests.support.postgres import ALL_KINDS, Database, Servers
from tests.support.wait import until

ARTICLES = {"name": "articles", "table": "public.articles", "text": "{title} {body}", "metadata": ["lang"]}
ROOT = Path(__file__).parents[2]
#: Enough pages of a resync to be watched, and to be stopped in the middle.
ROWS, ROWS_PER_PAGE = 600, 1
#: In every body, so that any value of a cell that gets where it must not be is seen.
SECRET = "Xylophone-7719"
METRICS_TOKEN = "for-numbers-0123456789"
TOKENS = f"- name: dashboard\n  token: {METRICS_TOKEN}\n  scopes: [metrics]\n"
expect.set_options(timeout=20_000)


@dataclass(kw_only=True)
class World:
    pg: Database
    daemon: DaemonProcess
    model: FakeOpenAI
    browser: Browser
    collector: Collector
    complaints: list[str] = field(default_factory=list)

    def serve(self) -> None:
        """Have the daemon run, and ask for no token."""
        if self.daemon.settings["http"].get("tokens_file"):
            self.daemon.terminate()
            self.daemon.configure(http={"tokens_file": None})
        if not self.daemon.running:
            self.daemon.start()

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.daemon.url}/healthz").is_success
        except httpx.TransportError:
            return False

    def insert(self, row: int, title: str, body: str = "") -> None:
        self.pg.execute("insert into articles values (%s, %s, %s, 'en')", (row, title, body or f"{SECRET} {row}"))

    def open(self, **options: object) -> Page:
        """The page in a context of its own, once it is live. What the console complains of is collected."""
        context = self.browser.new_context(**options)  # type: ignore[arg-type]
        page = context.new_page()
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(self.daemon.url)
        expect(page.locator("#link")).to_have_attribute("data-state", "live")
        return page

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


@pytest.fixture(scope="module")
def shared(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pg = servers.database(ALL_KINDS[0])
    pg.execute("create table articles (id int primary key, title text, body text, lang text)")
    with FakeOpenAI() as model, Collector() as collector, open_browser() as browser:
        model.poison = "poison"
        settings = {
            "source": {"dsn": pg.dsn, "slot_name": pg.slot_name, "publication_name": pg.slot_name},
            "collections": [ARTICLES],
            "embedding": {"backend": "openai", "model": "fake", "url": model.base_url},
            "resync": {"rows_per_chunk": ROWS_PER_PAGE},
            "tracing": {"endpoint": collector.url},
        }
        daemon = DaemonProcess(tmp_path_factory.mktemp("live"), settings)
        daemon.start()
        rows = "select i, 'title ' || i, %s || ' ' || i, 'en' from generate_series(1, %s) i"
        pg.execute(f"insert into articles {rows}", (SECRET, ROWS))
        pg.execute("analyze articles")
        daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
        try:
            yield World(pg=pg, daemon=daemon, model=model, browser=browser, collector=collector)
        finally:
            daemon.close()
            pg.close()


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    """Whatever a test did, the console had nothing to complain of. Whoever stopped the daemon leaves it to the next."""
    shared.serve()
    shared.complaints.clear()
    yield shared
    for context in shared.browser.contexts:
        context.close()
    assert shared.complaints == []


def documents_shown(page: Page) -> int:
    return int(page.locator("#collections tbody tr td").nth(4).inner_text().replace(",", ""))


# -- what is seen ------------------------------------------------------------------------------------------------


def test_a_row_that_is_inserted_appears_without_a_reload(world: World) -> None:
    # Given the page, which knows how many documents there are
    page = world.open()
    expect(page.locator("#collections tbody tr")).to_have_count(1)
    before = documents_shown(page)

    # When a row is committed
    world.insert(10_001, "a new arrival")

    # Then the feed shows its key and what was done, how soon it was found, and the numbers move
    newest = page.locator("#feed li").first
    expect(newest).to_contain_text("10001")
    expect(newest.locator(".op")).to_have_text("insert")
    expect(newest.locator(".age")).to_have_text(re.compile(r"^[\d.]+ (ms|s)$"))
    expect(page.locator("#fresh-value")).to_have_text(re.compile(r"^[\d.]+$"))
    until(lambda: documents_shown(page) == before + 1, what="the number of documents to move")

    # And neither feed nor stream says what is in the row
    assert "arrival" not in page.locator("main").inner_text()
    with httpx.stream("GET", f"{world.daemon.url}/live", timeout=20) as stream:
        sent = ""
        for part in stream.iter_text():
            sent += part
            if sent.count("event: state") >= 2:
                break
    assert '"key":["10001"]' in sent
    assert SECRET not in sent
    assert "arrival" not in sent


def test_updates_and_deletions_are_told_apart(world: World) -> None:
    page = world.open()
    world.insert(10_010, "short-lived")
    expect(page.locator("#feed li").first).to_contain_text("10010")

    # When the row gets another language only, and then goes
    world.pg.execute("update articles set lang = 'de' where id = 10010")
    expect(page.locator("#feed li").first.locator(".op")).to_have_text("update")
    expect(page.locator("#feed li").first.locator(".cost")).to_have_text("1 retagged")
    world.pg.execute("delete from articles where id = 10010")

    # Then the feed says so
    expect(page.locator("#feed li").first.locator(".op")).to_have_text("delete")


def test_what_is_searched_is_found_with_its_row_and_age_and_never_becomes_markup(world: World) -> None:
    # Given a row whose text is somebody's attempt at the page
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    page = world.open()
    world.insert(10_020, hostile, "and a harmless body")
    expect(page.locator("#feed li").first).to_contain_text("10020")

    # When it is searched
    page.get_by_role("searchbox").fill(f"{hostile} and a harmless body")
    page.get_by_role("searchbox").press("Enter")

    # Then the hit is that text, with its source and age
    hit = page.locator("#hits li").first
    expect(hit.locator(".text")).to_contain_text(hostile)
    expect(hit.locator(".source")).to_contain_text("articles 10020")
    expect(hit.locator(".source")).to_contain_text(re.compile(r"written (just now|\d+ s ago)"))
    expect(page.locator("#found")).to_contain_text("complete up to")
    assert page.locator("main img, main script").count() == 0
    assert "owned" not in page.title()


def test_a_problem_stands_on_top_with_what_to_do(world: World) -> None:
    # Given a page without problems
    page = world.open()
    expect(page.locator("#problems")).to_be_hidden()

    # When the model does not answer for a while
    world.model.script(*[server_error(503)] * 7)
    world.insert(10_030, "waits for the model")

    # Then it is said on top, with a remedy, until it is over
    expect(page.locator("#problems")).to_be_visible()
    expect(page.locator("#problems")).to_contain_text("What to do:")
    expect(page.locator("#problems")).to_be_hidden()
    expect(page.locator("#feed li").first).to_contain_text("10030")


def test_colours_follow_the_system_until_somebody_chooses(world: World) -> None:
    # Given a system that is dark
    page = world.open(color_scheme="dark")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)

    # When light is chosen, then it is light, after a reload too
    page.get_by_role("button", name="Switch to light colours").click()
    light = page.evaluate(ground)
    assert sum(map(int, re.findall(r"\d+", light))) > sum(map(int, re.findall(r"\d+", dark))) + 300
    page.reload()
    expect(page.get_by_role("button", name="Switch to dark colours")).to_be_visible()
    assert page.evaluate(ground) == light


def test_a_phone_shows_all_of_it_without_scrolling_sideways(world: World) -> None:
    page = world.open(viewport={"width": 375, "height": 760})
    expect(page.locator("#agents tbody tr")).to_have_count(1)

    assert page.evaluate("() => document.documentElement.scrollWidth") == 375


def test_the_chart_is_read_by_keyboard(world: World) -> None:
    # Given a chart with at least one value
    page = world.open()
    world.insert(10_040, "for the chart")
    expect(page.locator("#chart .median").first).to_be_attached()
    expect(page.locator("#chart")).to_have_attribute("aria-label", re.compile(r"[\d,]+ documents?, the slowest found"))

    # When it has the focus and an arrow is pressed
    page.locator("#chart").focus()
    page.keyboard.press("ArrowLeft")

    # Then the value is read out
    expect(page.locator("#chart-read")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d · median [\d.]+ m?s"))


# -- what is done ------------------------------------------------------------------------------------------------


def test_a_dead_letter_is_replayed_and_another_discarded(world: World) -> None:
    # Given two rows that the model refuses
    page = world.open()
    expect(page.locator("#letters-empty")).to_be_visible()
    world.insert(10_050, "poison", "one")
    world.insert(10_051, "poison", "two")
    expect(page.locator("#letters li")).to_have_count(2)
    expect(page.locator("#letters")).not_to_contain_text("poison")

    # When one is discarded, which asks twice
    other = page.locator("#letters li", has_text="10051")
    other.get_by_role("button", name="Discard").click()
    other.get_by_role("button", name="Discard?").click()
    expect(other).to_have_count(0)

    # And the other is replayed once the model takes it
    world.model.poison = None
    try:
        letter = page.locator("#letters li", has_text="10050")
        letter.get_by_role("button", name="Replay").click()

        # Then it is in the index and the list is empty
        expect(page.locator("#letters-empty")).to_be_visible()
        assert world.daemon.search("articles", "poison one", k=1)[0]["document_id"] == "public.articles:10050"
    finally:
        world.model.poison = "poison"


def test_a_resync_shows_its_progress_and_is_paused_resumed_and_cancelled(world: World) -> None:
    # Given a resync that is begun elsewhere
    page = world.open()
    started = world.daemon.post("/resyncs", {"table": "public.articles", "reason": "a look"}).json()["resyncs"][0]
    row = page.locator(f"#resyncs li[data-key='{started['id']}']")
    expect(row).to_contain_text("a look")

    # When it is paused in the page
    row.get_by_role("button", name="Pause").click()

    # Then it stands where it is, somewhere in the middle
    expect(row).to_contain_text(re.compile(r"paused at \d+ of about \d+ rows"))
    assert 0 <= float(row.locator("progress").evaluate("element => element.value")) < 1
    paused = world.daemon.get("/resyncs").json()["resyncs"]
    assert next(r for r in paused if r["id"] == started["id"])["state"] == "paused"

    # And it goes on
    row.get_by_role("button", name="Resume").click()
    stood = float(row.locator("progress").evaluate("element => element.value"))
    until(
        lambda: row.locator(".badge").count() or row.locator("progress").evaluate("element => element.value") > stood,
        what="progress",
    )

    # And another one, which stands, is cancelled by two clicks
    other = world.daemon.post("/resyncs", {"table": "public.articles"}).json()["resyncs"][0]["id"]
    world.daemon.post(f"/resyncs/{other}/pause")
    row = page.locator(f"#resyncs li[data-key='{other}']")
    row.get_by_role("button", name="Cancel").click()
    row.get_by_role("button", name="Cancel?").click()
    expect(row.locator(".badge")).to_have_text("cancelled")
    world.daemon.post(f"/resyncs/{started['id']}/cancel")


def test_a_daemon_that_stops_does_not_wait_for_its_watchers_and_they_come_back_with_it(world: World) -> None:
    # Given somebody who watches
    page = world.open()

    # When the daemon is told to stop, then it ends in order, and soon, and the page says so
    assert world.daemon.terminate(timeout_s=15) == 0
    assert "abandoning work" not in world.daemon.log[-2000:]
    expect(page.locator("#link")).to_have_attribute("data-state", "lost")

    # And when it is started again, the same page goes on: nobody reloads
    world.daemon.start()
    expect(page.locator("#link")).to_have_attribute("data-state", "live")
    world.insert(10_060, "after the restart")
    expect(page.locator("#feed li").first).to_contain_text("10060")
    expect(page.locator("#feed li")).to_have_count(1)
    # The browser itself tells of connections that were refused meanwhile.
    world.complaints[:] = [said for said in world.complaints if "net::ERR_" not in said]


def test_a_token_opens_the_page_and_offers_what_it_is_for(shared: World) -> None:
    world = shared
    # Given a daemon that asks for tokens, of which one is for metrics alone
    tokens = world.daemon.folder / "tokens"
    tokens.write_text(TOKENS)
    tokens.chmod(0o600)
    world.daemon.terminate()
    world.daemon.configure(http={"tokens_file": str(tokens)})
    world.daemon.start(ready=False)
    until(world.answers, 60.0, "the daemon to answer")
    page = world.browser.new_context().new_page()
    page.goto(world.daemon.url)

    # When it is typed into the page
    expect(page.get_by_role("dialog")).to_be_visible()
    page.locator("#token").fill(METRICS_TOKEN)
    page.get_by_role("button", name="Open").click()

    # Then the numbers come, without keys of rows, and nothing is offered that it may not do
    expect(page.locator("#link")).to_have_attribute("data-state", "live")
    expect(page.locator("#search-panel")).to_be_hidden()
    world.insert(10_070, "nobody's business")
    expect(page.locator("#feed li").first.locator(".doc")).to_have_text(re.compile(r"^articles\s*$"))

    # And the token is nowhere but in this tab
    assert METRICS_TOKEN not in page.url
    assert page.evaluate("() => JSON.stringify(localStorage)") == "{}"


# -- what machines are told --------------------------------------------------------------------------------------


def test_a_commit_is_traced_until_it_is_found(world: World) -> None:
    # When a row is committed
    world.insert(10_080, "traced")
    lsn = world.pg.execute("select pg_current_wal_lsn()::text")[0][0]
    world.daemon.wait_applied(lsn)

    # Then a collector is sent the trace of that commit, whole
    def whole() -> set[str]:
        traces: dict[bytes, set[str]] = {}
        for span in world.collector.spans:
            traces.setdefault(span.trace_id, set()).add(span.name)
        return next((names for names in traces.values() if {"capture", "plan", "embed", "write"} <= names), set())

    until(whole, 30.0, "the trace")
    assert SECRET not in str(world.collector.spans)
    assert "traced" not in str(world.collector.spans)


def test_what_alerts_and_dashboard_ask_for_is_exported(world: World) -> None:
    # Given all that they ask for
    asked = "".join(
        (ROOT / "config" / name).read_text() for name in ("prometheus-alerts.yml", "grafana-dashboard.json")
    )
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\bcdc_agent_\w+", asked)}
    assert len(names) > 20

    # When a scrape comes
    text = world.daemon.get("/metrics").text

    # Then each of them is there, and those of an idle daemon say that all is well
    exported = set(re.findall(r"^# TYPE (\w+) ", text, flags=re.MULTILINE))
    assert names - exported == set()
    assert world.daemon.metric("cdc_agent_streaming") == 1
    assert world.daemon.metric("cdc_agent_problem", component="embedding") == 0
    assert world.daemon.metric("cdc_agent_agent_lag_entries", agent="indexer") == 0
    assert world.daemon.metric("cdc_agent_lag_seconds") == 0
    assert world.daemon.metric("cdc_agent_documents", collection="articles") >= ROWS
