"""Files of the configuration that hold secrets, and which of them others than we can read. Reads modes, no contents."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cdc_agent.config.tree import Config

__all__ = ["LooseFile", "loose_files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LooseFile:
    """``key`` names a file that ``who`` can read besides its owner."""

    key: str
    path: Path
    who: str

    @property
    def message(self) -> str:
        return f"{self.key}: {self.path} can be read by {self.who}"

    @property
    def hint(self) -> str:
        return f"chmod 600 {self.path} (640 where root owns it)"


def loose_files(config: Config) -> list[LooseFile]:
    """By the rule that libpq has for keys: 0600, or 0640 where the owner is root. What is not there is not named."""
    found = ((key, path, _readers(path)) for key, path in _files(config))
    return [LooseFile(key=key, path=path, who=who) for key, path, who in found if who]


def _files(config: Config) -> Iterator[tuple[str, Path]]:
    files = {
        "source.dsn_file": config.source.dsn_file,
        "ledger.dsn_file": config.ledger.dsn_file,
        "embedding.api_key_file": config.embedding.api_key_file,
        "http.tokens_file": config.http.tokens_file,
        "stream.password_file": config.stream.password_file,
        "stream.token_file": config.stream.token_file,
        "stream.credentials_file": config.stream.credentials_file,
        **{f"webhooks.{name}.secret_file": one.secret_file for name, one in config.webhooks.items()},
    }
    yield from ((key, path) for key, path in files.items() if path is not None)


def _readers(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return ""
    if found.st_mode & stat.S_IROTH:
        return "everybody"
    # Root lends a file to the group of a service; so it is done for its keys everywhere.
    lent = found.st_uid == 0 and os.geteuid() != 0
    return "its group" if found.st_mode & stat.S_IRGRP and not lent else ""
