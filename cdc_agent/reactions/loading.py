"""Finds the user's ``Agents`` by the names in the configuration: ``package.module:app``, or ``./agents.py:app``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from cdc_agent.errors import ConfigError
from cdc_agent.reactions.agents import Agents

__all__ = ["load", "merged"]


def load(references: Sequence[str]) -> Agents:
    """All of them as one set. Modules that Python finds nowhere else are looked for in the current folder; what a file
    imports, beside it.

    Raises ``ConfigError`` that names the reference: nothing there, its program fails, or two declare the same.
    """
    return merged([(reference, _loaded(reference)) for reference in references])


def merged(apps: Sequence[tuple[str, Agents]]) -> Agents:
    """One set of several. Raises ``ConfigError`` where they declare the same name or command."""
    together = Agents()
    for reference, app in apps:
        try:
            for agent in app.agents.values():
                together.take(agent)
            for saga in app.sagas.values():
                together.add(saga)
        except ConfigError as exc:
            raise ConfigError(f"agents: {reference}: {exc.message}", hint=exc.hint) from exc
    return together


def _loaded(reference: str) -> Agents:
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(
            f"agents: {reference!r} names no app", hint="write module:app, or ./file.py:app (from this file's folder)"
        )
    try:
        module = _file(Path(place)) if place.endswith(".py") else _module(place)
    except Exception as exc:
        raise ConfigError(f"agents: {reference} cannot be loaded: {_told(exc)}", hint=_hint(exc)) from exc
    found = getattr(module, name, None)
    if not isinstance(found, Agents):
        apps = [known for known, value in vars(module).items() if isinstance(value, Agents)]
        raise ConfigError(
            f"agents: {reference}: {name!r} is {'missing' if found is None else 'no Agents()'}",
            hint=f"apps there: {', '.join(apps) or 'none; make one: app = Agents()'}",
        )
    return found


def _file(path: Path) -> ModuleType:
    path = path.resolve()
    name = f"cdc_agent_user.{path.stem}_{abs(hash(str(path))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    _look_in(path.parent)
    # Before it runs: what it pickles or annotates looks itself up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _module(place: str) -> ModuleType:
    _look_in(Path.cwd())
    return importlib.import_module(place)


def _look_in(folder: Path) -> None:
    # Behind everything that is installed: nobody's folder may replace a library.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _told(exc: Exception) -> str:
    return exc.message if isinstance(exc, ConfigError) else f"{type(exc).__name__}: {exc}"


def _hint(exc: Exception) -> str:
    if isinstance(exc, ConfigError) and exc.hint:
        return exc.hint
    if isinstance(exc, ImportError | FileNotFoundError):
        return "files are looked for beside the configuration file; modules where Python looks (PYTHONPATH), then here"
    return "run the file with python to see where it fails"
