"""Chroma's own Rust server as a child process: starting, watching, stopping it.

Owns the process, its log file and the lock on its folder, not what is stored. The server has no authentication, so it
listens on the loopback address. The Python server of chromadb (CVE-2026-45829) is never started.

Beside a store in ``/var/lib/cdc-agent/chroma`` lie ``chroma.log`` and ``chroma.pid``.
"""

from __future__ import annotations

import fcntl
import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from cdc_agent.errors import ConfigError, StoreUnavailable, VectorStoreError
from cdc_agent.sqlite_file import file_is_damaged, put_aside
from cdc_agent.vectorstore.locks import Locks

__all__ = ["ChromaServer"]

logger = logging.getLogger(__name__)

#: A child that lived this long starts its backoff anew.
STEADY_S = 60.0
#: First and longest wait before a server that died is started again.
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0
#: So many deaths in a row are no accident.
YOUNG_DEATHS = 3
#: The log file is put aside at start when it is larger, one old file is kept.
LARGEST_LOG_BYTES = 10 * 1024 * 1024
#: How much of the log stands in an error.
LOG_TAIL_BYTES = 1500
#: A server whose disk has less room than this is not restarted for not writing: it would meet the full disk again.
ROOM_BYTES = 1024 * 1024
#: Pause between two looks at a process or its heartbeat.
LOOK_EVERY_S = 0.05

