"""The real daemon as a child process, configured, started, killed and asked by tests."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cdc_agent.config import Config, load
from cdc_agent.lsn import Lsn
from tests.support.interrupts import held
from tests.support.nursery import Child, Nursery
from tests.support.ports import free_port
from tests.support.wait import until

__all__ = ["DaemonProcess", "merged"]

START_S = 60.0
#: Nothing here speaks TLS; without one of ours httpx reads all certificates of this machine for every request.
_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
#: Ended by ``conftest`` with the session.
NURSERY = Nursery()
#: Whether coverage is taken, and how long a daemon may take to write its figures down.
_MEASURED, _MEASURED_END_S = "COVERAGE_PROCESS_CONFIG" in os.environ, 20.0


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, section by section."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


class DaemonProcess:
    """``cdc-agent run`` on a configuration of its own in ``folder``. Always stopped by the fixture that made it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.port = free_port()
        base = {
            "state_dir": str(folder / "state"),
            "embedding": {"backend": "hashing"},
            "vectorstore": {"port": free_port()},
            "http": {"port": self.port},
            "retry": {"initial_s": 0.1, "maximum_s": 1.0},
            "log": {"level": "debug"},
        }
        self.settings = merged(base, settings)
        self.path = folder / "cdc-agent.yaml"
        self.log_path = folder / "daemon.log"
        self._process: subprocess.Popen[bytes] | Child | None = None
        self._write()

    def _write(self) -> None:
        self.path.write_text(yaml.safe_dump(self.settings, sort_keys=False))

    def configure(self, **settings: Any) -> None:
        """Change the configuration for the next start."""
        self.settings = merged(self.settings, settings)
        self._write()

    @property
    def config(self) -> Config:
        return load(self.path)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    # -- life ------------------------------------------------------------------------------------------------

    def start(
        self,
        *,
        failpoint: str | None = None,
        ready: bool = True,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        fresh: bool = False,
    ) -> None:
        """Start, and wait until it is ready unless told otherwise; ``fresh``: in an interpreter of its own."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        environment = {**os.environ, **(env or {})}
        environment.pop("CDC_FAILPOINT", None)
        if failpoint:
            environment["CDC_FAILPOINT"] = failpoint
        arguments = ["run", "-c", str(self.path), *options]
        if fresh:
            with self.log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "cdc_agent.cli", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
        else:
            with held():
                self._process = NURSERY.run(arguments, env=environment, log=self.log_path)
        if ready:
            self.wait_ready()

    def wait_ready(self, timeout_s: float = START_S) -> None:
        def ready() -> bool:
            if not self.running:
                pytest.fail(f"the daemon ended with {self.returncode}:\n{self.log[-4000:]}")
            return self.problems() == []

        until(ready, timeout_s, "the daemon to be ready")

    def wait_streaming(self, timeout_s: float = START_S) -> float:
        """Wait until changes are being read from Postgres; returns how many seconds that took."""
        began = time.monotonic()

        def streaming() -> bool:
            problems = self.problems()
            return problems is not None and all(problem["name"] != "source" for problem in problems)

        until(streaming, timeout_s, "the daemon to stream")
        return time.monotonic() - began

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def wait_exit(self, timeout_s: float = 60.0) -> int:
        """Wait for the process to end; returns its exit code (negative: the signal)."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the daemon still runs after {timeout_s:g} s:\n{self.log[-4000:]}")

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def terminate(self, timeout_s: float = 40.0) -> int:
        """SIGTERM; returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_exit(timeout_s)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        if self._process is None or not self.running:
            return
        self.signal(signal.SIGCONT)
        if _MEASURED:
            # One that is killed takes its figures with it.
            self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_MEASURED_END_S)
        if self.running:
            self.kill()

    # -- questions -------------------------------------------------------------------------------------------

    def get(self, path: str, **params: Any) -> httpx.Response:
        return httpx.get(self.url + path, params=params or None, timeout=70.0, verify=_TLS)

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=70.0, verify=_TLS)

    def problems(self) -> list[dict[str, Any]] | None:
        """What /readyz complains of; None while nobody answers."""
        try:
            answer = self.get("/readyz")
        except httpx.TransportError:
            return None
        return list(answer.json().get("problems", [])) if answer.status_code in (200, 503) else None

    def wait_applied(self, lsn: Lsn | str, timeout_s: float = 60.0) -> None:
        """Wait until the index is complete up to ``lsn``."""
        answer = self.get("/wait", lsn=str(lsn), timeout_s=timeout_s)
        if answer.status_code != 200:
            pytest.fail(f"{lsn} was not reached: {answer.text}\n{self.log[-4000:]}")

    def search(self, collection: str, query: str, **more: Any) -> list[dict[str, Any]]:
        answer = self.post("/search", {"collection": collection, "query": query, **more})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["hits"])

    def status(self) -> dict[str, Any]:
        return dict(self.get("/status").json())

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics, summed over the labels that are not given; 0 where there is none."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{k}="{v}"' in sample for k, v in labels.items()):
                total += float(value)
        return total
