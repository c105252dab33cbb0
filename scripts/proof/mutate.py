"""Runs the tests that guard the commit protocol against mutants of it; reports who survives.

One process imports what is heavy, and forks for each mutant: the child loads one module in its mutated form and runs
the fast tests of that module until the first fails. mutmut leaves out every decorated function, which here are the
transactions; cosmic-ray starts an interpreter for each mutant, and the imports take longer than most of the tests.
A survivor that changes nothing that anybody could notice is listed with its reason in ``equivalent.toml``.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import signal
import sys
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mutants import Mutant, mutants

ROOT = Path(__file__).parents[2]
_HERE = Path(__file__).parent
#: Seconds of CPU and of the clock after which a mutant counts as killed: it hangs.
_CPU_S, _CLOCK_S = 90, 900
#: Seconds for one test: a machine that does other things besides must not pass for a test that noticed something.
_TEST_S = 240
_HISTORY = "tests/unit/test_any_history.py"


@dataclass(frozen=True)
class Target:
    """A module, the functions of it that are mutated (None: all), and the tests that guard them, fastest first.

    ``other`` names the backend of the same contract that this module is not, and that need not be started.
    """

    module: str
    tests: tuple[str, ...]
    functions: frozenset[str] | None = None
    other: str = ""


TARGETS = (
    Target("cdc_agent.agents.folding", ("tests/unit/agents/test_folding.py", _HISTORY)),
    Target("cdc_agent.agents.planning", ("tests/unit/agents/test_planning.py", _HISTORY)),
    Target("cdc_agent.agents.writing", ("tests/unit/agents/test_writing.py", _HISTORY)),
    Target(
        "cdc_agent.ledger.sqlite",
        ("tests/contract/test_ledger.py", _HISTORY),
        frozenset(
            {"checkpoint", "begin_write", "intents", "flip", "_names", "_replace", "garbage", "clear_garbage"}
            | {"live", "known", "_transaction", "manifests", "_manifest_rows", "save_resync", "prune_tombstones"}
        ),
        other="postgres",
    ),
    Target(
        "cdc_agent.capture",
        ("tests/unit/test_capture_queue.py", "tests/unit/test_capture_threads.py", _HISTORY),
        frozenset({"put", "take", "taken", "_connect", "_read", "_put", "_counts", "_advance_idle", "_finish"})
        | frozenset({"run_writer", "_append", "_append_or_raise", "_expanded"}),
    ),
    Target(
        "cdc_agent.stream.sqlite",
        ("tests/unit/test_rebasing.py", "tests/contract/test_stream.py", _HISTORY),
        frozenset({"append", "_write", "_blocks", "_load", "rebase", "begin_at"})
        | frozenset({"__exit__", "read", "_block_after", "_prune", "_make_room", "release"}),
        other="jetstream",
    ),
    Target(
        "cdc_agent.stream.progress",
        ("tests/unit/stream/test_progress.py", "tests/contract/test_stream.py", _HISTORY),
        other="jetstream",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="only these, like agents.writing")
    parser.add_argument("--only", default="", help="only mutants whose name holds this")
    parser.add_argument("--every", type=int, default=1, help="only every n-th mutant, for a first look")
    parser.add_argument("--first", type=int, default=0, help="the first of those, counted from 0")
    parser.add_argument("--again", type=Path, help="only those that survived according to this, an earlier report")
    args = parser.parse_args()
    survivors = _survivors(args.again.read_text()) if args.again else None
    equivalent = tomllib.loads((_HERE / "equivalent.toml").read_text())
    _load_what_is_heavy()
    unjudged = 0
    for target in TARGETS:
        short = target.module.removeprefix("cdc_agent.")
        if not args.modules or short in args.modules:
            source = (ROOT / f"{target.module.replace('.', '/')}.py").read_text()
            made = [m for m in mutants(source, target.functions) if args.only in m.name][args.first :: args.every]
            if survivors is not None:
                made = [m for m in made if (short, m.name) in survivors]
            unjudged += _run(target, short, source, made, equivalent.get(short, {}))
    return 1 if unjudged else 0


def _survivors(report: str) -> set[tuple[str, str]]:
    """Module and name of each mutant that a report of this program calls a survivor."""
    lines = [line.split(maxsplit=2) for line in report.splitlines() if line.startswith("  SURVIVED ")]
    return {(place.partition(":")[0], name) for _, place, name in lines}


def _run(target: Target, short: str, source: str, made: Sequence[Mutant], equivalent: dict[str, str]) -> int:
    """Run all mutants of one module; returns how many survived without a reason."""
    if not made:
        return 0
    if _is_killed(target, Mutant("as it is", 0, source)):
        raise SystemExit(f"{short}: its tests fail without a mutant; run them first")
    killed, began, unjudged = 0, time.monotonic(), 0
    for mutant in made:
        if _is_killed(target, mutant):
            killed += 1
        elif mutant.name in equivalent:
            print(f"  equivalent  {short}:{mutant.line}  {mutant.name}: {equivalent[mutant.name]}", flush=True)
        else:
            unjudged += 1
            print(f"  SURVIVED    {short}:{mutant.line}  {mutant.name}", flush=True)
    seconds = time.monotonic() - began
    rest = len(made) - killed - unjudged
    print(
        f"{short}: {len(made)} mutants, {killed} killed, {rest} equivalent, {unjudged} survived, {seconds:.0f} s",
        flush=True,
    )
    return unjudged


def _load_what_is_heavy() -> None:
    import hypothesis.stateful
    import msgspec
    import numpy
    import orjson
    import prometheus_client
    import psycopg
    import pydantic
    import pytest
    import sqlglot
    import tenacity

    heavy = (hypothesis, msgspec, numpy, orjson, prometheus_client, psycopg, pydantic, pytest, sqlglot, tenacity)
    assert all(isinstance(module, ModuleType) for module in heavy)
    assert not any(name.startswith("cdc_agent") for name in sys.modules)


def _is_killed(target: Target, mutant: Mutant) -> bool:
    pid = os.fork()
    if pid == 0:
        # A group of its own, with the servers that its tests start: it leaves without ending them.
        os.setsid()
        _child(target, mutant)
    try:
        return _ended(pid) != 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _ended(pid: int) -> int:
    """How a child ended; one that takes too long is killed."""
    deadline = time.monotonic() + _CLOCK_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _child(target: Target, mutant: Mutant) -> None:
    """Run the tests on the mutant and leave; never returns."""
    os.chdir(ROOT)
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    code = 1
    try:
        import pytest

        sys.path.insert(0, str(ROOT))
        sys.meta_path.insert(0, _Mutated(target.module, mutant.source))
        # What is heavy was imported before pytest could look at it, which is no news.
        quiet = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        options = [*quiet, "--hypothesis-profile=mutants", "--hypothesis-seed=1", f"--timeout={_TEST_S}"]
        chosen = ["-k", f"not {target.other}"] if target.other else []
        code = int(pytest.main([*options, *chosen, *target.tests]))
    finally:
        os._exit(code)


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for one module with another source."""

    def __init__(self, module: str, source: str) -> None:
        self._module = module
        self._source = source

    def find_spec(self, fullname: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, f"<mutant of {self._module}>", "exec"), module.__dict__)


if __name__ == "__main__":
    sys.exit(main())
