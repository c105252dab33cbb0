"""A small Notion: pages with blocks below them, a search that may lag behind, and the events that tell of them.

Written from Notion's documentation (version 2022-06-28), not from our own code.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.vendor import Asked, Vendor

__all__ = ["FakeNotion", "block", "text"]

_PAGE_SIZE = 3


def text(content: str, **more: Any) -> list[dict[str, Any]]:
    annotations = {"bold": False, "italic": False, "strikethrough": False, "underline": False, "code": False}
    return [
        {
            "type": "text",
            "text": {"content": content, "link": None},
            "annotations": {**annotations, "color": "default", **more.pop("annotations", {})},
            "plain_text": content,
            "href": more.get("href"),
        }
    ]


def block(kind: str, content: str = "", *children: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A block with what it holds, as a test writes it."""
    return {"type": kind, kind: {"rich_text": text(content), **more}, "children": list(children)}


class FakeNotion(Vendor):
    """``hidden``: pages that the search does not show (yet). Lists come in pages of three."""

    token = "secret_notion"

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[str, dict[str, Any]] = {}
        self._children: dict[str, list[dict[str, Any]]] = {}
        self.hidden: set[str] = set()
        self.edited_at = "2026-11-01T10:00:00.000Z"

    # -- what people do --------------------------------------------------------------------------------------

    def write(
        self,
        title: str,
        blocks: Sequence[Mapping[str, Any]],
        page: str = "",
        parent: str = "",
        properties: Mapping[str, Any] | None = None,
    ) -> str:
        """Make a page, or write one anew; returns its id."""
        with self.lock:
            page = page or str(uuid.uuid4())
            above = {"type": "page_id", "page_id": parent} if parent else {"type": "workspace", "workspace": True}
            self.pages[page] = {
                "object": "page",
                "id": page,
                "created_time": "2026-01-01T00:00:00.000Z",
                "last_edited_time": self.edited_at,
                "archived": False,
                "in_trash": False,
                "parent": above,
                "url": f"https://www.notion.so/{page.replace('-', '')}",
                "properties": {"Name": {"id": "title", "type": "title", "title": text(title)}, **(properties or {})},
            }
            self._children[page] = [self._kept(one) for one in blocks]
            return page

    def throw_away(self, page: str, *, back: bool = False) -> None:
        with self.lock:
            self.pages[page] |= {"archived": not back, "in_trash": not back}

    def event(self, kind: str, page: str) -> dict[str, Any]:
        return {
            "id": str(uuid.uuid4()),
            "timestamp": "2026-11-28T01:00:00.000Z",
            "workspace_id": "13950b26-c203-4f3b-b97d-93ec06319565",
            "workspace_name": "Handbook",
            "subscription_id": "29d75c0d-5546-4414-8459-7b7a92f1fc4b",
            "integration_id": "0ef2e755-4912-8096-91c1-00376a88a5ca",
            "type": kind,
            "authors": [{"id": "c7c11cca-1d73-471d-9b6e-bdef51470190", "type": "person"}],
            "accessible_by": [],
            "attempt_number": 1,
            "entity": {"id": page, "type": "page"},
            "data": {"parent": {"id": "13950b26-c203-4f3b-b97d-93ec06319565", "type": "space"}},
        }

    def _kept(self, one: Mapping[str, Any]) -> dict[str, Any]:
        key = str(uuid.uuid4())
        children = [self._kept(child) for child in one.get("children", ())]
        self._children[key] = children
        own = {name: value for name, value in one.items() if name != "children"}
        return {"object": "block", "id": key, "has_children": bool(children), "archived": False, **own}

    # -- what the API answers --------------------------------------------------------------------------------

    def refused(self) -> tuple[int, Any]:
        return 401, {"object": "error", "status": 401, "code": "unauthorized", "message": "API token is invalid."}

    def answer(self, asked: Asked) -> tuple[int, Any]:
        if asked.headers.get("notion-version") != "2022-06-28":
            return 400, {"object": "error", "status": 400, "code": "missing_version", "message": "Notion-Version"}
        match (asked.method, *asked.path):
            case ("POST", "v1", "search"):
                assert asked.body["filter"] == {"property": "object", "value": "page"}
                shown = [p for key, p in self.pages.items() if key not in self.hidden and not self._is_gone(p)]
                return self._list(shown, asked.body.get("start_cursor"))
            case ("GET", "v1", "pages", key) if key in self.pages:
                return 200, self.pages[key]
            case ("GET", "v1", "blocks", key, "children") if key in self._children:
                return self._list(self._children[key], asked.query.get("start_cursor"))
        message = "Could not find it. Make sure it is shared with your integration."
        return 404, {"object": "error", "status": 404, "code": "object_not_found", "message": message}

    def _is_gone(self, page: Mapping[str, Any]) -> bool:
        if page["in_trash"]:
            return True
        above = page["parent"].get("page_id")
        return above in self.pages and self._is_gone(self.pages[above])

    def _list(self, results: Sequence[Any], cursor: str | None) -> tuple[int, Any]:
        start = int(cursor or 0)
        end = start + _PAGE_SIZE
        more = end < len(results)
        return 200, {
            "object": "list",
            "results": list(results[start:end]),
            "next_cursor": str(end) if more else None,
            "has_more": more,
            "type": "page_or_database",
        }
