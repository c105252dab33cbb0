"""The demo: a whole pipeline on one machine, with nothing to install beside the package itself.

``command`` reads the options, ``stage`` puts up Postgres and the daemon, ``story`` plays on it, ``claims`` keeps count
of what was promised. The rest are the props.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run the demo; return its exit code. Nothing is loaded before: tests use parts of this room alone."""
    from cdc_agent.demo.command import run

    return run(argv)
