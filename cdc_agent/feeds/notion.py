"""The pages that a Notion integration may see, each as Markdown.

An event says which page something happened to, late, aggregated and without content: so the page is asked for. Notion
tells the time of an edit to the minute, so the time of a page that was edited just now does not yet say which of that
minute's edits was seen: such a page is asked for again. A search is Notion's only listing, and it lags behind: what it
lacks is gone only if the page itself says so.
https://developers.notion.com/reference/intro
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cdc_agent.cloudevents import parse_time
from cdc_agent.errors import FeedUnavailable
from cdc_agent.events import Event
from cdc_agent.feeds.api import Answer, Api, below
from cdc_agent.feeds.base import EVERYTHING, Examined, Found, Ring
from cdc_agent.feeds.columns import NOTION
from cdc_agent.feeds.notion_markdown import block_lines, descends, properties_text, title_of_page

__all__ = ["HEADERS", "NotionFeed"]

HEADERS = {"Notion-Version": "2022-06-28"}
#: Notion allows three requests a second on average.
PER_S = 3.0
#: A page whose last edit is younger may have been edited again within the same minute. Clocks differ, too.
_SETTLED_S = 180.0
_PAGE_SIZE = 100
_MOST_BLOCKS = 10_000
_MOST_DEPTH = 16
_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
_BLANKS = re.compile(r"\n{3,}")
#: What happens to a page and what is below it.
_WHOLE_BRANCH = frozenset({"deleted", "undeleted", "moved"})
_PARENTS = {"page_id": "pages", "database_id": "databases", "block_id": "blocks"}


#: The builtin, which the name of a method hides below.
_List = list


class NotionFeed:
    """See ``feeds.base.Feed``."""

    columns: tuple[str, ...] = NOTION
    listing_is_whole = False

    def __init__(
        self, api: Api, *, max_document_bytes: int, max_documents: int, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._api = api
        self._max_document_bytes = max_document_bytes
        self._max_documents = max_documents
        self._wall_clock = wall_clock
        self._too_large: set[str] = set()

    def heed(self, event: Event) -> Ring | None:
        what, _, happened = event.type.removeprefix("notion.").partition(".")
        if what == "page" and _ID.fullmatch(event.key):
            return Ring(frozenset([_spelled(event.key)]), whole=happened in _WHOLE_BRANCH)
        return EVERYTHING if what in ("database", "data_source") and happened in _WHOLE_BRANCH else None

    def list(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for page in self._searched():
            if page.get("object") == "page" and not _in_trash(page):
                found[_spelled(_text(page, "id"))] = _text(page, "last_edited_time")
            if len(found) > self._max_documents:
                raise FeedUnavailable(
                    f"Notion shows more than {self._max_documents} pages",
                    hint="raise feed.max_documents, or share less with the integration",
                )
        self._too_large &= found.keys()
        return found

    def fetch(self, key: str, etag: str) -> Found | None:
        page = self._page(key)
        # What was listed is known not to lie in the trash.
        if page is None or _in_trash(page) or (not etag and self._parent_in_trash(page)):
            return None
        try:
            body = _BLANKS.sub("\n\n", "\n".join(self._lines(key, 0, [0, 0]))).strip()
        except _TooLarge:
            self._too_large.add(key)
            return None
        self._too_large.discard(key)
        edited = _text(page, "last_edited_time")
        row = (
            key,
            title_of_page(page),
            body,
            properties_text(page),
            _text(page, "url"),
            _parent(page)[1],
            _text(page, "created_time"),
            edited,
        )
        settled = self._wall_clock() - _seconds(edited) > _SETTLED_S
        return Found(etag=edited if settled else "", row=tuple(value.encode("utf-8", "replace") for value in row))

    def oddities(self) -> Sequence[str]:
        if not self._too_large:
            return []
        count, first = len(self._too_large), min(self._too_large)
        return [f"{count} page(s) are larger than {self._max_document_bytes} bytes and not indexed, such as {first}"]

    def examine(self) -> Sequence[Examined]:
        try:
            count = len(self.list())
        except FeedUnavailable as exc:
            return [Examined(ok=False, message=exc.message, hint=exc.hint)]
        if not count:
            hint = "in Notion: the page's menu, Connections, add the integration; pages below it follow"
            return [Examined(ok=False, message="no page is shared with the integration", hint=hint)]
        return [Examined(ok=True, message=f"Notion shows {count} page(s)")]

    def close(self) -> None:
        self._api.close()

    # -- what is there ----------------------------------------------------------------------------------------

    def _searched(self) -> Iterator[Mapping[str, Any]]:
        body: dict[str, Any] = {
            "filter": {"property": "object", "value": "page"},
            "sort": {"timestamp": "last_edited_time", "direction": "ascending"},
            "page_size": _PAGE_SIZE,
        }
        return self._paged(lambda cursor: self._api.post("/v1/search", body | cursor))

    def _paged(self, ask: Callable[[dict[str, str]], Answer]) -> Iterator[Mapping[str, Any]]:
        cursor: dict[str, str] = {}
        for _ in range(max(self._max_documents, _MOST_BLOCKS)):
            answer = ask(cursor).body
            results = answer.get("results") if isinstance(answer, Mapping) else None
            if not isinstance(results, list):
                raise FeedUnavailable(f"Notion's answer is not a list{_said(answer)}", hint="see feed.api_url")
            yield from (one for one in results if isinstance(one, Mapping))
            if not answer.get("has_more"):
                return
            cursor = {"start_cursor": _text(answer, "next_cursor")}
        raise FeedUnavailable("a list of Notion does not end")

    def _page(self, key: str) -> Mapping[str, Any] | None:
        answer = self._api.get(below("v1", "pages", key))
        # 400 is said of an id that is no page's.
        if answer.status in (400, 404):
            return None
        if answer.status != 200 or not isinstance(answer.body, Mapping):
            raise FeedUnavailable(f"Notion does not tell of page {key}{_said(answer.body)}")
        return answer.body

    def _parent_in_trash(self, page: Mapping[str, Any]) -> bool:
        """Whether something above the page was thrown away. What we may not see does not say so."""
        above = page
        for _ in range(_MOST_DEPTH):
            kind, key = _parent(above)
            if kind not in _PARENTS:
                return False
            answer = self._api.get(below("v1", _PARENTS[kind], key))
            if answer.status != 200 or not isinstance(answer.body, Mapping):
                return False
            above = answer.body
            if _in_trash(above):
                return True
        return False

    def _lines(self, key: str, depth: int, met: _List[int]) -> _List[str]:
        """The lines of what a block holds. ``met`` counts blocks and bytes of the page."""
        lines: _List[str] = []
        for block in self._paged(lambda cursor: self._children(key, depth, cursor)):
            inside = self._lines(_text(block, "id"), depth + 1, met) if descends(block) else []
            own = block_lines(block, inside)
            met[0] += 1
            met[1] += sum(len(line.encode("utf-8", "replace")) + 1 for line in own) if depth == 0 else 0
            if met[0] > _MOST_BLOCKS or met[1] > self._max_document_bytes or depth > _MOST_DEPTH:
                raise _TooLarge
            lines += own
        return lines

    def _children(self, key: str, depth: int, cursor: Mapping[str, str]) -> Answer:
        answer = self._api.get(below("v1", "blocks", key, "children"), {"page_size": str(_PAGE_SIZE), **cursor})
        # Of some kinds of block the API tells that they hold others, and then not which.
        return Answer(200, {"results": []}) if depth and answer.status in (400, 404) else answer


class _TooLarge(Exception):
    """A page has more bytes or blocks than we take."""


def _in_trash(thing: Mapping[str, Any]) -> bool:
    return bool(thing.get("archived") or thing.get("in_trash"))


def _parent(thing: Mapping[str, Any]) -> tuple[str, str]:
    """The kind and the id of what something lies in; empty for the workspace."""
    parent = thing.get("parent")
    kind = parent.get("type") if isinstance(parent, Mapping) else None
    found = parent.get(kind) if isinstance(parent, Mapping) and isinstance(kind, str) else None
    return (str(kind), _spelled(found)) if isinstance(found, str) and _ID.fullmatch(found) else ("", "")


def _spelled(key: str) -> str:
    """An id the way Notion's API spells it: events and people leave out the hyphens."""
    plain = key.replace("-", "")
    return "-".join((plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:]))


def _seconds(moment: str) -> float:
    try:
        return parse_time(moment).timestamp()
    except ValueError:
        raise FeedUnavailable("Notion's answer has a time that is none") from None


def _said(body: Any) -> str:
    message = body.get("message") if isinstance(body, Mapping) else None
    return f": {message[:200]}" if isinstance(message, str) else ""


def _text(body: Mapping[str, Any], name: str) -> str:
    found = body.get(name)
    if not isinstance(found, str) or not found:
        raise FeedUnavailable(f"Notion's answer lacks {name}", hint="see feed.api_url")
    return found
