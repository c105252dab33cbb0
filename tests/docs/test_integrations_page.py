"""docs/INTEGRATIONS.md shows nothing that is not in an example, and leaves no example out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cdc_agent.integrations.hits import SOURCE_FIELDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "INTEGRATIONS.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def shown(path: Path) -> str:
    """The code that the page shows from this example."""
    match = re.search(rf"From `examples/{path.name}`.*?```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert match is not None, f"docs/INTEGRATIONS.md shows nothing from {path.name}"
    return match[1]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_page_shows_what_stands_in_the_example(path: Path) -> None:
    text = path.read_text()

    # Blank lines may stand for what is left out.
    for part in re.split(r"\n{2,}", shown(path).strip("\n")):
        assert part in text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_has_a_row(path: Path) -> None:
    assert re.search(rf"^\| .*`examples/{path.name}` \|", PAGE, flags=re.MULTILINE)


def test_the_page_names_no_example_that_does_not_exist() -> None:
    assert set(re.findall(r"examples/(\w+\.py)", PAGE)) == {path.name for path in EXAMPLES}


def test_the_fields_of_fresh_retrievers_are_described() -> None:
    described = set(re.findall(r"^\| `(cdc_\w+)` \| .*\| (?:✓|LangChain) \|", PAGE, flags=re.MULTILINE))

    assert described == {*SOURCE_FIELDS, "cdc_score"}
