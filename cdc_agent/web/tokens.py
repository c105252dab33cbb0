"""The file of bearer tokens: who may talk to us, for what, and as whose tenant.

Two forms. One token a line: each may do everything. Or a list in YAML, where each has a name, scopes, and perhaps a
condition that keeps it to its tenant; there a token may be given as its SHA-256, so that the file opens no door.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cdc_agent.errors import ConfigError, UsageError
from cdc_agent.grants import SCOPES, Grant, too_open
from cdc_agent.search import condition

__all__ = [
    "MIN_TOKEN_CHARACTERS",
    "Token",
    "Tokens",
    "digest_of",
    "entry",
    "is_list",
    "new_token",
    "parse_tokens",
    "read_tokens",
]

#: A shorter token can be guessed.
MIN_TOKEN_CHARACTERS = 16
_KEYS = ("name", "token", "token_sha256", "scopes", "where")
_PLAIN_HINT = f"one token a line, at least {MIN_TOKEN_CHARACTERS} characters: openssl rand -hex 32"
_ENTRY_HINT = "`cdc-agent token new` makes an entry; docs/CONFIG.md shows one with every key"
#: How a list in YAML begins.
_LIST = re.compile(r"-(\s|\Z)|\[")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One entry of the file. ``secret`` is None where only the digest is known."""

    digest: bytes
    grant: Grant
    secret: str | None = None

    def __repr__(self) -> str:
        return f"Token({self.grant.name})"


class Tokens:
    """The tokens that open the door, kept as hashes. ``renew`` may be called while requests are answered."""

    def __init__(self, tokens: Sequence[Token] = ()) -> None:
        self._grants = [(token.digest, token.grant) for token in tokens]

    @classmethod
    def load(cls, path: Path | None) -> Tokens:
        """None: no tokens are asked for. Raises ``ConfigError``."""
        return cls(read_tokens(path) if path else [])

    def renew(self, path: Path | None) -> None:
        """Read the file again; what is wrong with it raises ``ConfigError`` and changes nothing."""
        if path is not None:
            self._grants = [(token.digest, token.grant) for token in read_tokens(path)]

    def __bool__(self) -> bool:
        return bool(self._grants)

    def grant(self, token: str) -> Grant | None:
        """What a token may do; None for one that is not known. Compares with every hash, so that the time says
        nothing."""
        digest = digest_of(token)
        found = [grant for known, grant in self._grants if hmac.compare_digest(digest, known)]
        return found[0] if found else None


def new_token() -> str:
    """256 bits of chance."""
    return secrets.token_hex(32)


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def entry(token: str, *, name: str, scopes: Sequence[str], where: Mapping[str, Any] | None) -> str:
    """The lines of a tokens file that let this token in. Raises ``ConfigError`` for what ``read_tokens`` refuses."""
    lines = [f"- name: {json.dumps(name)}", f"  token_sha256: {digest_of(token).hex()}", f"  scopes: {_flow(scopes)}"]
    if where is not None:
        # JSON is YAML, and says of each value whether it is a text or a number.
        lines.append(f"  where: {json.dumps(where)}")
    text = "\n".join(lines) + "\n"
    parse_tokens(text, "the new token")
    return text


def _flow(scopes: Sequence[str]) -> str:
    return f"[{', '.join(scopes)}]"


