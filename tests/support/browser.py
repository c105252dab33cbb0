"""Debian's Chromium, headless, for tests of the live page. No browser is ever downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

__all__ = ["CHROMIUM", "open_browser"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

#: Nothing but the page that is tested: no sandbox for root, no lookups of the vendor's hosts.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser with an empty profile of its own."""
    if CHROMIUM is None:
        message = "there is no chromium here; scripts/test brings it where it can"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
