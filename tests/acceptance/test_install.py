"""scripts/install and scripts/uninstall, into a root of their own: again and again, over what was edited, and away."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from cdc_agent.config import load

ROOT = Path(__file__).parents[2]


class Machine:
    """A machine to install on, as far as files go."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "scripts" / script, *options],
            env={**os.environ, "DESTDIR": str(self.root), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def does(self, script: str, *options: str, **environment: str) -> str:
        result = self.run(script, *options, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def files(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.root)): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "root").mkdir()
    return Machine(tmp_path / "root")


def test_the_unit_and_a_configuration_to_edit_are_put_in_place(machine: Machine, tmp_path: Path, monkeypatch) -> None:
    # When it is installed under a prefix of somebody's choice
    machine.does("install", "--files-only", PREFIX="/srv/cdc-agent")

    # Then the unit starts what is there, and the configuration is one, given what the unit says
    unit = machine.path("/etc/systemd/system/cdc-agent.service").read_text()
    assert re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE) == ["/srv/cdc-agent/bin/cdc-agent run"]
    (tmp_path / "dsn").write_text("postgresql://localhost/app")
    monkeypatch.setenv("CDC_AGENT_SOURCE__DSN_FILE", str(tmp_path / "dsn"))
    monkeypatch.setenv("CDC_AGENT_STATE_DIR", str(tmp_path / "state"))
    assert load(machine.path("/etc/cdc-agent/cdc-agent.yaml")).collections
    # Which is read by a user that systemd makes up.
    assert machine.path("/etc/cdc-agent").stat().st_mode & 0o777 == 0o755
    assert machine.path("/etc/cdc-agent/cdc-agent.yaml").stat().st_mode & 0o777 == 0o644


def test_installing_again_changes_nothing_and_keeps_what_was_edited(machine: Machine) -> None:
    # Given an installation whose configuration was edited, and whose unit is of an older version
    machine.does("install", "--files-only")
    fresh = machine.files()
    machine.path("/etc/cdc-agent/cdc-agent.yaml").write_text("# mine\n")
    machine.path("/etc/cdc-agent/environment").write_text("OMP_NUM_THREADS=4\n")
    machine.path("/etc/systemd/system/cdc-agent.service").write_text("[Unit]\n")

    # When it is installed again, twice
    machine.does("install", "--files-only")
    machine.does("install", "--files-only")

    # Then the unit is the new one, and the rest is as it was left
    edited = {"etc/cdc-agent/cdc-agent.yaml": b"# mine\n", "etc/cdc-agent/environment": b"OMP_NUM_THREADS=4\n"}
    assert machine.files() == fresh | edited


@pytest.fixture
def installed(machine: Machine) -> Machine:
    """With an environment, configuration, secrets and state."""
    machine.does("install", "--files-only")
    for name in (
        "/opt/cdc-agent/pyvenv.cfg",
        "/opt/cdc-agent/bin/cdc-agent",
        "/usr/local/bin/cdc-agent",
        "/usr/share/bash-completion/completions/cdc-agent",
        "/etc/cdc-agent/dsn",
        "/var/lib/private/cdc-agent/ledger.sqlite",
        "/opt/other/file",
    ):
        machine.path(name).parent.mkdir(parents=True, exist_ok=True)
        machine.path(name).write_text("x")
    machine.path("/var/lib/cdc-agent").symlink_to("private/cdc-agent")
    return machine


def test_uninstalling_keeps_configuration_and_state(installed: Machine) -> None:
    # When it is uninstalled, and once more
    said = installed.does("uninstall")
    installed.does("uninstall")

    # Then a later installation can go on, and the operator knows of the slot
    assert installed.files().keys() == {
        "etc/cdc-agent/cdc-agent.yaml",
        "etc/cdc-agent/dsn",
        "etc/cdc-agent/environment",
        "opt/other/file",
        "var/lib/private/cdc-agent/ledger.sqlite",
    }
    assert "pg_drop_replication_slot" in said


def test_a_purge_leaves_nothing_of_ours_and_all_of_others(installed: Machine) -> None:
    installed.does("uninstall", "--purge")

    assert installed.files().keys() == {"opt/other/file"}
    assert not installed.path("/var/lib/cdc-agent").is_symlink()


@pytest.mark.parametrize("prefix", ["/opt", "/", "opt/cdc-agent", "/opt/other"])
def test_uninstalling_removes_no_folder_of_others(installed: Machine, prefix: str) -> None:
    before = installed.files()

    result = installed.run("uninstall", "--purge", PREFIX=prefix)

    assert result.returncode == 2
    assert installed.files() == before


@pytest.mark.parametrize("script", ["install", "uninstall"])
def test_a_misspelt_option_does_nothing(machine: Machine, script: str) -> None:
    result = machine.run(script, "--prune")

    assert result.returncode == 2
    assert "--prune" in result.stdout
    assert machine.files() == {}
