"""A YAML file that remembers on which line each key stands and refuses a key written twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cdc_agent.config.problems import Location, key_path
from cdc_agent.errors import ConfigError

__all__ = ["Document", "read_document"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a file says: ``tree`` in plain Python, ``places`` as ``file:line`` of each key."""

    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[Location, str] = field(default_factory=dict)


def read_document(path: Path) -> Document:
    """Read a file. Raises ``ConfigError`` that names the file and the line."""
    text = _read(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise _not_yaml(path, exc) from None
    if tree is None:
        return Document()
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: the file holds a {type(tree).__name__}, not keys",
            hint="start from config/cdc-agent.yaml, the commented reference",
        )
    places: dict[Location, str] = {}
    _note_places(root, (), path, places, set())
    # A section whose keys are all commented out is None in YAML; it means the defaults.
    return Document(tree={key: value for key, value in tree.items() if value is not None}, places=places)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file",
            hint="name the configuration with -c FILE or CDC_AGENT_CONFIG; config/cdc-agent.yaml is a template",
        ) from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: the file is not UTF-8", hint="save it as UTF-8 text") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}", hint="check the path and its permissions") from exc


def _not_yaml(path: Path, exc: Exception) -> ConfigError:
    """Only YAML's description and place: its excerpt of the line could show a password."""
    mark = getattr(exc, "problem_mark", None)
    place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    fault = getattr(exc, "problem", None) or "the file cannot be parsed"
    return ConfigError(
        f"{place}: not valid YAML: {fault}",
        hint="check indentation (spaces, no tabs) and put quotes around values with : # { or %",
    )


def _note_places(node: Any, location: Location, path: Path, places: dict[Location, str], seen: set[int]) -> None:
    if id(node) in seen:  # An alias (&x, *x); it may even contain itself.
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            places[*location, i] = f"{path}:{item.start_mark.line + 1}"
            _note_places(item, (*location, i), path, places, seen)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*location, str(key.value))
            place = f"{path}:{key.start_mark.line + 1}"
            if here in places:
                raise ConfigError(
                    f"{place}: {key_path(here)} is set twice, first at {places[here]}", hint="keep one of them"
                )
            places[here] = place
            _note_places(value, here, path, places, seen)
