"""What the demo claims, and whether it was so. A claim that was not checked is not shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Claim", "Claims"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence that was put to the test; ``otherwise`` says what was seen instead where it did not hold."""

    sentence: str
    held: bool
    otherwise: str = ""


class Claims:
    """Keeps count. Every claim is shown as soon as it is made, and decides the exit code."""

    def __init__(self, show: Callable[[Claim], None]) -> None:
        self._show = show
        self._claims: list[Claim] = []

    def check(self, sentence: str, held: bool, otherwise: object = "") -> None:
        """Record a claim; ``otherwise`` is read only where it does not hold."""
        claim = Claim(sentence=sentence, held=bool(held), otherwise="" if held else str(otherwise))
        self._claims.append(claim)
        self._show(claim)

    @property
    def broken(self) -> list[Claim]:
        return [claim for claim in self._claims if not claim.held]

    @property
    def exit_code(self) -> int:
        """0 only if something was claimed, and all of it held."""
        return 1 if self.broken or not self._claims else 0

    def __len__(self) -> int:
        return len(self._claims)
