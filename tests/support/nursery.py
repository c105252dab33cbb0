"""Processes of ours without the two seconds that Python takes to import them: forked from one that has done so.

``Nursery.run`` is ``python -m cdc_agent.cli …`` but for its birth: a process and an environment of its own, killed and
stopped by real signals, ending as an interpreter ends. ``python -m tests.support.nursery`` is the process that forks;
it ends with the one that asks it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.interrupts import held

__all__ = ["Child", "Nursery"]

_ROOT = Path(__file__).parents[2]
_POLL_S = 0.005
#: What a daemon imports by and by, unless it loads a real model.
_PRELOADED = (
    "cdc_agent.cli.parser",
    "cdc_agent.daemon.run",
    "cdc_agent.embedding.hashing",
    "cdc_agent.embedding.openai",
    "cdc_agent.vectorstore.chroma",
    "cdc_agent.vectorstore.memory",
    "chromadb.api.fastapi",
    "chromadb.api.rust",
)


class Child:
    """What ``subprocess.Popen`` is, as far as tests use it."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self._code: int | None = None
        self.pid = pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._code is None:
            self._code = self._nursery.ask(do="poll", pid=self.pid)
        return self._code

    def wait(self, timeout_s: float) -> int:
        """Raises ``subprocess.TimeoutExpired``."""
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout_s)
            time.sleep(_POLL_S)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Starts its process when it is first asked for a child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._lines: Any = None
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, arguments: Sequence[str], *, env: Mapping[str, str], log: Path) -> Child:
        """Run ``cdc-agent`` with these arguments, its output appended to ``log``."""
        pid = self.ask(do="fork", arguments=list(arguments), env=dict(env), log=str(log))
        return Child(self, pid)

    def ask(self, **question: Any) -> Any:
        # A question without its answer would make the next answer that of another question.
        with held(), self._lock:
            if self._socket is None:
                self._open()
            assert self._socket is not None
            self._socket.sendall(json.dumps(question).encode() + b"\n")
            answer = self._lines.readline()
        assert answer, "the nursery has died"
        return json.loads(answer)

    def _open(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.nursery", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                cwd=_ROOT,
                pass_fds=[theirs.fileno()],
                # Ctrl-C at a terminal is for who asked; children are ended by name.
                start_new_session=True,
            )
        self._socket, self._lines = ours, ours.makefile("rb")

    def close(self) -> None:
        """The process ends; its children are ended by who asked for them."""
        if self._socket is not None and self._process is not None:
            self._lines.close()
            self._socket.close()
            self._process.wait(10)


def _serve(link: socket.socket) -> None:
    """Answer until the other side is gone; leaves by ``SystemExit`` in a child."""
    for module in _PRELOADED:
        __import__(module)
    gc.collect()
    gc.freeze()
    codes: dict[int, int] = {}
    # Who is killed with an answer on its way resets the connection; it is gone all the same.
    with suppress(ConnectionError), link.makefile("rb") as lines:
        for line in lines:
            question = json.loads(line)
            if question["do"] == "fork":
                answer = _fork(question, link)
                # Numbers of processes come again.
                codes.pop(answer, None)
            else:
                answer = _code_of(question["pid"], codes)
            link.sendall(json.dumps(answer).encode() + b"\n")


def _code_of(pid: int, codes: dict[int, int]) -> int | None:
    if pid not in codes:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            return None
        codes[pid] = os.waitstatus_to_exitcode(status)
    return codes[pid]


def _fork(question: Mapping[str, Any], link: socket.socket) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.close(link.detach())
    log = os.open(question["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for standard in (1, 2):
        os.dup2(log, standard)
    os.close(log)
    os.environ.clear()
    os.environ.update(question["env"])
    sys.argv = ["cdc-agent", *question["arguments"]]

    from cdc_agent.cli import main

    raise SystemExit(main())


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
