"""The real daemon as a child process on a configuration of its own, and what the demo asks it over HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from cdc_agent.demo.ports import free_port
from cdc_agent.errors import CdcAgentError, DaemonUnavailable
from cdc_agent.lsn import Lsn

__all__ = ["COLLECTION", "Agent"]

COLLECTION = "articles"

_DEMO: Mapping[str, Any] = {
    "collections": [
        {
            "name": COLLECTION,
            "table": "public.articles",
            "text": "{title}\n\n{body}",
            "metadata": ["title", "category", "updated_at"],
        }
    ],
    # Small pages, so that the first copy can be watched.
    "resync": {"rows_per_chunk": 20},
}
_START_S = 120.0
_STOP_S = 40.0
_POLL_S = 0.05
#: Longest wait for a commit to be searchable. Past it the answer is that it is not.
_FOUND_S = 30.0


class Agent:
    """``cdc-agent run`` in ``folder``. It keeps its ports over a kill. ``settings`` say what it does; without
    them it keeps the demo's collection."""

    def __init__(self, folder: Path, dsn: str, settings: Mapping[str, Any] | None = None) -> None:
        self.config_path = folder / "cdc-agent.yaml"
        self.log_path = folder / "daemon.log"
        self.url = f"http://127.0.0.1:{free_port()}"
        self.config_path.write_text(_configuration(folder, dsn, httpx.URL(self.url).port or 0, settings or _DEMO))
        self._process: subprocess.Popen[bytes] | None = None
        # A proxy from the environment has no business between two processes of ours.
        self._http = httpx.Client(base_url=self.url, trust_env=False, timeout=_FOUND_S + 10)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Return when it answers; it may still have to catch up."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cdc_agent.cli", "run", "-c", str(self.config_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                # Ctrl-C at the terminal comes to us, and we stop things in order.
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if not self.is_running or time.monotonic() > deadline:
                raise self._failure("did not start")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """SIGKILL: no goodbye, no last write."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def close(self) -> None:
        """Stop it for good."""
        self.stop()
        self._http.close()

    # -- questions -------------------------------------------------------------------------------------------

    def search(self, query: str, *, k: int = 3, where: dict[str, Any] | None = None, after: Lsn | None = None) -> Any:
        """Hits, best first. ``after``: of an index that holds that commit; None when it does not in time."""
        body: dict[str, Any] = {"collection": COLLECTION, "query": query, "k": k, "where": where or {}}
        if after is not None:
            body |= {"min_lsn": str(after), "timeout_s": _FOUND_S}
        answer = self._ask("POST", "/search", json=body)
        return None if answer.status_code == httpx.codes.GATEWAY_TIMEOUT else self._checked(answer).json()["hits"]

    def caught_up(self, lsn: Lsn) -> bool:
        """Wait until the index holds every commit up to ``lsn``."""
        answer = self._ask("GET", "/wait", params={"lsn": str(lsn), "timeout_s": _FOUND_S})
        return answer.status_code != httpx.codes.GATEWAY_TIMEOUT and self._checked(answer).is_success

    def counts(self) -> tuple[int, int]:
        """Documents and chunks in the index."""
        collection = self._checked(self._ask("GET", "/status")).json()["collections"][0]
        return int(collection["documents"]), int(collection["chunks"])

    def embedded(self) -> int:
        """Chunks that the model embedded since this process began."""
        return int(self._metric("cdc_agent_chunks_embedded_total"))

    def _metric(self, name: str) -> float:
        lines = self._checked(self._ask("GET", "/metrics")).text.splitlines()
        samples = (line.rpartition(" ") for line in lines)
        return sum(float(value) for sample, _, value in samples if sample.partition("{")[0] == name)

    def _answers(self) -> bool:
        try:
            return self._http.get("/healthz", timeout=2.0).is_success
        except httpx.TransportError:
            return False

    def _ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **content)
        except httpx.TransportError as exc:
            raise self._failure("does not answer") from exc

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if not answer.is_success:
            raise DaemonUnavailable(f"the daemon answered {answer.status_code}: {answer.text[:300]}")
        return answer

    def _failure(self, what: str) -> CdcAgentError:
        said = self.log_path.read_text(errors="replace").strip()[-1500:]
        return CdcAgentError(f"the daemon {what}; its log ends with:\n{said}", hint="read what it says above")


def _environment() -> dict[str, str]:
    """Ours without what would lead the daemon elsewhere than its configuration says, such as to a real database."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PG", "CDC_"))}


def _configuration(folder: Path, dsn: str, port: int, settings: Mapping[str, Any]) -> str:
    own = {
        "source": {"dsn": dsn, "slot_name": "cdc_agent_demo", "publication_name": "cdc_agent_demo"},
        "state_dir": str(folder / "state"),
        "vectorstore": {"port": free_port()},
        "http": {"port": port},
    }
    return yaml.safe_dump({**settings, **own}, sort_keys=False)