def read_tokens(path: Path) -> list[Token]:
    """Raises ``ConfigError`` when the file cannot be read, holds no token, or says something that protects nothing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"http.tokens_file: {path} cannot be read: {reason}", hint="check the path and who may read it"
        ) from exc
    return parse_tokens(text, f"http.tokens_file: {path}")


def parse_tokens(text: str, what: str) -> list[Token]:
    """What a tokens file says; ``what`` names it in ``ConfigError``s."""
    lines = _lines(text)
    if not lines:
        raise ConfigError(f"{what} holds no token", hint=f"{_PLAIN_HINT}; or: cdc-agent token new NAME")
    return list(_listed(text, what) if is_list(text) else _plain(lines, what))


def is_list(text: str) -> bool:
    """Whether a file has the form with names and scopes. No token begins like a list, because none holds a blank."""
    return any(_LIST.match(line) for line in _lines(text)[:1])


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _plain(lines: Sequence[str], what: str) -> Iterator[Token]:
    """One token a line. Lines are counted without comments, and never shown."""
    for number, line in enumerate(lines, start=1):
        if fault := _fault_of(line):
            raise ConfigError(f"{what} has {fault}", hint=_PLAIN_HINT)
        grant = Grant(name=f"line {number}", scopes=frozenset(SCOPES))
        yield Token(digest=digest_of(line), grant=grant, secret=line)


def _fault_of(token: str) -> str:
    if len(token) < MIN_TOKEN_CHARACTERS:
        return "a token that is too short"
    # A header carries neither blanks inside a token nor other alphabets.
    return "" if token.isascii() and token.split() == [token] else "a token with odd signs"


def _listed(text: str, what: str) -> Iterator[Token]:
    try:
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        # YAML's own words could show the line, and so the token.
        mark = getattr(exc, "problem_mark", None)
        place = f"{what}, line {mark.line + 1}," if mark else what
        raise ConfigError(f"{place} is not valid YAML", hint=_ENTRY_HINT) from None
    tokens = [_token(found, f"{what}, entry {i}") for i, found in enumerate(entries, start=1)]
    _refuse_twins(what, "name", (token.grant.name for token in tokens))
    _refuse_twins(what, "token", (token.digest for token in tokens))
    yield from tokens


def _refuse_twins(what: str, key: str, values: Iterator[Any]) -> None:
    if any(count > 1 for count in Counter(values).values()):
        raise ConfigError(f"{what} has the same {key} twice", hint="each entry has a name and a token of its own")


def _token(found: Any, what: str) -> Token:
    if not isinstance(found, dict):
        raise ConfigError(f"{what}: is not a set of keys", hint=_ENTRY_HINT)
    unknown = [str(key) for key in found if key not in _KEYS]
    if unknown:
        raise ConfigError(f"{what}: {unknown[0]!r} is not a known key", hint=f"known keys: {', '.join(_KEYS)}")
    name = found.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}", name):
        raise ConfigError(f"{what}: name is not a short name", hint="letters, digits, blanks and . _ @ -, at most 64")
    what = f"{what} ({name})"
    secret = found.get("token")
    scopes, where = _scopes(found.get("scopes"), what), _where(found.get("where"), what)
    if where is not None and scopes != {"search"}:
        raise ConfigError(
            f"{what}: a token with where may search and nothing else",
            hint="status, metrics and operations speak of all rows; make a second token for them",
        )
    grant = Grant(name=name, scopes=scopes, where=where)
    return Token(digest=_digest(secret, found.get("token_sha256"), what), grant=grant, secret=secret)


def _digest(secret: Any, sha256: Any, what: str) -> bytes:
    if (secret is None) == (sha256 is None):
        raise ConfigError(f"{what}: give either token or token_sha256", hint=_ENTRY_HINT)
    if sha256 is not None:
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ConfigError(
                f"{what}: token_sha256 is not 64 lower-case hexadecimal digits", hint="printf %s TOKEN | sha256sum"
            )
        return bytes.fromhex(sha256)
    if not isinstance(secret, str) or _fault_of(secret):
        fault = _fault_of(secret) if isinstance(secret, str) else "a token that is no text"
        raise ConfigError(f"{what}: {fault}", hint=f"at least {MIN_TOKEN_CHARACTERS} characters: openssl rand -hex 32")
    return digest_of(secret)


def _scopes(found: Any, what: str) -> frozenset[str]:
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{what}: scopes is missing", hint=f"scopes: {_flow(SCOPES)}, or some of them")
    unknown = [scope for scope in found if scope not in SCOPES]
    if unknown:
        raise ConfigError(f"{what}: there is no scope {unknown[0]!r}", hint=f"scopes: {', '.join(SCOPES)}")
    return frozenset(found)


def _where(found: Any, what: str) -> dict[str, Any] | None:
    """A condition that is written down and comes to nothing must not mean: everything."""
    if found is None:
        return None
    try:
        wanted = condition(found)
    except UsageError as exc:
        raise ConfigError(f"{what}: {exc.message}", hint=exc.hint) from exc
    if operator := too_open(wanted):
        raise ConfigError(
            f"{what}: where: {operator} is also true of rows without the column",
            hint='name what may be seen instead: {"tenant": "acme"}, {"level": {"$in": ["public", "internal"]}}',
        )
    return wanted
