"""Texts that say of themselves whose they are, which version, and how many pieces belong to it.

A document is a title and some lines:

    T u7 v120 of 2 sum 213 amber
    L u7 p0 v93 …
    L u7 p1 v120 …

``sum`` adds up the lines' versions. So from the chunks of one answer alone it can be told whether they are all of one
version of one document. A text that was never committed holds the word ``GHOST``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["GHOST", "Line", "Seen", "body_of", "line", "new_lines", "read", "title_of"]

GHOST = "GHOST"
_TITLE = re.compile(r"T (u\d+) v(\d+) of (\d+) sum (\d+)")
_LINE = re.compile(r"L (u\d+) p(\d+) v(\d+) ")
_WORDS = ("amber", "basalt", "cedar", "delta", "ember", "fjord", "granite", "harbor", "iris", "kelp", "larch")


@dataclass(frozen=True, slots=True)
class Line:
    """One paragraph of a document and the version that wrote it."""

    version: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What some chunks say together. ``version`` is the title's; ``problem`` names what cannot be of one document,
    ``missing`` what is not there of it."""

    uid: str = ""
    version: int = 0
    problem: str = ""
    missing: str = ""


def line(uid: str, place: int, version: int, rng: random.Random, *, ghost: bool = False) -> Line:
    words = [GHOST] if ghost else []
    words += rng.choices(_WORDS, k=rng.randrange(3, 9))
    return Line(version, f"L {uid} p{place} v{version} {' '.join(words)}.")


def new_lines(uid: str, version: int, count: int, rng: random.Random, *, ghost: bool = False) -> list[Line]:
    return [line(uid, place, version, rng, ghost=ghost) for place in range(count)]


def title_of(uid: str, version: int, lines: Sequence[Line], *, ghost: bool = False) -> str:
    total = sum(one.version for one in lines)
    return f"T {uid} v{version} of {len(lines)} sum {total} {GHOST if ghost else 'real'}"


def body_of(lines: Iterable[Line]) -> str:
    return "\n\n".join(one.text for one in lines)


def lines_in(body: str) -> list[Line]:
    """The lines that a body is made of."""
    found = []
    for text in filter(None, body.split("\n\n")):
        match = _LINE.match(text)
        assert match is not None, text
        found.append(Line(int(match[3]), text))
    return found


def read(texts: Iterable[str]) -> Seen:
    """Put the chunks of one document together, in any order."""
    whole = "\n\n".join(texts)
    titles = _TITLE.findall(whole)
    lines = _LINE.findall(whole)
    uids = {found[0] for found in (*titles, *lines)}
    if GHOST in whole:
        return Seen(problem=f"a text that was rolled back: {_short(whole)}")
    if len(uids) > 1 or len(titles) > 1:
        return Seen(problem=f"chunks of several versions: {_short(whole)}")
    if not titles:
        return Seen(missing="the title")
    uid, version, count, total = titles[0]
    return _compared(uid, int(version), int(count), int(total), lines)


def _compared(uid: str, version: int, count: int, total: int, lines: Sequence[tuple[str, str, str]]) -> Seen:
    places = sorted(int(place) for _, place, _ in lines)
    if len(places) > count or len(set(places)) < len(places):
        return Seen(uid=uid, version=version, problem=f"{uid} v{version} has {count} lines, and here are {places}")
    if len(places) < count:
        return Seen(uid=uid, version=version, missing=f"lines of {uid} v{version}: {places} of {count} are here")
    if sum(int(line_version) for _, _, line_version in lines) != total:
        versions = [int(line_version) for _, _, line_version in lines]
        return Seen(uid=uid, version=version, problem=f"{uid} v{version} has lines of other versions: {versions}")
    return Seen(uid=uid, version=version)


def _short(text: str) -> str:
    return repr(text[:300])
