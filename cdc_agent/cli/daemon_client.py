"""Asks the running daemon over its HTTP interface. Every failure is one of our errors with a hint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdc_agent.cli.configured import load
from cdc_agent.errors import CdcAgentError, ConfigError, DaemonUnavailable, UsageError

if TYPE_CHECKING:
    import httpx

    from cdc_agent.config import HttpConfig

__all__ = ["DaemonClient"]

_ANSWER_S = 30.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class DaemonClient:
    """Talks to the daemon that a configuration describes."""

    def __init__(self, http: HttpConfig, *, config_path: str) -> None:
        host = _EVERYWHERE.get(http.host, http.host)
        self._url = f"http://[{host}]:{http.port}" if ":" in host else f"http://{host}:{http.port}"
        self._config_path = config_path
        self._headers = _authorization(http)

    @property
    def url(self) -> str:
        return self._url

    @property
    def token(self) -> str | None:
        """What the daemon is shown, None where it asks for nothing."""
        return self._headers.get("Authorization", "").partition(" ")[2] or None

    @classmethod
    def of(cls, config_path: str) -> DaemonClient:
        """Reads the configuration for host, port and token (``CDC_AGENT_TOKEN`` goes first)."""
        return cls(load(config_path).http, config_path=config_path)

    def get(self, path: str, query: dict[str, str] | None = None, *, timeout_s: float = _ANSWER_S) -> dict[str, Any]:
        return self._ask("GET", path, timeout_s, params=query or {})

    def post(self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = _ANSWER_S) -> dict[str, Any]:
        return self._ask("POST", path, timeout_s, json=body or {})

    def _ask(self, method: str, path: str, timeout_s: float, **content: Any) -> dict[str, Any]:
        import httpx

        try:
            # A proxy from the environment must not see, or break, what goes to our own daemon.
            with httpx.Client(trust_env=False, timeout=httpx.Timeout(timeout_s, connect=5.0)) as client:
                response = client.request(method, self._url + path, headers=self._headers, **content)
        except httpx.InvalidURL as exc:
            raise ConfigError(f"http.host: {self._url} is not an address: {exc}", hint="correct http.host") from exc
        except httpx.HTTPError as exc:
            raise self._unavailable(exc) from exc
        return self._checked(response)

    def _unavailable(self, exc: httpx.HTTPError) -> DaemonUnavailable:
        import httpx

        if isinstance(exc, httpx.TimeoutException):
            return DaemonUnavailable(f"the daemon at {self._url} does not answer in time", hint="look at its log")
        return DaemonUnavailable(
            f"no daemon answers at {self._url}",
            hint=f"start it with: cdc-agent run -c {self._config_path} (or correct http.host and http.port there)",
        )

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise DaemonUnavailable(
                f"what answers at {self._url} is not cdc-agent (HTTP {response.status_code})",
                hint="correct http.host and http.port in the configuration",
            )
        if response.is_success:
            return answer
        raise _error_of(response.status_code, str(answer.get("error", "")), str(answer.get("hint", "")))


def _error_of(status: int, error: str, hint: str) -> CdcAgentError:
    message = error or f"the daemon answered HTTP {status}"
    if status in (401, 403):
        return ConfigError(message, hint=hint)
    if status in (400, 404, 405, 413):
        return UsageError(message, hint=hint)
    if status in (408, 429, 503, 504):
        return DaemonUnavailable(message, hint=hint)
    return CdcAgentError(message, hint=hint)


def _token_in(path: Path) -> str:
    """The one in the file that may do most."""
    from cdc_agent.web.tokens import read_tokens

    written = [token for token in read_tokens(path) if token.secret is not None and token.grant.where is None]
    if not written:
        raise ConfigError(
            f"http.tokens_file: {path} holds only digests of tokens, which open nothing",
            hint="put the token that you were given into CDC_AGENT_TOKEN",
        )
    return str(max(written, key=lambda token: len(token.grant.scopes)).secret)


def _authorization(http: HttpConfig) -> dict[str, str]:
    token = os.environ.get("CDC_AGENT_TOKEN")
    if not token and http.tokens_file is not None:
        token = _token_in(http.tokens_file)
    if token and not token.isascii():
        raise ConfigError(
            "the token is not plain ASCII", hint="correct CDC_AGENT_TOKEN: openssl rand -hex 32 makes one"
        )
    return {"Authorization": f"Bearer {token}"} if token else {}
