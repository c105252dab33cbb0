"""``demo``: the whole journey on this machine. It reads its own options."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    from cdc_agent import demo

    return demo.main(list(argv))
