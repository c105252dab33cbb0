"""Reads the configuration: the file, then the environment over it, then the files that hold secrets.

Everything that is wrong becomes one ``ConfigError`` that names file and line (or variable), key and remedy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from cdc_agent.config.document import Document, read_document
from cdc_agent.config.problems import Location, as_config_error, faults_of, key_path, nearest
from cdc_agent.config.tree import ENV_DELIMITER, ENV_PREFIX, CollectionConfig, Config, MqttConfig
from cdc_agent.errors import ConfigError

__all__ = ["load"]

#: Keys that may also be given as ``<key>_file``.
SECRETS: tuple[Location, ...] = (
    ("source", "dsn"),
    ("ledger", "dsn"),
    ("embedding", "api_key"),
    ("stream", "password"),
    ("stream", "token"),
)
_PATHS: tuple[tuple[str, str], ...] = (
    ("source", "dsn_file"),
    ("stream", "path"),
    ("stream", "ca_file"),
    ("stream", "password_file"),
    ("stream", "token_file"),
    ("stream", "credentials_file"),
    ("ledger", "path"),
    ("ledger", "dsn_file"),
    ("embedding", "api_key_file"),
    ("vectorstore", "path"),
    ("http", "tokens_file"),
)


def load(path: Path | str | None) -> Config:
    """Read ``path`` (None: the environment alone). Raises ``ConfigError``; nothing is started or created.

    Relative paths in the result start at the folder of the file, or at the current folder without one.
    """
    file = Path(path) if path is not None else None
    folder = (file.parent if file else Path()).absolute()
    document = read_document(file) if file else Document()
    environment = _environment()
    tree = _merge(document.tree, environment)
    places = document.places | _places_of_environment(environment)
    _put_secrets(tree, folder, places, str(file or "environment"))
    return _anchor(_validated(tree, places, str(file or "environment")), folder)


def _validated(tree: dict[str, Any], places: Mapping[Location, str], file: str) -> Config:
    try:
        config = Config.model_validate(tree)
    except ValidationError as exc:
        raise as_config_error(faults_of(exc, Config), places, file) from None
    _check_specs(config, places, file)
    return config


def _check_specs(config: Config, places: Mapping[Location, str], file: str) -> None:
    """Templates and predicates are understood now, not when the first row arrives."""
    from cdc_agent.config.specs import collection_spec

    for i, collection in enumerate(config.collections):
        try:
            collection_spec(collection)
        except (ConfigError, ValueError) as exc:
            message = exc.message if isinstance(exc, ConfigError) else str(exc)
            hint = exc.hint if isinstance(exc, ConfigError) else "see docs/CONFIG.md"
            place = places.get(("collections", i), file)
            raise ConfigError(f"{place}: collections[{i}] ({collection.name}): {message}", hint=hint) from exc


def _environment() -> dict[str, Any]:
    _refuse_unknown_variables()
    try:
        return EnvSettingsSource(Config)()
    except SettingsError as exc:
        raise ConfigError(f"environment: {exc}", hint="lists are written as JSON: '[{\"name\": ...}]'") from None


def _refuse_unknown_variables() -> None:
    known = list(Config.model_fields)
    for name in os.environ:
        section, delimiter, _ = name.upper().removeprefix(ENV_PREFIX).partition(ENV_DELIMITER)
        if not name.upper().startswith(ENV_PREFIX) or not delimiter or section.lower() in known:
            continue
        guess = nearest(section, known)
        raise ConfigError(
            f"environment: {name} names no section of the configuration"
            + (f"; did you mean {guess}?" if guess else ""),
            hint=f"sections: {', '.join(known)}; write {ENV_PREFIX}SOURCE{ENV_DELIMITER}DSN for source.dsn",
        )


def _places_of_environment(environment: Mapping[str, Any], above: Location = ()) -> dict[Location, str]:
    places: dict[Location, str] = {}
    for key, value in environment.items():
        here = (*above, key)
        if isinstance(value, dict):
            places |= _places_of_environment(value, here)
        else:
            places[here] = "environment " + ENV_PREFIX + ENV_DELIMITER.join(map(str, here)).upper()
    return places


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` wins, key by key; a secret given there also replaces its ``_file`` form below, and the reverse."""
    twins = {f"{key}_file" for key in above} | {key.removesuffix("_file") for key in above if key.endswith("_file")}
    merged = {key: value for key, value in below.items() if key not in twins}
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key) or {}, dict):
            merged[key] = _merge(merged.get(key) or {}, value)
        else:
            merged[key] = value
    return merged


def _put_secrets(tree: dict[str, Any], folder: Path, places: Mapping[Location, str], file: str) -> None:
    for section, key in SECRETS:
        keys = tree.get(str(section))
        if not isinstance(keys, dict) or not isinstance(keys.get(f"{key}_file"), str):
            continue
        location: Location = (section, f"{key}_file")
        place = f"{places.get(location, file)}: {key_path(location)}"
        if keys.get(str(key)) is not None:
            raise ConfigError(f"{place} and {section}.{key} are both set", hint="keep one of them")
        secret = _secret_in(folder / Path(keys[f"{key}_file"]).expanduser(), place)
        tree[str(section)] = {**keys, str(key): secret}


def _secret_in(path: Path, place: str) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"{place}: {path} cannot be read: {reason}", hint="check the path and who may read it"
        ) from None
    if not secret:
        raise ConfigError(f"{place}: {path} is empty", hint="write the secret into it, alone on one line")
    return secret


def _anchor(config: Config, folder: Path) -> Config:
    """The same configuration with absolute paths."""
    changes: dict[str, Any] = {"state_dir": folder / config.state_dir.expanduser()}
    for section, key in _PATHS:
        part = changes.get(section) or getattr(config, section)
        value: Path | None = getattr(part, key)
        if value is not None:
            changes[section] = part.model_copy(update={key: folder / value.expanduser()})
    changes["webhooks"] = {
        name: webhook.model_copy(update={"secret_file": folder / webhook.secret_file.expanduser()})
        if webhook.secret_file
        else webhook
        for name, webhook in config.webhooks.items()
    }
    changes["agents"] = tuple(_anchored_agent(reference, folder) for reference in config.agents)
    changes["mqtt"] = {name: _anchored_broker(broker, folder) for name, broker in config.mqtt.items()}
    changes["collections"] = tuple(_anchored_feed(collection, folder) for collection in config.collections)
    return config.model_copy(update=changes)


def _anchored_agent(reference: str, folder: Path) -> str:
    """``./agents.py:app`` with its folder; the name of a module stays."""
    place, _, name = reference.rpartition(":")
    return f"{folder / Path(place).expanduser()}:{name}" if place.endswith(".py") else reference


def _anchored_broker(broker: MqttConfig, folder: Path) -> MqttConfig:
    keys = ("ca_file", "cert_file", "key_file", "password_file")
    paths = {key: folder / path.expanduser() for key in keys if (path := getattr(broker, key)) is not None}
    return broker.model_copy(update=paths)


def _anchored_feed(collection: CollectionConfig, folder: Path) -> CollectionConfig:
    feed = collection.feed
    if feed is None or feed.token_file is None:
        return collection
    anchored = feed.model_copy(update={"token_file": folder / feed.token_file.expanduser()})
    return collection.model_copy(update={"feed": anchored})
