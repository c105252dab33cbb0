"""Secrets and cell values stay where they belong: canaries are planted, much goes wrong, and all is read."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.test_doors import NewDaemon, create_articles
from tests.support.daemon import DaemonProcess
from tests.support.fake_openai import FakeOpenAI, garbage, not_a_number, server_error
from tests.support.postgres import Database
from tests.support.wait import until

PASSWORD, API_KEY, TOKEN, CELL = (f"canary-{what}-2f8c41d09b7e" for what in ("password", "key", "token", "cell"))
SECRETS = (PASSWORD, API_KEY, TOKEN)
ARTICLES = {"name": "articles", "table": "public.articles", "text": "{title}\n\n{body}", "metadata": ["lang"]}


@pytest.fixture
def daemon(private_pg: Database, fake_openai: FakeOpenAI, new_daemon: NewDaemon, tmp_path: Path) -> DaemonProcess:
    """One that logs everything, and whose every secret is a canary."""
    pg = private_pg
    create_articles(pg)
    pg.execute(f"create role agent superuser login password '{PASSWORD}'")
    hba = pg.server.data_dir / "pg_hba.conf"
    hba.write_text("host all agent all scram-sha-256\n" + hba.read_text())
    pg.execute("select pg_reload_conf()")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    return new_daemon(
        pg,
        collections=[ARTICLES],
        dsn=f"postgresql://agent:{PASSWORD}@127.0.0.1:{pg.server.port}/{pg.name}",
        embedding={"backend": "openai", "url": fake_openai.base_url, "model": "fake", "api_key": API_KEY},
        http={"tokens_file": str(tokens)},
    )


def ask(daemon: DaemonProcess, path: str, token: str = TOKEN) -> httpx.Response:
    return httpx.get(daemon.url + path, headers={"Authorization": f"Bearer {token}"}, timeout=30)


def ready(daemon: DaemonProcess) -> bool:
    try:
        return ask(daemon, "/readyz").status_code == 200
    except httpx.TransportError:
        return False


def family(pid: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def command_lines(daemon: DaemonProcess) -> list[str]:
    texts = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family(daemon.pid)]
    return [text.replace(b"\0", b" ").decode(errors="replace") for text in texts]


def test_neither_secrets_nor_cell_values_are_written_down(
    private_pg: Database, daemon: DaemonProcess, fake_openai: FakeOpenAI
) -> None:
    # Given a daemon that runs, and a row with a canary in every column
    pg = private_pg
    daemon.start(ready=False)
    until(lambda: ready(daemon), 60.0, "the daemon to be ready")

    # When the model fails on that row, the database goes away, and requests are wrong in many ways
    fake_openai.script(server_error(500), garbage(), not_a_number())
    pg.execute("insert into articles values (900, %s, %s, %s)", (CELL, CELL * 3, CELL))
    until(lambda: "recovered component=embedding" in daemon.log, 60.0, "the row to be embedded")
    pg.server.restart("immediate")
    until(lambda: ready(daemon), 60.0, "the daemon to be ready again")
    pages = [ask(daemon, path).text for path in ("/metrics", "/status", "/readyz", "/dead-letters", "/resyncs")]
    pages += [ask(daemon, "/status", token=TOKEN + "x").text, ask(daemon, f"/nowhere/{CELL}").text.replace(CELL, "")]
    lines = command_lines(daemon)

    # Then no secret and no value of a row is in what it says
    said = "\n".join([daemon.log, *pages])
    assert "retrying component=embedding" in said
    assert "cdc_agent_documents" in said
    for canary in (*SECRETS, CELL):
        assert canary not in said
        assert not any(canary in line for line in lines)
    # And of Chroma only the Rust server runs.
    assert any("chroma" in line and " run " in line for line in lines)
    assert not any("uvicorn" in line or "chromadb.app" in line for line in lines)


def test_what_it_keeps_is_readable_by_its_owner_alone(private_pg: Database, daemon: DaemonProcess) -> None:
    # Given a machine whose users make files for everybody
    before = os.umask(0o000)
    try:
        daemon.start(ready=False)
    finally:
        os.umask(before)
    until(lambda: ready(daemon), 60.0, "the daemon to be ready")

    # Then the folder is closed to others, and so are the databases in it
    state = Path(daemon.settings["state_dir"])
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for path in (*state.glob("*.sqlite*"), state / "lock"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_file_of_secrets_that_others_can_read_is_named_at_the_start_and_by_check(
    private_pg: Database, daemon: DaemonProcess, tmp_path: Path
) -> None:
    # Given a file of tokens that everybody can read
    (tmp_path / "tokens").chmod(0o644)

    # When the daemon starts, then its log says so
    daemon.start(ready=False)
    until(lambda: ready(daemon), 60.0, "the daemon to be ready")
    assert "secret file can be read by others key=http.tokens_file" in daemon.log

    # And so does `check`, as advice; a file that only its owner can read is not named
    def advice() -> list[str]:
        command = [sys.executable, "-m", "cdc_agent.cli", "check", "--json", "-c", str(daemon.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return [f["message"] for f in json.loads(done.stdout)["findings"] if f["name"] == "secrets" and f["ok"]]

    assert advice() == [f"http.tokens_file: {tmp_path / 'tokens'} can be read by everybody"]
    (tmp_path / "tokens").chmod(0o600)
    assert advice() == []


def test_a_lock_that_leads_elsewhere_is_not_followed(
    private_pg: Database, daemon: DaemonProcess, tmp_path: Path
) -> None:
    # Given somebody who put a link to another file where the lock is to be
    victim = tmp_path / "victim"
    victim.write_text("precious")
    state = Path(daemon.settings["state_dir"])
    state.mkdir(mode=0o700)
    (state / "lock").symlink_to(victim)

    daemon.start(ready=False)

    assert daemon.wait_exit() == 78
    assert victim.read_text() == "precious"
