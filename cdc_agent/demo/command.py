"""``cdc-agent demo`` from its first line to its last: the stage, the story, and staying up to be played with."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from types import FrameType

from cdc_agent.demo.claims import Claims
from cdc_agent.demo.corpus import load_corpus
from cdc_agent.demo.invitation import invitation
from cdc_agent.demo.screen import Screen
from cdc_agent.demo.stage import Stage, stage
from cdc_agent.demo.story import Story

__all__ = ["run"]

_TICK_S = 0.5


def run(*, once: bool, documents: int, state_dir: Path | None) -> int:
    """Return 0 when every claim held, 1 otherwise. Without ``once`` it stays up until Ctrl-C."""
    _forget_environment()
    _end_cleanly_on_signals()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # A terminal that cannot show ✓ shows ?.
    screen = Screen()
    claims = Claims(screen.claim)
    began = time.monotonic()
    with ExitStack() as things:
        with screen.waiting("a Postgres server of our own starts"):
            articles = load_corpus(documents)
            scenery = things.enter_context(stage(articles, state_dir and state_dir.absolute()))
        _announce(screen, scenery, len(articles))
        Story(articles, scenery.table, scenery.agent, claims, screen).play()
        _judge(screen, claims, time.monotonic() - began)
        if not once:
            _stay_up(screen, scenery, is_kept=state_dir is not None)
    return claims.exit_code


def _announce(screen: Screen, scenery: Stage, count: int) -> None:
    server = scenery.installation
    screen.title(
        "cdc-agent demo",
        f"Postgres {server.release} ({server.origin}), {count} documents from Python's own manuals, all-MiniLM-L6-v2",
    )


def _judge(screen: Screen, claims: Claims, took_s: float) -> None:
    if not claims.broken:
        screen.verdict(f"All {len(claims)} claims held, in {took_s:.0f} s.", good=True)
        return
    screen.verdict(f"{len(claims.broken)} of {len(claims)} claims did not hold:", good=False)
    for claim in claims.broken:
        screen.claim(claim)


def _stay_up(screen: Screen, scenery: Stage, *, is_kept: bool) -> None:
    """Until Ctrl-C, or until the daemon ends by itself."""
    screen.paragraph("It keeps running. Watch it live:", [f"{scenery.agent.url}/"])
    screen.paragraph("Change a row, and search:", invitation(scenery))
    left = "stops everything" if is_kept else "stops and removes everything"
    screen.paragraph(f"Ctrl-C {left}.", [])
    try:
        while scenery.agent.is_running:
            time.sleep(_TICK_S)
        screen.verdict(f"the daemon ended; its log is {scenery.agent.log_path}", good=False)
    except KeyboardInterrupt:
        screen.note("stopping")


def _forget_environment() -> None:
    """Variables of libpq and of a configured cdc-agent would lead us to somebody's real database."""
    for name in list(os.environ):
        if name.startswith("PG") or (name.startswith("CDC_AGENT_") and "__" in name):
            del os.environ[name]


def _end_cleanly_on_signals() -> None:
    """Whatever ends us politely is a Ctrl-C, because the servers must end too."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature is Python's)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
