"""Notion's blocks and properties as Markdown. Pure.

What changes without an edit is left out (addresses of uploaded files, which expire), so that equal pages give equal
text.
https://developers.notion.com/reference/block
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["block_lines", "descends", "properties_text", "rich_text", "title_of_page"]

_HEADINGS = {"heading_1": "#", "heading_2": "##", "heading_3": "###"}
_MARKS = {"bulleted_list_item": "- ", "numbered_list_item": "1. ", "toggle": "- ", "quote": "> ", "callout": "> "}
_LINKS = frozenset({"bookmark", "embed", "link_preview"})
_FILES = frozenset({"image", "file", "pdf", "video", "audio"})
#: What is inside of these is a document of its own.
_PAGES = frozenset({"child_page", "child_database"})
#: What is inside of these stands at their own place, and not below it.
_LEVEL = frozenset({"column_list", "column", "synced_block", "table", "template"})
_INDENT = "    "


def descends(block: Mapping[str, Any]) -> bool:
    """Whether the block holds others that belong to the same page."""
    return bool(block.get("has_children")) and block.get("type") not in _PAGES


def block_lines(block: Mapping[str, Any], inside: Sequence[str]) -> list[str]:
    """The lines of a block; ``inside`` are those of what it holds."""
    kind = str(block.get("type"))
    content = block.get(kind)
    own = list(_own(kind, content if isinstance(content, Mapping) else {}))
    if kind in _LEVEL or not own:
        return [*own, *inside]
    return [*own, *(f"{_INDENT}{line}" if line else line for line in inside)]


def _own(kind: str, content: Mapping[str, Any]) -> Iterator[str]:
    text = rich_text(content.get("rich_text"))
    if kind in _HEADINGS:
        yield from ("", f"{_HEADINGS[kind]} {text}", "")
    elif kind in _MARKS:
        yield from _marked(_MARKS[kind], text)
    elif kind == "to_do":
        yield f"- [{'x' if content.get('checked') else ' '}] {text}"
    elif kind == "code":
        yield from ("", f"```{content.get('language') or ''}", *text.split("\n"), "```", "")
    elif kind == "equation":
        yield from ("", f"$${content.get('expression') or ''}$$", "")
    elif kind == "table_row":
        cells = content.get("cells")
        yield "| " + " | ".join(rich_text(cell) for cell in (cells if isinstance(cells, list) else [])) + " |"
    elif kind in _PAGES:
        yield f"- {content.get('title') or ''}"
    elif kind in _LINKS or kind in _FILES:
        yield from _linked(content)
    elif kind == "divider":
        yield from ("", "---", "")
    elif text:
        yield from ("", *text.split("\n"), "")


def _marked(mark: str, text: str) -> list[str]:
    first, *others = text.split("\n")
    below = "> " if mark == "> " else _INDENT
    return [f"{mark}{first}", *(f"{below}{line}" for line in others)]


def _linked(content: Mapping[str, Any]) -> Iterator[str]:
    caption = rich_text(content.get("caption"))
    external = content.get("external")
    url = content.get("url") or (external.get("url") if isinstance(external, Mapping) else "") or ""
    if caption or url:
        yield from ("", f"[{caption or url}]({url})" if url else caption, "")


def rich_text(parts: Any) -> str:
    """The text of spans, with the marks that mean something to a reader: code and links."""
    return "".join(_span(part) for part in parts if isinstance(part, Mapping)) if isinstance(parts, list) else ""


def _span(part: Mapping[str, Any]) -> str:
    text = part.get("plain_text")
    if not isinstance(text, str) or not text:
        return ""
    annotations = part.get("annotations")
    if isinstance(annotations, Mapping) and annotations.get("code"):
        text = f"`{text}`"
    href = part.get("href")
    return f"[{text}]({href})" if isinstance(href, str) and href.startswith(("https://", "http://")) else text


def title_of_page(page: Mapping[str, Any]) -> str:
    properties = page.get("properties")
    for value in properties.values() if isinstance(properties, Mapping) else ():
        if isinstance(value, Mapping) and value.get("type") == "title":
            return rich_text(value.get("title"))
    return ""


def properties_text(page: Mapping[str, Any]) -> str:
    """The properties of a database's page that people read, one a line, by name."""
    properties = page.get("properties")
    lines = []
    for name, value in sorted(properties.items()) if isinstance(properties, Mapping) else ():
        text = _property(value) if isinstance(value, Mapping) else ""
        if text:
            lines.append(f"{name}: {text}")
    return "\n".join(lines)


def _property(value: Mapping[str, Any]) -> str:  # noqa: PLR0911 (one line per kind of property is a table)
    kind = value.get("type")
    found = value.get(kind) if isinstance(kind, str) else None
    if kind == "rich_text":
        return rich_text(found)
    if kind in ("select", "status"):
        return _name(found)
    if kind in ("multi_select", "people"):
        return ", ".join(filter(None, map(_name, found if isinstance(found, list) else [])))
    if kind == "checkbox":
        return "yes" if found else "no"
    if kind == "date" and isinstance(found, Mapping):
        return " to ".join(str(found[end]) for end in ("start", "end") if found.get(end))
    if kind in ("number", "url", "email", "phone_number"):
        return "" if found is None else str(found)
    return ""


def _name(found: Any) -> str:
    name = found.get("name") if isinstance(found, Mapping) else None
    return name if isinstance(name, str) else ""
