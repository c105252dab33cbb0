"""The stage: a folder, Postgres in it, the table, and the daemon's place. Everything is gone when the block ends."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cdc_agent.demo.agent import Agent
from cdc_agent.demo.corpus import Article
from cdc_agent.demo.installations import BIN_VARIABLE, Installation, choose_installation, find_installations
from cdc_agent.demo.postgres import PostgresServer
from cdc_agent.demo.table import ArticlesTable

__all__ = ["Stage", "preferred_installation", "stage", "throwaway_folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What the story plays on. The daemon does not run yet."""

    installation: Installation
    dsn: str
    table: ArticlesTable
    agent: Agent


@contextmanager
def stage(articles: Sequence[Article], folder: Path | None) -> Iterator[Stage]:
    """Put up everything in ``folder`` (which then stays), or in one that is thrown away."""
    with ExitStack() as things:
        place = folder or Path(things.enter_context(throwaway_folder()))
        place.mkdir(parents=True, exist_ok=True)
        installation = preferred_installation()
        server = things.enter_context(PostgresServer(installation.bin_dir, place / "postgres"))
        table = things.enter_context(closing(ArticlesTable(server.dsn())))
        table.fill(articles)
        own = place / "agent"
        own.mkdir(mode=0o700, exist_ok=True)
        agent = Agent(own, server.dsn())
        things.callback(agent.close)
        things.callback(_be_deaf)
        yield Stage(installation=installation, dsn=server.dsn(), table=table, agent=agent)


def preferred_installation() -> Installation:
    """The one named in the environment, else a wheel's, which is alike on every machine, else what there is."""
    ranks = (BIN_VARIABLE, "wheel")
    found = [i for rank in ranks for i in find_installations() if i.origin.startswith(rank)]
    return found[0] if found else choose_installation()


@contextmanager
def throwaway_folder() -> Iterator[str]:
    """A folder that is gone when the block ends."""
    # In /tmp and open to be entered: as root Postgres runs as somebody who must get to its data.
    with tempfile.TemporaryDirectory(prefix="cdc-agent-demo-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield folder


def _be_deaf() -> None:
    """From here on nothing interrupts: a second, impatient Ctrl-C would leave servers behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
