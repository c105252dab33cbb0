"""What is wrong with a configuration, in words: the place, the fault, the remedy. Never the value of a secret."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from cdc_agent.errors import ConfigError

__all__ = ["Location", "Fault", "as_config_error", "key_path", "nearest", "faults_of", "wrong"]

Location = tuple[str | int, ...]

_SECRET_KEYS = frozenset({"dsn", "api_key"})
_WORDS = {
    "Input should be a valid tuple": "should be a list",
    "Input should be a valid dictionary or instance of": "should hold keys, one a line:",
    "Input should be": "should be",
    "String should": "should",
    "Tuple should have at least 1 item after validation, not 0": "should have at least one entry",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: ``location`` is the key, ``text`` the rest of the sentence, ``hint`` the remedy."""

    location: Location
    text: str
    hint: str


def wrong(fault: str, *, hint: str, key: str = "") -> PydanticCustomError:
    """An error for validators of the tree. ``key`` names a key below the one that is validated."""
    return PydanticCustomError("wrong", "{fault}", {"fault": fault, "hint": hint, "key": key})


def nearest(name: str, known: list[str]) -> str | None:
    """The known name that a misspelt one most likely means."""
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)), None)


def key_path(location: Location) -> str:
    """``("collections", 0, "table")`` as ``collections[0].table``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def faults_of(error: ValidationError, root: type[BaseModel]) -> list[Fault]:
    """Every fault that pydantic found, but for lists that are too short only because their entries are at fault."""
    found = error.errors(include_url=False)
    return [_fault(details, root) for details in found if not _follows(details, found)]


def _follows(details: ErrorDetails, found: list[ErrorDetails]) -> bool:
    location = details["loc"]
    below = (other["loc"] for other in found if len(other["loc"]) > len(location))
    return details["type"] == "too_short" and any(place[: len(location)] == location for place in below)


def as_config_error(faults: list[Fault], where: Mapping[Location, str], file: str) -> ConfigError:
    """One error for all faults. ``where`` names the places (file and line, or variable) of locations."""
    sentences = [f"{_place(fault.location, where, file)}: {_sentence(fault)}" for fault in faults]
    if len(faults) == 1:
        return ConfigError(sentences[0], hint=faults[0].hint)
    lines = [f"{s} ({fault.hint})" if fault.hint else s for s, fault in zip(sentences, faults, strict=True)]
    return ConfigError(
        f"{len(faults)} things are wrong in the configuration\n  - " + "\n  - ".join(lines),
        hint="each line names the key; docs/CONFIG.md lists every key",
    )


def _sentence(fault: Fault) -> str:
    return f"{key_path(fault.location)} {fault.text}" if fault.location else fault.text


def _place(location: Location, where: Mapping[Location, str], file: str) -> str:
    """The place of the key, or of the nearest key above it that was written down."""
    for length in range(len(location), 0, -1):
        if location[:length] in where:
            return where[location[:length]]
    return file


def _fault(details: ErrorDetails, root: type[BaseModel]) -> Fault:
    location = details["loc"]
    match details["type"]:
        case "wrong":
            context = details["ctx"]
            below = (context["key"],) if context["key"] else ()
            return Fault(location=(*location, *below), text=context["fault"], hint=context["hint"])
        case "extra_forbidden":
            return _unknown_key(location, root)
        case "missing":
            return Fault(location=location, text="is missing", hint=_how_to_set(location))
        case _:
            return _bad_value(details)


def _unknown_key(location: Location, root: type[BaseModel]) -> Fault:
    known = list(_known_keys(root, location[:-1]))
    guess = nearest(str(location[-1]), known)
    section = key_path(location[:-1]) or "the top level"
    return Fault(
        location=location,
        text="is not a known key" + (f"; did you mean {key_path((*location[:-1], guess))}?" if guess else ""),
        hint=f"known keys of {section}: {', '.join(known)}",
    )


def _how_to_set(location: Location) -> str:
    if any(isinstance(part, int) for part in location) or len(location) == 1:
        return f"add {key_path(location)} to the configuration file"
    variable = "CDC_AGENT_" + "__".join(str(part).upper() for part in location)
    also = f", {key_path(location)}_file" if location[-1] in _SECRET_KEYS else ""
    return f"set {key_path(location)}{also} or the environment variable {variable}"


def _bad_value(details: ErrorDetails) -> Fault:
    text = details["msg"]
    for pydantic_says, we_say in _WORDS.items():
        if text.startswith(pydantic_says):
            text = we_say + text.removeprefix(pydantic_says)
            break
    value = details.get("input")
    location = details["loc"]
    if isinstance(value, str | int | float | bool) and not _SECRET_KEYS & set(map(str, location)):
        text += f", not {_short(value)}"
    return Fault(location=location, text=text, hint="docs/CONFIG.md says what this key takes")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(root: type[BaseModel], location: Location) -> Iterator[str]:
    model: Any = root
    named = False
    for part in location:
        # A place in a list, or the name of an entry, is no key of a model.
        if isinstance(part, int) or named:
            named = False
            continue
        annotation = model.model_fields[part].annotation
        named = typing.get_origin(annotation) is dict
        model = _model_in(typing.get_args(annotation)[1] if named else annotation)
    return iter(model.model_fields)


def _model_in(annotation: Any) -> Any:
    """The model inside ``tuple[Model, ...]``, ``Model | None`` or ``Model``."""
    arguments = typing.get_args(annotation)
    if not arguments:
        return annotation
    return next(_model_in(inner) for inner in arguments if inner not in (..., type(None)))
