"""The secrets of one sender: from the configuration, or from a file that is read again when it changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cdc_agent.errors import ConfigError

__all__ = ["FileSecrets", "FixedSecrets", "Secrets"]

#: The one that counts, and the one before it.
_MOST = 2


class Secrets(Protocol):
    """All that are accepted: while a sender changes to a new one, the old one too."""

    def current(self) -> tuple[str, ...]:
        """Empty while there is none yet. Raises ``ConfigError`` for what cannot be one."""
        ...

    def learn(self, secret: str) -> bool:
        """Keep the secret that a sender names, if we have none and wait for one; False otherwise."""
        ...


class FixedSecrets:
    """The one of the configuration."""

    def __init__(self, secret: str, check: Callable[[str], None]) -> None:
        check(secret)
        self._secret = secret

    def current(self) -> tuple[str, ...]:
        return (self._secret,)

    def learn(self, secret: str) -> bool:  # noqa: ARG002 (there is nothing to learn)
        return False


class FileSecrets:
    """One or two secrets, one a line. A file that is missing or empty waits for its secret."""

    def __init__(self, path: Path, check: Callable[[str], None]) -> None:
        self._path = path
        self._check = check
        self._read: tuple[tuple[int, int] | None, tuple[str, ...]] = (None, ())

    def current(self) -> tuple[str, ...]:
        stamp = self._stamp()
        if stamp is None:
            return ()
        if stamp != self._read[0]:
            self._read = (stamp, self._secrets())
        return self._read[1]

    def learn(self, secret: str) -> bool:
        if self.current():
            return False
        self._check(secret)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = self._path.with_name(self._path.name + ".new")
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(descriptor)
        aside.replace(self._path)
        return True

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._unusable(exc.strerror or "it cannot be read") from exc
        return found.st_mtime_ns, found.st_ino

    def _secrets(self) -> tuple[str, ...]:
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as exc:
            raise self._unusable((isinstance(exc, OSError) and exc.strerror) or "it is not UTF-8") from exc
        secrets = tuple(line.strip() for line in lines if line.strip())
        if len(secrets) > _MOST:
            raise self._unusable(f"it holds {len(secrets)} secrets")
        for secret in secrets:
            try:
                self._check(secret)
            except ConfigError as exc:
                raise ConfigError(f"{self._path}: {exc.message}", hint=exc.hint) from None
        return secrets

    def _unusable(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self._path} holds no webhook secret: {why}", hint="one secret a line: the new one, then the old one"
        )
