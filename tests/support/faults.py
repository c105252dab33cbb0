"""The catalogue of faults, the tests that provoke them, and the page that is made of both.

``python -m tests.support.faults`` writes ``docs/FAULTS.md``. Markers are read from the source of the tests, without
importing any of it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from cdc_agent.failpoints import NAMES

__all__ = ["COMMAND", "PAGE", "Fault", "Provoker", "catalogue", "page", "provokers", "stray_markers"]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "FAULTS.md"
COMMAND = "python -m tests.support.faults"
_CATALOGUE = ROOT / "tests" / "faults.yaml"
_HEAD = """# Faults

What can go wrong, what has to come of it, and the test that makes it happen: real Postgres, real Chroma, real signals.
Made by `{command}` from `tests/faults.yaml` and the tests' `@pytest.mark.fault` markers; a test
fails when a row has neither a test nor a reason, and when this page is not what the command makes.

{total} faults: {provoked} are provoked by {tests} tests, {manual} are not for the reason given, {later} wait for a
later version.
"""
_FAILPOINTS = """
## Every place where it is killed

`CDC_FAILPOINT=name:kill@n` ends the process with SIGKILL at the n-th passage of a named place. The tests do so at each
of these, with both plugins and both kinds of store (those of mending and migrations with one), and compare the whole
index with the tables afterwards:

{names}.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row. ``reason`` says why no test provokes it, ``kind`` which sort of reason that is."""

    id: str
    fault: str
    must: str
    section: str
    reason: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provoker:
    """A test that carries the marker of a fault."""

    fault_id: str
    file: Path
    test: str

    def link(self) -> str:
        place = self.file.relative_to(ROOT)
        words = self.test.removeprefix("test_").replace("_", " ")
        return f"[{words}](../{place})"


def catalogue() -> list[Fault]:
    """Every fault, in the order of the page."""
    found = []
    for section in yaml.safe_load(_CATALOGUE.read_text()):
        for row in section["faults"]:
            kind = next((k for k in ("manual", "later") if k in row), "")
            found.append(
                Fault(
                    id=row["id"],
                    fault=row["fault"],
                    must=row["must"],
                    section=section["title"],
                    reason=row.get(kind, ""),
                    kind=kind,
                )
            )
    return found


def provokers() -> list[Provoker]:
    """Every marker of every test, in the order of their files."""
    return [
        Provoker(fault_id=fault_id, file=path, test=function.name)
        for path in _test_files()
        for function in _tests(ast.parse(path.read_text()))
        for decorator in function.decorator_list
        for marker in _markers(decorator)
        for fault_id in _ids(marker, path)
    ]


def stray_markers() -> list[str]:
    """Markers that stand elsewhere than on a test, where nobody would read them."""
    strays = []
    for path in _test_files():
        tree = ast.parse(path.read_text())
        read = {id(marker) for test in _tests(tree) for part in test.decorator_list for marker in _markers(part)}
        strays += [f"{path.relative_to(ROOT)}:{m.lineno}" for m in _markers(tree) if id(m) not in read]
    return strays


def page() -> str:
    """What ``docs/FAULTS.md`` has to be."""
    faults, marked = catalogue(), provokers()
    by_fault: dict[str, list[Provoker]] = {}
    for one in marked:
        by_fault.setdefault(one.fault_id, []).append(one)
    text = _HEAD.format(
        command=COMMAND,
        total=len(faults),
        provoked=sum(1 for fault in faults if not fault.kind),
        tests=len({(one.file, one.test) for one in marked}),
        manual=sum(1 for fault in faults if fault.kind == "manual"),
        later=sum(1 for fault in faults if fault.kind == "later"),
    )
    for section in dict.fromkeys(fault.section for fault in faults):
        text += (
            f"\n## {section}\n\n| fault | what happens | what has to come of it | provoked by |\n|---|---|---|---|\n"
        )
        for fault in (f for f in faults if f.section == section):
            text += f"| `{fault.id}` | {fault.fault} | {fault.must} | {_evidence(fault, by_fault)} |\n"
    return text + _FAILPOINTS.format(names=", ".join(f"`{name}`" for name in NAMES))


def _evidence(fault: Fault, by_fault: dict[str, list[Provoker]]) -> str:
    links = "; ".join(dict.fromkeys(one.link() for one in by_fault.get(fault.id, ())))
    return "; ".join(part for part in (links, f"*{fault.kind}*: {fault.reason}" if fault.kind else "") if part)


def _test_files() -> list[Path]:
    return sorted((ROOT / "tests").rglob("test_*.py"))


def _tests(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


def _markers(tree: ast.AST) -> Iterator[ast.Call]:
    """Also those within a parametrization."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            yield node


def _ids(marker: ast.Call, path: Path) -> Iterator[str]:
    for argument in marker.args:
        if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
            raise ValueError(f"{path}:{marker.lineno}: a fault is named by a string")
        yield argument.value


if __name__ == "__main__":
    PAGE.write_text(page())
