"""docs/ERRORS.md names every error class with its exit code and every state with its remedy, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_agent import errors
from cdc_agent.client import protocol
from cdc_agent.identity import STATES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ERRORS.md").read_text()
CLASSES = [getattr(errors, name) for name in errors.__all__]
CLIENT_CLASSES = protocol.ClientError.__subclasses__()


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_the_error_is_documented_with_its_exit_code(error: type[errors.CdcAgentError]) -> None:
    row = next((line for line in PAGE.splitlines() if line.startswith(f"| `{error.__name__}` |")), None)

    assert row is not None, f"docs/ERRORS.md lacks {error.__name__}"
    assert row.endswith(f"| {error.exit_code} |")


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_retryable_errors_are_said_to_be_retried(error: type[errors.CdcAgentError]) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{error.__name__}` |"))

    assert ("retried" in row) == error.retryable


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_the_tree_in_the_docstring_shows_the_error(error: type[errors.CdcAgentError]) -> None:
    assert re.search(rf"\b{error.__name__}\b", errors.__doc__ or "")


def test_the_page_names_no_error_that_does_not_exist() -> None:
    # States are all capitals.
    named = set(re.findall(r"^\| `([A-Z]\w*[a-z]\w*)` \|", PAGE, flags=re.MULTILINE))
    assert named == {*errors.__all__, *(error.__name__ for error in CLIENT_CLASSES)}


def test_every_error_class_is_exported() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.CdcAgentError)
    }
    assert defined == set(errors.__all__)


# -- states --------------------------------------------------------------------------------------------------


def is_state(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[A-Z]+(_[A-Z]+)+", node.value) is not None
    )


def states_in(path: Path) -> Iterator[str]:
    """What the file calls ``IdentityMismatch`` with, wherever in the first argument it stands."""
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "IdentityMismatch" and call.args:
            yield from (node.value for node in ast.walk(call.args[0]) if is_state(node))  # type: ignore[attr-defined]


STATES_IN_CODE = sorted(
    {state for path in (ROOT / "cdc_agent").rglob("*.py") for state in states_in(path)} | set(STATES)
)


@pytest.mark.parametrize("state", STATES_IN_CODE)
def test_the_state_is_documented_with_its_remedy(state: str) -> None:
    row = next((line for line in PAGE.splitlines() if line.startswith(f"| `{state}` |")), None)

    assert row is not None, f"docs/ERRORS.md lacks the state {state}"
    _, what, remedy, *_ = [cell.strip() for cell in row.strip("|").split("|")]
    assert what
    assert remedy


def test_the_page_names_no_state_that_does_not_exist() -> None:
    code = "".join(path.read_text() for path in (ROOT / "cdc_agent").rglob("*.py"))

    for state in re.findall(r"^\| `([A-Z]+(?:_[A-Z]+)+)` \|", PAGE, flags=re.MULTILINE):
        assert f'"{state}"' in code, f"nothing raises {state}"
