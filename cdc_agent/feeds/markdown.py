"""What a Markdown file calls itself. Pure."""

from __future__ import annotations

import re

__all__ = ["title_of"]

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(?P<front>.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r"^title:[ \t]*(?P<title>\S.*?)[ \t]*$", re.MULTILINE)
_HEADING = re.compile(r"^ {0,3}#[ \t]+(?P<title>\S.*?)[ \t]*#*[ \t]*$", re.MULTILINE)
#: A title stands near the beginning; a `# comment` in a listing further down is none.
_LOOK_CHARACTERS = 4096


def title_of(text: str, path: str) -> str:
    """``title`` of the front matter, or the first heading, or the file's name without its ending.

    >>> title_of("# Refunds\\n\\nWe pay back.", "docs/refunds.md")
    'Refunds'
    """
    start = text[:_LOOK_CHARACTERS]
    front = _FRONT_MATTER.match(start)
    named = _TITLE.search(front["front"]) if front else None
    if named:
        return named["title"].strip("\"'")
    body = start[front.end() :] if front else start
    heading = _HEADING.search(body.partition("```")[0])
    return heading["title"] if heading else path.rpartition("/")[2].rpartition(".")[0] or path
