"""The real command, as a subprocess: what goes wrong says what and how to mend it, and exits with the right code."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.postgres import Database
from tests.support.wait import until

CONFIG = """\
source:
  dsn: postgresql://app:hunter2secret@127.0.0.1:1/shop
collections:
  - name: articles
    table: public.articles
    text: "{title}"
http:
  port: %d
"""


@pytest.fixture
def port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number: int = taken.getsockname()[1]
    return number


@pytest.fixture
def config(tmp_path: Path, port: int) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(CONFIG % port)
    return path


def clean_environment(**more: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("CDC_AGENT_")} | more


def cdc_agent(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "cdc_agent.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        check=False,
        env=clean_environment(**environment),
    )
    assert "Traceback" not in result.stderr
    assert "hunter2secret" not in result.stdout + result.stderr
    return result


def test_an_unknown_key_is_named_with_the_nearest_known_one(config: Path) -> None:
    # Given a configuration with a misspelt key
    config.write_text(config.read_text() + "embeding: {}\n")

    # When any command reads it
    result = cdc_agent("status", "-c", config)

    # Then the error names it, and the exit code says that trying again is useless
    assert result.returncode == 78
    assert result.stderr.splitlines()[0] == (f"error: {config}:9: embeding is not a known key; did you mean embedding?")
    assert result.stderr.splitlines()[1].startswith("hint: known keys of the top level: source, ")
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["check", "run", "status", "search cat", "wait 0/1", "resync", "slot show"])
def test_a_missing_file_is_named_by_every_command(tmp_path: Path, command: str) -> None:
    result = cdc_agent(*command.split(), "-c", tmp_path / "none.yaml")

    assert result.returncode == 78
    assert f"error: {tmp_path / 'none.yaml'}: no such file" in result.stderr
    assert "hint: " in result.stderr


def test_without_an_option_the_default_file_is_looked_for(tmp_path: Path) -> None:
    result = cdc_agent("status", cwd=tmp_path)

    assert result.returncode == 78
    assert "error: config/cdc-agent.yaml: no such file" in result.stderr


def test_the_environment_names_the_file(config: Path) -> None:
    result = cdc_agent("status", CDC_AGENT_CONFIG=str(config))

    assert result.returncode == 75


def test_broken_yaml_is_named_with_line_and_column(config: Path) -> None:
    config.write_text("source:\n  dsn: 'hunter2secret\n")

    result = cdc_agent("check", "-c", config)

    assert result.returncode == 78
    assert f"error: {config}:3:1: not valid YAML" in result.stderr
    assert "hint: " in result.stderr


@pytest.mark.parametrize(
    "command",
    ["status", "search cat", "wait 0/1", "resync", "dead-letters list", "dead-letters show 1", "dead-letters replay 1"],
)
def test_without_a_daemon_commands_say_how_to_start_it(config: Path, port: int, command: str) -> None:
    result = cdc_agent(*command.split(), "--config", config)

    assert result.returncode == 75
    assert result.stderr == (
        f"error: no daemon answers at http://127.0.0.1:{port}\n"
        f"hint: start it with: cdc-agent run -c {config} (or correct http.host and http.port there)\n"
    )


def test_something_else_on_the_port_is_not_taken_for_the_daemon(config: Path, port: int) -> None:
    # Given another server on our port
    with socket.create_server(("127.0.0.1", port)) as other:
        running = subprocess.Popen(
            [sys.executable, "-m", "cdc_agent.cli", "status", "-c", config],
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        connection, _ = other.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n<html>hello</html>")
        connection.close()

        # Then the command says so
        _, stderr = running.communicate(timeout=60)
    assert running.returncode == 75
    assert f"error: what answers at http://127.0.0.1:{port} is not cdc-agent (HTTP 200)" in stderr


def test_ctrl_c_ends_quietly(config: Path, port: int) -> None:
    # Given a command that waits for an answer
    with socket.create_server(("127.0.0.1", port)) as other:
        running = subprocess.Popen(
            [sys.executable, "-m", "cdc_agent.cli", "wait", "0/1", "-c", config],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        connection, _ = other.accept()
        assert connection.recv(65536)

        # When it is interrupted
        # (again if Python swallowed it, which it does in a finalizer)
        for _ in range(3):
            running.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                output = running.communicate(timeout=15)
                break
        connection.close()

    # Then it says nothing
    assert running.returncode == 130
    assert output == ("", "")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["serve"], "invalid choice: 'serve'"),
        (["status", "--fast"], "unrecognized arguments: --fast"),
        (["wait", "now"], "argument lsn: not an LSN: 'now'"),
        (["wait", "0/1", "--timeout-s", "soon"], "argument --timeout-s: not a number of seconds"),
        (["search", "cat", "--where", "lang=en"], "argument --where: not JSON"),
        (["dead-letters", "show", "x"], "argument id: invalid int value: 'x'"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str], error: str) -> None:
    result = cdc_agent(*arguments)

    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert error in result.stderr
    assert "hint: cdc-agent" in result.stderr


def test_dropping_the_slot_unasked_is_refused(config: Path) -> None:
    result = cdc_agent("slot", "drop", "-c", config)

    assert result.returncode == 2
    assert "loses every change that is not captured yet" in result.stderr
    assert "hint: confirm it with --yes" in result.stderr


def test_a_server_that_is_away_is_a_reason_to_try_again(config: Path) -> None:
    result = cdc_agent("slot", "show", "-c", config)

    assert result.returncode == 75
    assert result.stderr.startswith("error: ")
    assert "hint: " in result.stderr


def test_check_tells_what_is_missing_to_machines_too(config: Path) -> None:
    result = cdc_agent("check", "-c", config, "--json")

    assert result.returncode == 1
    assert '"ok": false' in result.stdout
    assert result.stderr == ""


def test_the_versions_of_what_is_at_work_are_printed() -> None:
    from importlib.metadata import version

    from cdc_agent import __version__

    lines = dict(line.split(" ", 1) for line in cdc_agent("--version").stdout.splitlines())

    assert next(iter(lines.items())) == ("cdc-agent", __version__)
    assert lines["python"] == platform.python_version()
    assert lines["sqlite"] == sqlite3.sqlite_version
    assert all(lines[name] == version(name) for name in ("psycopg", "chromadb", "sentence-transformers", "torch"))
    assert re.fullmatch(r"\d+\.\d+", lines["libpq"])


HEAVY = {"torch", "transformers", "sentence_transformers", "chromadb", "sqlglot", "starlette", "mcp", "opentelemetry"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["completion", "bash"]])
def test_what_needs_no_model_and_no_store_loads_none(arguments: list[str]) -> None:
    # Given an interpreter in which they would be seen
    code = (
        "import sys\n"
        "from cdc_agent.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"sys.exit(' '.join({HEAVY!r} & sys.modules.keys()) or 0)"
    )

    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)

    assert (result.returncode, result.stderr) == (0, "")


def complete(typed: list[str]) -> set[str]:
    """What bash would offer for the last word."""
    script = cdc_agent("completion", "bash").stdout
    words = " ".join(f"'{word}'" for word in typed)
    ask = (
        f"\nCOMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; COMP_TYPE=9\n"
        "_shtab_cdc_agent\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    )
    result = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, timeout=60, check=True)
    return {line.strip() for line in result.stdout.splitlines()}


def test_bash_completes_commands_and_options() -> None:
    assert {"run", "resync", "dead-letters", "completion"} <= complete(["cdc-agent", ""])
    assert complete(["cdc-agent", "dead-letters", "re"]) == {"replay"}
    assert "--min-lsn" in complete(["cdc-agent", "search", "--m"])


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_learn_the_same(shell: str) -> None:
    script = cdc_agent("completion", shell).stdout

    assert all(word in script for word in ("dead-letters", "replay", "--min-lsn" if shell == "zsh" else "min-lsn"))


def test_a_reader_that_goes_away_is_no_error(config: Path) -> None:
    # Given a reader that closes its end at once
    read_end, write_end = os.pipe()
    os.close(read_end)

    # When a command prints into it
    running = subprocess.Popen(
        [sys.executable, "-m", "cdc_agent.cli", "check", "-c", config],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    os.close(write_end)

    # Then it ends without a word
    until(lambda: running.poll() is not None, what="the command to end")
    assert running.stderr is not None
    assert running.stderr.read() == ""
    running.stderr.close()


def test_check_slot_show_and_slot_drop_on_a_real_server(config: Path, pg: Database) -> None:
    # Given a database with the table, and no slot of ours
    pg.execute("create table articles (id int primary key, title text)")
    environment = {"CDC_AGENT_SOURCE__DSN": pg.dsn, "CDC_AGENT_SOURCE__SLOT_NAME": f"{pg.name}_slot"}

    # Then check is content, and there is no slot to show or drop
    checked = cdc_agent("check", "-c", config, **environment)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.endswith("everything is ready\n")
    shown = cdc_agent("slot", "show", "-c", config, **environment)
    assert (shown.returncode, shown.stdout) == (1, f"there is no slot {pg.name}_slot\n")

    # When there is a slot
    pg.execute(f"select pg_create_logical_replication_slot('{pg.name}_slot', 'pgoutput')")

    # Then it is shown, and dropped when that is confirmed
    shown = cdc_agent("slot", "show", "-c", config, **environment)
    assert shown.returncode == 0
    assert f"name: {pg.name}_slot\nplugin: pgoutput\n" in shown.stdout
    dropped = cdc_agent("slot", "drop", "--yes", "-c", config, **environment)
    assert (dropped.returncode, dropped.stdout) == (0, f"slot {pg.name}_slot is dropped\n")
    assert pg.execute("select count(*) from pg_replication_slots where slot_name = %s", (f"{pg.name}_slot",)) == [(0,)]


def test_check_names_the_table_that_is_missing(config: Path, pg: Database) -> None:
    result = cdc_agent("check", "-c", config, CDC_AGENT_SOURCE__DSN=pg.dsn)

    assert result.returncode == 1
    assert "FAIL" in result.stdout
    assert "public.articles" in result.stdout
    assert "      hint: " in result.stdout
