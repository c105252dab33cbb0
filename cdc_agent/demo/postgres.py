"""A Postgres server of our own, in a directory of ours, throwaway or lasting.

Owns the server's directory, its process and its port. Knows nothing of replication: a client gets a DSN. Why not
``pg_ctl``: with the server as our own child there is no guessing whether a pid in a file is still that server.

Anyone on this machine may connect (``trust``, loopback only). That is right for a demo and for tests, and nothing else.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from cdc_agent.demo.installations import Installation, choose_installation, find_installations, reachable, release_of
from cdc_agent.demo.ports import free_port
from cdc_agent.demo.processes import POLL_S, becomes_free, clean_environment, kill_family, serves, unprivileged_account
from cdc_agent.errors import CdcAgentError

__all__ = ["Installation", "PostgresServer", "choose_installation", "find_installations", "throwaway_server"]

#: What logical replication needs. Given on the command line, so nothing in the data directory overrides it.
SETTINGS = {"wal_level": "logical", "max_wal_senders": "20", "max_replication_slots": "20"}

StopMode = Literal["smart", "fast", "immediate"]
_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


class PostgresServer:
    """One server on 127.0.0.1 and a unix socket, with its data in ``data_dir``.

    It keeps its port and its socket over restarts and kills. While it is ours nobody else can start it: a lock beside
    ``data_dir`` says so, and the kernel takes that lock from a process that dies. A server left running by such a
    process is ended by the next ``start``. As root the server runs as ``nobody``, which must be able to reach
    ``data_dir``. ``settings`` is read at every start, so a changed value counts from the next restart on.
    """

    def __init__(
        self,
        bin_dir: Path,
        data_dir: Path,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
        *,
        start_timeout_s: float = 60.0,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port or free_port()
        self.settings = dict(settings or {})
        self.log_path = self.data_dir.with_name(f"{self.data_dir.name}.log")
        self._may_move = port == 0
        self._start_timeout_s = start_timeout_s
        self._account = unprivileged_account()
        self._bin_dir = bin_dir.absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._lock: int | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Our process lives. It may have crashed on its own since the last call."""
        return self._process is not None and self._process.poll() is None

    def dsn(self, dbname: str = "postgres") -> str:
        """Where clients connect, over TCP."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    @property
    def conninfo(self) -> str:
        """The maintenance database over the unix socket, which no proxy stands in front of."""
        return f"host={self._socket_dir} port={self.port} user=postgres dbname=postgres"

    def start(self) -> None:
        """Create the database directory if there is none, start, and return when the server answers."""
        if self.is_running:
            return
        try:
            self._take_lock()
            self._bin_dir = reachable(self._bin_dir, self._account)
            self._end_orphan()
            self._create_data_dir()
            self._create_socket_dir()
            self._launch()
        except BaseException:
            self.stop("immediate")
            raise

    def stop(self, mode: StopMode = "fast", timeout_s: float = 30.0) -> None:
        """End the server and let go of all but ``data_dir``. Past ``timeout_s`` it is killed; the WAL survives that."""
        self._halt(mode, timeout_s)
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def restart(self, mode: StopMode = "fast", timeout_s: float = 30.0) -> None:
        """Stop and start on the same port and socket."""
        self._halt(mode, timeout_s)
        self.start()

    def kill_immediate(self) -> None:
        """SIGKILL the server and all its backends at once, as the kernel does when memory runs out."""
        if self._process is not None:
            kill_family(self._process.pid)
            self._process.wait()
            self._process = None

    def _halt(self, mode: StopMode, timeout_s: float) -> None:
        if self._process is None:
            return
        self._process.send_signal(_SIGNALS[mode])
        try:
            self._process.wait(timeout_s)
            self._process = None
        except subprocess.TimeoutExpired:
            self.kill_immediate()

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.data_dir.with_name(f".{self.data_dir.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(lock)
            raise CdcAgentError(
                f"another process runs the Postgres server in {self.data_dir}",
                hint="stop that one, or use another directory",
            ) from exc
        self._lock = lock

    def _end_orphan(self) -> None:
        """Clear what a killed run left: a server still running, or a pid file that Postgres would misread."""
        pid_file = self.data_dir / "postmaster.pid"
        pid = _first_number(pid_file)
        ours = None if pid is None else serves(pid, self.data_dir)
        if pid is None or ours is None:
            return  # There is no such process, and Postgres itself recognises that.
        if ours:
            kill_family(pid)
        # The number now belongs to a zombie that nobody buries, or was given out again, as happens when a container
        # starts anew. Postgres would take either for a server. What it guards by that file is looked at here instead.
        if becomes_free(_shared_memory_of(pid_file), timeout_s=10):
            pid_file.unlink(missing_ok=True)

    def _create_data_dir(self) -> None:
        if (self.data_dir / "PG_VERSION").exists():
            self._check_data_version()
            return
        # Made aside and moved, so that an initdb that is killed half way is never taken for a database.
        fresh = self.data_dir.with_name(f"{self.data_dir.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._give_away(fresh)
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        command = [str(self._bin_dir / "initdb"), "-D", str(fresh), *options]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd="/", env=clean_environment(), **self._account
        )
        if done.returncode != 0:
            raise self._failure("initdb failed", done.stderr)
        fresh.rename(self.data_dir)

    def _check_data_version(self) -> None:
        data, server = _first_number(self.data_dir / "PG_VERSION"), release_of(self._bin_dir, **self._account)
        if server is None or data != int(server.split(".")[0]):
            raise CdcAgentError(
                f"{self.data_dir} was made by Postgres {data}, the server in {self._bin_dir} is {server}",
                hint="use a server of that version, or another directory",
            )

    def _create_socket_dir(self) -> None:
        # A path of its own: a socket's path may have some hundred characters, and data directories lie deep.
        if self._socket_dir is None:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="cdc-agent-pg-", dir="/tmp"))
            self._socket_dir.chmod(0o755)
            self._give_away(self._socket_dir)
        for left_over in self._socket_dir.iterdir():
            left_over.unlink()

    def _give_away(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account["user"], self._account["group"])

    def _launch(self) -> None:
        for attempt in range(5):
            said = self._try_to_launch()
            if said is None:
                self._may_move = False
                return
            if "Address already in use" in said and self._may_move:
                self.port = free_port()
            elif "is still in use" in said:
                # Backends of a killed server are on their way out and still hold its shared memory.
                time.sleep(0.2 * (attempt + 1))
            else:
                break
        raise self._failure("Postgres did not start", said or "")

    def _try_to_launch(self) -> str | None:
        """Return None once the server is ready, or what it wrote to its log."""
        with self.log_path.open("ab") as log:
            begin = log.tell()
            command = [str(self._bin_dir / "postgres"), "-D", str(self.data_dir), *self._options()]
            # Its own session: Ctrl-C on our terminal is ours to handle, the server goes last.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=clean_environment(),
                start_new_session=True,
                **self._account,
            )
        if self._becomes_ready(self._process):
            return None
        self.kill_immediate()
        return self.log_path.read_bytes()[begin:].decode(errors="replace")

    def _options(self) -> Iterator[str]:
        ours = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self._socket_dir),
            "port": str(self.port),
        }
        for name, value in (SETTINGS | self.settings | ours).items():
            yield from ("-c", f"{name}={value}")

    def _becomes_ready(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline and process.poll() is None:
            if _reports_ready(self.data_dir / "postmaster.pid", process.pid):
                return True
            time.sleep(POLL_S)
        return False

    def _failure(self, what: str, said: str) -> CdcAgentError:
        last = said.strip()[-1500:] or f"nothing within {self._start_timeout_s:g} s"
        hint = "read what the server says above"
        if "Permission denied" in last and self._account:
            hint = f"root runs Postgres as the user nobody, who must be able to reach {self.data_dir.parent}"
        return CdcAgentError(f"{what} in {self.data_dir}; it said: {last}", hint=hint)


@contextmanager
def throwaway_server(installation: Installation, settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """A server that is gone, with all its data, when the block ends."""
    with tempfile.TemporaryDirectory(prefix="cdc-agent-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with PostgresServer(installation.bin_dir, Path(folder) / "data", settings=settings) as server:
            yield server


def _first_number(path: Path) -> int | None:
    try:
        return int(path.read_text().split()[0])
    except (FileNotFoundError, ValueError, IndexError):
        return None


def _reports_ready(pid_file: Path, pid: int) -> bool:
    """Read what ``pg_ctl`` reads: the eighth line of postmaster.pid, if the file is this process' own."""
    try:
        lines = pid_file.read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _shared_memory_of(pid_file: Path) -> int | None:
    """The segment that every backend holds on to: the second word of the seventh line."""
    try:
        return int(pid_file.read_text().splitlines()[6].split()[1])
    except (FileNotFoundError, ValueError, IndexError):
        return None
