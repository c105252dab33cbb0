"""The real daemon as a child process on a database: ``cdc-agent run``, its own state, its own Chroma."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chromadb
import httpx
import psycopg
import yaml
from machine import children

__all__ = ["RunningDaemon", "daemon"]

_START_S = 120.0
_POLL_S = 0.05

_DROP_SLOT = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = 'bench_daemon'"


class RunningDaemon:
    """One daemon with one collection. Made by ``daemon``, which also ends it."""

    def __init__(self, folder: Path, dsn: str, collection: dict[str, Any], more: Mapping[str, Any]) -> None:
        self._http_port, self.chroma_port = _free_ports(2)
        settings: dict[str, Any] = {
            "source": {"dsn": dsn, "slot_name": "bench_daemon", "publication_name": "bench_daemon"},
            "state_dir": str(folder / "state"),
            "vectorstore": {"port": self.chroma_port},
            "http": {"port": self._http_port},
            "collections": [collection],
        }
        for section, values in more.items():
            settings[section] = {**settings.get(section, {}), **values}
        config = folder / "cdc-agent.yaml"
        config.write_text(yaml.safe_dump(settings, sort_keys=False))
        self.log_path = folder / "daemon.log"
        self._client = httpx.Client(base_url=self.url, timeout=700.0)
        command = [sys.executable, "-m", "cdc_agent.cli", "run", "-c", str(config)]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http_port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def chroma_pid(self) -> int:
        """Its only child."""
        (pid,) = children(self.pid)
        return pid

    def wait_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self._process.returncode}:\n{self._last_words()}")
            if self._is_ready():
                return
            time.sleep(_POLL_S)
        raise RuntimeError(f"the daemon is not ready after {_START_S:g} s:\n{self._last_words()}")

    def wait_applied(self, lsn: str, timeout_s: float = 60.0) -> None:
        """Return when the index is complete up to ``lsn``. Over HTTP/1.1 on one connection that stays open."""
        answer = self._client.get("/wait", params={"lsn": lsn, "timeout_s": timeout_s})
        if answer.status_code != 200:
            raise RuntimeError(f"{lsn} was not reached: {answer.text}\n{self._last_words()}")

    def wait_indexed(self, lsn: str, timeout_s: float) -> None:
        """The same for longer than one request may wait."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self.wait_applied(lsn)
            except RuntimeError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise

    def get(self, path: str) -> dict[str, Any]:
        return self._answer(self._client.get(path))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._answer(self._client.post(path, json=body))

    def _answer(self, answer: httpx.Response) -> dict[str, Any]:
        if not answer.is_success:
            raise RuntimeError(f"the daemon answered {answer.status_code}: {answer.text}\n{self._last_words()}")
        found: dict[str, Any] = answer.json()
        return found

    def metric(self, name: str) -> float:
        """One sample of /metrics, summed over its labels; 0 where there is none yet."""
        samples = (line.rpartition(" ") for line in self._client.get("/metrics").text.splitlines())
        return sum(float(value) for sample, _, value in samples if sample.partition("{")[0] == name)

    def chunk_texts(self, collection: str) -> set[str]:
        """The texts of all chunks that its Chroma holds."""
        chroma = chromadb.HttpClient(host="127.0.0.1", port=self.chroma_port)
        found = chroma.get_collection(collection, embedding_function=None).get(include=["documents"])
        return set(found["documents"] or [])

    def stop(self) -> None:
        self._client.close()
        self._process.terminate()
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        try:
            return self._client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _last_words(self) -> str:
        return self.log_path.read_text(errors="replace")[-3000:]


@contextmanager
def daemon(dsn: str, collection: dict[str, Any], more: Mapping[str, Any] | None = None) -> Iterator[RunningDaemon]:
    """A daemon that is ready; ended, with all its state, when the block ends. ``more`` are settings by section."""
    with tempfile.TemporaryDirectory(prefix="cdc-agent-bench-", ignore_cleanup_errors=True) as folder:
        running = RunningDaemon(Path(folder), dsn, collection, more or {})
        try:
            running.wait_ready()
            yield running
        finally:
            running.stop()
            # The next daemon may follow another database of the same server.
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(_DROP_SLOT)


def _free_ports(count: int) -> Sequence[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
