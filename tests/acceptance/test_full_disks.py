"""Disks that are full, under the store and under our own files: a small memory file system, so it needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

ITEMS = {"name": "items", "table": "public.items", "text": "{body}"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of sixteen megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        message = f"no file system can be mounted here: {mounted.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take what is left of it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return ballast
    raise AssertionError("the disk has no end")


#: Some kilobyte of words that were never seen before.
WORDS = "(select string_agg(md5(random()::text || n), ' ') from generate_series(1, 30) n)"


@pytest.mark.parametrize(
    ("what", "named"), [("state_dir", {"stream", "ledger"}), ("store", {"vectorstore"})], ids=["our own", "the store's"]
)
@pytest.mark.fault("disk-full", "store-disk-full")
def test_a_disk_that_is_full_confirms_nothing_and_all_goes_on_when_there_is_space(
    pg: Database, new_daemon: NewDaemon, disk: Path, what: str, named: set[str]
) -> None:
    # Given a daemon whose state, or whose store, lies on a small disk.
    pg.execute("create table items (id int primary key, body text)")
    settings = {"state_dir": str(disk / "state")} if what == "state_dir" else {"vectorstore": {"path": str(disk / "s")}}
    if what == "state_dir":
        settings["vectorstore"] = {"path": str(disk.parent / "store")}
    daemon = new_daemon(pg, collections=[ITEMS], **settings)
    daemon.start()
    pg.execute(f"insert into items select i, {WORDS} from generate_series(1, 20) i")
    assert_index_equals_table(daemon, pg)

    # When that is full, and changes keep coming.
    ballast = fill(disk)
    pg.execute("delete from items where id < 10")

    def complained() -> bool:
        pg.execute(f"update items set body = id || {WORDS}")
        return bool(named & {problem["name"] for problem in daemon.problems() or []})

    until(complained, 60.0, f"one of {named} to be reported")

    # Then the daemon lives, and all is well once there is space again.
    assert daemon.running
    ballast.unlink()
    daemon.wait_ready(90.0)
    assert_index_equals_table(daemon, pg)
