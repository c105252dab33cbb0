"""docs/ERRORS.md names every error class with its exit code, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cdc_agent import errors

PAGE = (Path(__file__).parents[2] / "docs" / "ERRORS.md").read_text()
CLASSES = [getattr(errors, name) for name in errors.__all__]


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
    assert set(re.findall(r"^\| `([A-Z]\w+)` \|", PAGE, flags=re.MULTILINE)) == set(errors.__all__)


def test_every_error_class_is_exported() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.CdcAgentError)
    }
    assert defined == set(errors.__all__)