#: What the child runs. First it asks Linux (PR_SET_PDEATHSIG) for SIGTERM when the thread that started it ends, so that
#: it never outlives a killed daemon; then it does what the `chroma` script does, but does not first import chromadb's
#: client, which takes a second. Not a preexec_fn: those may deadlock in a process with threads.
_CHILD = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit("the parent is gone")
import chromadb_rust_bindings
chromadb_rust_bindings.cli(["chroma", *sys.argv[1:]])
"""


class ChromaServer:
    """``chroma run`` on one folder. Call ``start`` and ``watch`` from the main thread.

    From the main thread, because Linux ends the child when the *thread* that started it ends. ``port`` 0 picks a free
    one, which then stays. One process at a time owns a folder; a second one is refused, a leftover server is ended.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        locks: Locks | None = None,
    ) -> None:
        #: For the store that writes to this server: what it learns there about locks decides about a restart here.
        self.locks = locks or Locks()
        self.path = Path(path).absolute()
        self.host = host
        self.port = port
        self.log_path = self.path.with_name(self.path.name + ".log")
        self._pid_path = self.path.with_name(self.path.name + ".pid")
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._clock = clock
        self._lock: IO[str] | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._born = 0.0
        self._deaths = 0
        self._not_before = 0.0
        self._renew_wanted = threading.Event()
        self._renewed = threading.Event()

    @property
    def pid(self) -> int | None:
        """The process of the server, None when it does not run."""
        return self._child.pid if self._child is not None and self.is_alive else None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs. It may still be starting, or hang: that is for a ping of the store to find out."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Run the server and return when it answers. Raises ``ConfigError`` or ``VectorStoreError`` with the reason."""
        self._own_the_folder()
        try:
            self._end_leftover()
            self.port = self.port or _free_port(self.host)
            self._spawn()
            self._wait_for_heartbeat()
        except BaseException:
            self.stop()
            raise

    def watch(self) -> bool:
        """Look once; start a server that died, after a growing pause. Returns whether it ran when we looked.

        One that cannot write though its disk has room is restarted. A server that hangs is left alone:
        killed while it writes its index it can come back unreadable.
        """
        if self._lock is None:
            return False
        if self._renew_wanted.is_set():
            self._begin_afresh()
            return False
        if self.is_alive:
            return not self._restarted_if_blocked()
        self._note_death()
        if self._clock() >= self._not_before:
            self._spawn_again()
        return False

    @property
    def dies_young(self) -> bool:
        """Whether it has died again and again, each time soon after its start."""
        return self._deaths >= YOUNG_DEATHS

    def damaged(self) -> bool:
        """Whether SQLite says that the store's main file is damaged."""
        return file_is_damaged(self.path / "chroma.sqlite3")

    def renew(self, timeout_s: float = 60.0) -> None:
        """Put the folder aside and run on an empty one. Returns when it answers; from another thread than the main
        one only while that calls ``watch``. Raises ``VectorStoreError`` when it does not."""
        if threading.current_thread() is threading.main_thread():
            self._begin_afresh()
        else:
            self._renewed.clear()
            self._renew_wanted.set()
            if not self._renewed.wait(timeout_s):
                raise StoreUnavailable("the Chroma server was not started on an empty folder in time")
        self._wait_for_heartbeat()

    def _restarted_if_blocked(self) -> bool:
        if not self._has_room():
            self.locks.explained()
        if not self.locks.stuck:
            return False
        logger.warning("chroma server cannot write though its disk has room, restarting it pid=%s", self.pid)
        self.restart()
        return True

    def restart(self) -> None:
        """End the server and start it again on what it has stored; returns before it answers."""
        if self._child is not None:
            _end(self._child, self._stop_timeout_s)
            self._child = None
        self.locks.restarted()
        self._spawn_again()

    def _has_room(self) -> bool:
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize >= ROOM_BYTES

    def _begin_afresh(self) -> None:
        if self._child is not None:
            _end(self._child, self._stop_timeout_s)
            self._child = None
        logger.warning("store put aside folder=%s", put_aside(self.path))
        self.path.mkdir(parents=True)
        self._deaths = 0
        self._spawn()
        self._renew_wanted.clear()
        self._renewed.set()

    def stop(self) -> None:
        """SIGTERM, after ``stop_timeout_s`` SIGKILL; returns when the process is gone. May be called twice."""
        if self._child is not None:
            _end(self._child, self._stop_timeout_s)
            self._child = None
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def _own_the_folder(self) -> None:
        """Take the lock that says whose server this is; it is free again when its owner dies, however that is."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._pid_path.open("a+", encoding="ascii")
        except OSError as exc:
            raise ConfigError(
                f"the vector store cannot be kept in {self.path}: {exc.strerror}",
                hint="`vectorstore.path` must be a folder that cdc-agent may write to, in one that it may write to",
            ) from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            lock.close()
            raise ConfigError(
                f"another cdc-agent keeps its vector store in {self.path}",
                hint="stop it, or give this one its own `vectorstore.path`",
            ) from exc
        _check_writable(self.path)
        self._lock = lock

    def _end_leftover(self) -> None:
        """We hold the lock, so a server that still runs on this folder has lost its daemon."""
        assert self._lock is not None
        self._lock.seek(0)
        pid = _number(self._lock.read())
        if pid is None or not _serves(pid, self.path):
            return
        logger.warning("ending a leftover chroma server pid=%s path=%s", pid, self.path)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            if _gone(pid, self.path, self._stop_timeout_s):
                return
        raise VectorStoreError(f"a leftover Chroma server with process id {pid} does not end", hint=f"kill -9 {pid}")

    def _spawn(self) -> None:
        _check_port(self.host, self.port)
        _put_aside(self.log_path)
        arguments = ["run", "--path", str(self.path), "--host", self.host, "--port", str(self.port)]
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C at a terminal goes to the daemon, which stops the server last.
                start_new_session=True,
                cwd=self.path.parent,
                env=_environment(),
            )
        self._born = self._clock()
        self._write_pid(self._child.pid)
        logger.info("chroma server started pid=%s path=%s port=%s", self._child.pid, self.path, self.port)

    def _spawn_again(self) -> None:
        try:
            self._spawn()
        except (ConfigError, OSError) as exc:
            # Somebody has our port or our log for now; that is no reason to end the daemon.
            logger.error("chroma server cannot be started again reason=%s", exc)
            self._put_off()

    def _write_pid(self, pid: int) -> None:
        assert self._lock is not None
        self._lock.truncate(0)
        self._lock.write(str(pid))
        self._lock.flush()

    def _wait_for_heartbeat(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while not _answers(self.host, self.port):
            if not self.is_alive:
                raise VectorStoreError(f"the Chroma server ended while it started. {self._log_tail()}")
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"no answer in {self._start_timeout_s:g} s of the Chroma server. {self._log_tail()}"
                )
            time.sleep(LOOK_EVERY_S)

    def _note_death(self) -> None:
        """Set the next start once for each death."""
        if self._child is None:
            return
        lived = self._clock() - self._born
        self._deaths = 0 if lived >= STEADY_S else self._deaths
        logger.error("chroma server died code=%s lived_s=%.0f", self._child.returncode, lived)
        self._child = None
        self._put_off()

    def _put_off(self) -> None:
        """The first start again is at once, every further one after twice the pause."""
        pause = min(FIRST_BACKOFF_S * 2 ** (self._deaths - 1), LONGEST_BACKOFF_S) if self._deaths else 0.0
        self._not_before = self._clock() + pause
        self._deaths += 1

    def _log_tail(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - LOG_TAIL_BYTES))
            tail = log.read().decode("utf-8", "replace").strip()
        return f"Its log, {self.log_path}, ends with:\n{tail}"


def _environment() -> dict[str, str]:
    # Without RUST_LOG the server writes some hundred bytes for each request, for ever.
    return {"RUST_LOG": "warn", **os.environ, "ANONYMIZED_TELEMETRY": "False", "NO_COLOR": "1"}


def _check_writable(path: Path) -> None:
    for file in (path, path / "chroma.sqlite3"):
        if file.exists() and not os.access(file, os.W_OK):
            raise ConfigError(f"{file} cannot be written to", hint=f"chown -R the user of cdc-agent {path}")


def _check_port(host: str, port: int) -> None:
    """The server would end with code 0 and one line in its log; say it here, and say it well."""
    with socket.socket(_family(host)) as probe:
        # As the server does: an old connection in TIME_WAIT does not keep the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise ConfigError(
                f"the Chroma server cannot listen on {host}:{port}: {exc.strerror}",
                hint="set `vectorstore.port` to a free port, or `vectorstore.mode: server` if a Chroma server of "
                "yours is meant",
            ) from exc


def _free_port(host: str) -> int:
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _answers(host: str, port: int) -> bool:
    # Not httpx, which reads all certificates of this machine for every question and knows of proxies.
    connection = http.client.HTTPConnection(host, port, timeout=1.0)
    try:
        connection.request("GET", "/api/v2/heartbeat")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(child: subprocess.Popen[bytes], timeout_s: float) -> None:
    child.terminate()
    try:
        child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        logger.warning("chroma server does not stop, killing it pid=%s", child.pid)
        child.kill()
        child.wait()


def _put_aside(log: Path) -> None:
    if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
        log.replace(log.with_name(log.name + ".1"))


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _serves(pid: int, path: Path) -> bool:
    """Whether a process is a Chroma server on this folder. Without /proc no process is ever taken for one."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    # A zombie has no command line: it is gone, only not yet mourned.
    return b"run" in command and os.fsencode(path) in command


def _gone(pid: int, path: Path, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while _serves(pid, path):
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_EVERY_S)
    return True
