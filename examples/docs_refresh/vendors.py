"""GitHub and Notion for the story and its test: small stand-ins that speak their APIs and sign their webhooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.support import senders
from tests.support.fake_github import FakeGithub
from tests.support.fake_notion import FakeNotion, block

__all__ = ["Vendors"]

_SECRET = "only for the example"


class Vendors:
    """A handbook in GitHub and a wiki in Notion. ``url`` of the daemon is set when it runs."""

    def __init__(self, github: FakeGithub, notion: FakeNotion) -> None:
        self.github = github
        self.notion = notion
        self.url = ""

    def prepare(self, settings: dict[str, Any], folder: Path) -> None:
        """Lead the example's feeds here, and put their tokens and secrets into the folder."""
        contents = {
            "github-token": self.github.token,
            "notion-token": self.notion.token,
            "github-secret": _SECRET,
            "notion-secret": _SECRET,
        }
        for name, content in contents.items():
            (folder / name).write_text(content)
        _, handbook, wiki = settings["collections"]
        handbook["feed"] |= {"api_url": self.github.url, "token_file": str(folder / "github-token")}
        wiki["feed"] |= {"api_url": self.notion.url, "token_file": str(folder / "notion-token")}
        for name in ("github", "notion"):
            settings["webhooks"][name]["secret_file"] = str(folder / f"{name}-secret")

    def push(self, files: dict[str, str], *, times: int = 1) -> None:
        """The branch now holds these files, and GitHub says so, perhaps more than once."""
        self._deliver("github", senders.github(self.github.push(files), _SECRET, "push"), times)

    def write(self, title: str, text: str, *, page: str = "", times: int = 1) -> str:
        """Make a page, or write one anew; returns its id."""
        kind = "page.content_updated" if page else "page.created"
        page = self.notion.write(title, [block("paragraph", text)], page)
        self._deliver("notion", senders.notion(self.notion.event(kind, page), _SECRET), times)
        return page

    def throw_away(self, page: str, *, times: int = 1) -> None:
        self.notion.throw_away(page)
        self._deliver("notion", senders.notion(self.notion.event("page.deleted", page), _SECRET), times)

    def _deliver(self, source: str, signed: tuple[dict[str, str], bytes], times: int) -> None:
        headers, body = signed
        for _ in range(times):
            httpx.post(f"{self.url}/webhooks/{source}", headers=headers, content=body).raise_for_status()
