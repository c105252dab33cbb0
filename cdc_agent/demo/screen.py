"""What the audience sees: colour, a spinner and a bar on a terminal, the same words as plain lines otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from cdc_agent.demo.claims import Claim

__all__ = ["Screen"]

_LABEL_WIDTH = 9
_TITLE_WIDTH = 40
#: Plain progress lines: one for each of so many parts.
_PARTS = 4


class Screen:
    """Every line fits the terminal's width; into a pipe and for faults nothing is cut."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)

    def title(self, text: str, aside: str) -> None:
        self._line(Text.assemble((text, "bold"), "  ", (aside, "dim")))

    def scene(self, number: int, text: str, statement: str = "") -> None:
        """A heading, and the SQL or command that the scene is about."""
        self._line(Text())
        self._line(Text.assemble((f"{number}  ", "bold cyan"), (text, "bold")))
        if statement:
            self._line(Text(f"   {statement}", "dim"))

    def hits(self, label: str, hits: Sequence[Mapping[str, Any]] | None) -> None:
        """The best hits, one a line; the first of them carries the label."""
        for hit in hits or []:
            self._line(Text.assemble((f"   {label:<{_LABEL_WIDTH}}", "dim"), *_hit(hit)))
            label = ""

    def claim(self, claim: Claim) -> None:
        mark, style = ("✓", "green") if claim.held else ("✗", "bold red")
        self._line(Text.assemble((f"   {mark} ", style), claim.sentence), whole=True)
        if claim.otherwise:
            self._line(Text(f"     {claim.otherwise}", "red"), whole=True)

    def note(self, text: str) -> None:
        self._line(Text(f"   {text}", "dim"))

    def verdict(self, text: str, *, good: bool) -> None:
        self._line(Text())
        self._line(Text(text, "bold green" if good else "bold red"), whole=True)

    def paragraph(self, heading: str, lines: Sequence[str]) -> None:
        """Lines to be copied: never cut."""
        self._line(Text())
        self._line(Text(heading, "bold"))
        for line in lines:
            self._line(Text(f"  {line}"), whole=True)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        if self._console.is_terminal:
            with self._console.status(f"[dim]{text} …[/]"):
                yield
        else:
            self.note(f"{text} …")
            yield

    @contextmanager
    def progress(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yields what is to be told how far it is."""
        if not self._console.is_terminal:
            yield self._plain_progress(text, total)
            return
        columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(text, total=total)
            yield lambda done: bar.update(task, completed=done)

    def _plain_progress(self, text: str, total: int) -> Callable[[int], None]:
        told = 0

        def tell(done: int) -> None:
            nonlocal told
            if done * _PARTS // total > told:
                told = done * _PARTS // total
                self.note(f"{text}: {done} of {total}")

        return tell

    def _line(self, text: Text, *, whole: bool = False) -> None:
        cut = self._console.is_terminal and not whole
        self._console.print(text, no_wrap=True, overflow="ellipsis" if cut else "ignore", soft_wrap=not cut, crop=cut)


def _hit(hit: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    title = str(hit["metadata"].get("title", hit["document_id"]))
    score, shown = f"{hit['score']:.2f}  ", title if len(title) <= _TITLE_WIDTH else f"{title[: _TITLE_WIDTH - 1]}…"
    text = " ".join(str(hit["text"]).removeprefix(title).split())
    yield score, "cyan"
    yield f"{shown:<{_TITLE_WIDTH}}  ", ""
    yield text if len(text) <= 60 else f"{text[:59]}…", "dim"
