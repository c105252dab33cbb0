"""The lines that invite to play: commands that work as they stand, in this checkout, with what this machine has."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from cdc_agent.demo.agent import COLLECTION
from cdc_agent.demo.stage import Stage

__all__ = ["invitation"]

_STATEMENT = "update articles set body = 'Penguins huddle against the wind.', updated_at = now() where id = 7"
_QUERY = "birds in the cold"


def invitation(scenery: Stage) -> list[str]:
    return [
        _change(scenery),
        f'{_program()} search -c {scenery.agent.config_path} "{_QUERY}"',
        f"""curl -s {scenery.agent.url}/search -d '{{"collection": "{COLLECTION}", "query": "{_QUERY}", "k": 1}}'""",
        f"{_program()} status -c {scenery.agent.config_path}",
        f"tail -f {scenery.agent.log_path}",
    ]


def _change(scenery: Stage) -> str:
    beside = scenery.installation.bin_dir / "psql"
    psql = shutil.which("psql") or (str(beside) if beside.exists() else None)
    if psql:
        return f'{_short(psql)} {scenery.dsn} -c "{_STATEMENT}"'
    program = f"import psycopg; psycopg.connect('{scenery.dsn}', autocommit=True).execute(input())"
    return f'echo "{_STATEMENT}" | {_relative(sys.executable)} -c "{program}"'


def _program() -> str:
    beside = Path(sys.executable).with_name("cdc-agent")
    return _short(str(beside)) if beside.exists() else f"{_relative(sys.executable)} -m cdc_agent.cli"


def _short(program: str) -> str:
    """The bare name where the shell finds that very program."""
    name = Path(program).name
    return name if shutil.which(name) == program else _relative(program)


def _relative(program: str) -> str:
    here = Path.cwd()
    return str(Path(program).relative_to(here)) if Path(program).is_relative_to(here) else program
