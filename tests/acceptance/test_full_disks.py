"""Disks that are full, under the store and under our own files: a small memory file system, so it needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc_agent.config import Config
from cdc_agent.daemon.stores import build_store
from cdc_agent.vectorstore.chroma import ChromaStore
from cdc_agent.vectorstore.chroma_server import ChromaServer
from cdc_agent.vectorstore.records import StoreBlocked
from tests.support.daemon import DaemonProcess
from tests.support.locked_chroma import LockedChroma
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

MINIMAL = {"source": {"dsn": "postgresql://a@b/c"}, "collections": [{"name": "items", "table": "t", "text": "{body}"}]}
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


def hints(daemon: DaemonProcess) -> str:
    return " ".join(problem["hint"] for problem in daemon.problems() or [] if problem["name"] == "vectorstore")


@pytest.mark.fault("store-locked")
def test_of_a_store_of_somebody_else_that_stays_locked_readyz_says_what_to_do(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path
) -> None:
    # Given a Chroma server that is not ours, and a daemon that is ready.
    pg.execute("create table items (id int primary key, body text)")
    server = ChromaServer(tmp_path / "chroma")
    server.start()
    try:
        with LockedChroma(server.port) as chroma:
            daemon = new_daemon(pg, collections=[ITEMS], vectorstore={"mode": "server", "port": chroma.port})
            daemon.start()

            # When every write is answered with "database is locked".
            chroma.locked = True
            pg.execute("insert into items values (1, 'written while it was locked')")

            # Then that is named, with what its operator has to do; after it all goes on.
            until(lambda: "restart the Chroma server" in hints(daemon), 30.0, "the lock to be reported")
            chroma.locked = False
            daemon.wait_ready()
            assert_index_equals_table(daemon, pg)
    finally:
        server.stop()


@pytest.mark.fault("store-locked")
def test_the_store_tells_a_server_of_ours_what_it_hears_of_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the store and the server that a daemon makes.
    config = Config.model_validate({"state_dir": str(tmp_path / "state"), **MINIMAL})
    store, server = build_store(config)
    assert server is not None
    assert isinstance(store, ChromaStore)
    try:
        with LockedChroma(server.port) as chroma:
            locked = ChromaStore.http("127.0.0.1", chroma.port, locks=store.locks)
            locked.open_collection("kept", dimensions=2, marker={})
            chroma.locked = True
            monkeypatch.setattr(server.locks, "_patience_s", 0.0)

            # When a write of that store is answered with "locked", then the server is restarted at the next look.
            before = server.pid
            with pytest.raises(StoreBlocked):
                locked.delete("kept", ["a"])
            locked.close()
            assert not server.watch()
            assert server.pid != before
    finally:
        store.close()
        server.stop()
