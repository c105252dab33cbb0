"""config/cdc-agent.yaml and docs/CONFIG.md name every key with its true default."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from cdc_agent.config import Config, load

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "config" / "cdc-agent.yaml"
CONFIG_PAGE = ROOT / "docs" / "CONFIG.md"


class Key(NamedTuple):
    path: str
    default: Any
    sentence: str

    @property
    def shown_default(self) -> str:
        if self.default is PydanticUndefined or self.default is None:
            return ""
        return f"`{plain(self.default)}`"

    @property
    def row(self) -> str:
        return f"| `{self.path}` | {self.shown_default} | {self.sentence} |"


def plain(value: Any) -> Any:
    """A default as YAML shows it."""
    if isinstance(value, Path):
        return f"./{value}"
    return list(value) if isinstance(value, tuple) else value


def keys(model: type[BaseModel] = Config, above: str = "") -> Iterator[Key]:
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield Key(above + name, field.default, " ".join((field.description or "").split()))
        else:
            marker = {"collections": "[]", "webhooks": ".<name>", "mqtt": ".<name>", "topics": "[]"}.get(name, "")
            yield from keys(section, f"{above}{name}{marker}.")


def section_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def reference_values(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if name == "collections":
            yield from reference_values(value[0], "collections[].")
        elif name in ("webhooks", "mqtt"):
            for one in value.values():
                yield from reference_values(one, f"{name}.<name>.")
        elif name == "topics":
            yield from reference_values(value[0], f"{above}topics[].")
        elif isinstance(value, dict):
            yield from reference_values(value, f"{above}{name}.")
        else:
            yield above + name, value


ALL_KEYS = list(keys())


def uncommented(text: str) -> str:
    """The reference with its optional keys, and its example of webhooks, switched on."""
    text = re.sub(
        r"^# ( *[a-z_]+:)", r"\1", text.replace("webhooks: {}\n", "").replace("mqtt: {}\n", ""), flags=re.MULTILINE
    )
    return re.sub(r"^( *)# ([a-z_]+: \S)", r"\1\2", text, flags=re.MULTILINE)


@pytest.mark.parametrize("key", ALL_KEYS, ids=lambda key: key.path)
def test_the_reference_file_has_the_key_and_its_default(key: Key) -> None:
    # Given the reference as it is, and with its optional keys switched on
    values = dict(reference_values(yaml.safe_load(REFERENCE.read_text())))
    all_values = dict(reference_values(yaml.safe_load(uncommented(REFERENCE.read_text()))))

    # Then the key is there, commented out exactly if it has no default
    assert key.path in all_values, f"{key.path} is missing in config/cdc-agent.yaml"
    if key.default is None:
        assert key.path not in values, f"{key.path} is optional: comment it out in config/cdc-agent.yaml"
    elif key.default is not PydanticUndefined:
        shown = all_values if key.path.startswith(("webhooks.", "mqtt.", "collections[].feed.")) else values
        assert shown.get(key.path) == plain(key.default)


def test_the_reference_file_has_no_key_that_does_not_exist() -> None:
    all_values = dict(reference_values(yaml.safe_load(uncommented(REFERENCE.read_text()))))

    assert set(all_values) <= {key.path for key in ALL_KEYS}


def test_the_reference_file_can_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CDC_AGENT_SOURCE__DSN",):
        monkeypatch.delenv(name, raising=False)

    config = load(REFERENCE)

    assert config.model_copy(update={"state_dir": None}) == load(REFERENCE).model_copy(update={"state_dir": None})
    assert config.state_dir == REFERENCE.parent / "var" / "cdc-agent"


@pytest.mark.parametrize("key", ALL_KEYS, ids=lambda key: key.path)
def test_the_page_has_the_key_its_default_and_its_sentence(key: Key) -> None:
    assert key.sentence, f"write a sentence under {key.path} in cdc_agent/config/tree.py"
    assert key.row in CONFIG_PAGE.read_text(), f"docs/CONFIG.md lacks this row:\n{key.row}"


def test_the_page_has_no_key_that_does_not_exist() -> None:
    documented = re.findall(r"^\| `([a-z_.\[\]<>]+)` \| (?:`[^`]*`|) \|", CONFIG_PAGE.read_text(), flags=re.MULTILINE)

    assert set(documented) == {key.path for key in ALL_KEYS}
