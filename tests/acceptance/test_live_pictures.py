"""The pictures of the live page in docs/images: the demo's corpus and model, and some minutes of changes at random.

Made anew only when asked, because a chart that lives takes minutes:
``CDC_AGENT_SCREENSHOTS=docs/images scripts/test tests/acceptance/test_live_pictures.py``
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from cdc_agent.demo.corpus import Article, load_corpus
from cdc_agent.demo.stage import Stage, stage
from tests.support.browser import open_browser
from tests.support.wait import until

FOLDER = os.environ.get("CDC_AGENT_SCREENSHOTS", "")
MINUTES = float(os.environ.get("CDC_AGENT_SCREENSHOTS_MINUTES", "8"))
PICTURES = {
    "live-light": {"color_scheme": "light", "viewport": {"width": 1240, "height": 900}, "device_scale_factor": 1.5},
    "live-dark": {"color_scheme": "dark", "viewport": {"width": 1240, "height": 900}, "device_scale_factor": 1.5},
    "live-phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}

pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="CDC_AGENT_SCREENSHOTS does not say where to"),
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.timeout(3_600),
]


def test_the_pictures_show_a_daemon_at_work() -> None:
    # Given the demo's table and daemon, and an application that writes for some minutes
    articles = load_corpus(300)
    with stage(articles, None) as scenery, open_browser() as browser:
        scenery.agent.start()
        until(lambda: scenery.agent.counts()[0] == len(articles), 300.0, "the first copy")
        write_for(MINUTES * 60, scenery, articles)

        # When the page is opened, a question asked and a resync begun, then it is a picture worth showing
        for name, look in PICTURES.items():
            write_for(6, scenery, articles, seed=name)
            take(browser, scenery, name, look)


def write_for(seconds: float, scenery: Stage, articles: list[Article], *, seed: str = "") -> None:
    """What people do with articles: mostly edits, some new ones, some that go, now and then many at once."""
    chosen, end = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        kind, row = chosen.random(), chosen.randrange(1, len(articles))
        if kind < 0.5:
            note = f"\n\nReviewed at {time.strftime('%H:%M:%S')}."
            scenery.table.change("update articles set body = body || %s, updated_at = now() where id = %s", note, row)
        elif kind < 0.72:
            article = chosen.choice(articles)
            scenery.table.add(f"{article.title}, draft", article.body)
        elif kind < 0.8:
            scenery.table.change(
                "delete from articles where id = (select max(id) from articles where category = 'news')"
            )
        elif kind < 0.98:
            scenery.table.change("update articles set updated_at = now() where id = %s", row)
        else:
            scenery.table.change("update articles set updated_at = now() where id between %s and %s", row, row + 30)
        time.sleep(chosen.expovariate(2.0))


def take(browser: Browser, scenery: Stage, name: str, look: dict[str, object]) -> None:
    page = browser.new_context(**look).new_page()  # type: ignore[arg-type]
    page.goto(scenery.agent.url)
    expect(page.locator("#link")).to_have_attribute("data-state", "live")
    page.get_by_role("searchbox").fill("make a text shorter so that it fits")
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator("#hits li")).to_have_count(5, timeout=60_000)
    resync = {"table": "public.articles", "rewrite": True, "reason": "asked for by hand"}
    number = httpx.post(f"{scenery.agent.url}/resyncs", json=resync).json()["resyncs"][0]["id"]
    wait_for_progress(page, number)
    # Nothing of the cursor and the focus is in the way.
    page.locator("h1").click()
    page.mouse.move(2, 2)
    folder = Path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    httpx.post(f"{scenery.agent.url}/resyncs/{number}/cancel")
    page.context.close()


def wait_for_progress(page: Page, number: int) -> None:
    bar = page.locator(f"#resyncs li[data-key='{number}'] progress")
    until(lambda: float(bar.evaluate("element => element.value")) > 0.1, 60.0, "the resync to be shown at work")
