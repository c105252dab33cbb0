"""What containers and the service promise, read from their files: who they are, what they may, who reaches them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdc_agent.config import load
from cdc_agent.config.dsn import verified
from cdc_agent.config.tree import is_loopback
from cdc_agent.daemon.run import _DRAIN_S
from cdc_agent.vectorstore.chroma_server import ChromaServer
from cdc_agent.web.access import Tokens
from cdc_agent.web.server import GRACE_S

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("chroma", "cdc-agent")
CONFINED = (*OURS, "prometheus", "grafana")

#: How long an orderly stop can take: work in hand, then requests in hand, then the server of a managed Chroma.
LONGEST_STOP_S = _DRAIN_S + GRACE_S + 2 + ChromaServer(Path())._stop_timeout_s


# docker-compose.yml


@pytest.mark.parametrize("name", CONFINED)
@pytest.mark.fault("supply-chain")
def test_our_containers_can_do_nothing_they_need_not(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == "/tmp"
    assert service["init"] is True


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_is_privileged(name: str) -> None:
    service = SERVICES[name]

    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "user", "network_mode", "pid", "devices"} & service.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_this_machine_alone(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        host, _, _ = port.partition(":")
        assert is_loopback(host), port


def test_the_database_and_chroma_do_not_see_each_other() -> None:
    assert set(SERVICES["postgres"]["networks"]) & set(SERVICES["chroma"]["networks"]) == set()
    assert set(SERVICES["cdc-agent"]["networks"]) == {
        *SERVICES["postgres"]["networks"],
        *SERVICES["chroma"]["networks"],
        *SERVICES["prometheus"]["networks"],
    }
    for name in ("prometheus", "grafana"):
        assert SERVICES[name]["networks"] == ["metrics"]


def test_the_daemon_waits_until_both_ends_are_healthy() -> None:
    ends = SERVICES["cdc-agent"]["depends_on"]

    assert ends == {name: {"condition": "service_healthy"} for name in ("postgres", "chroma")}
    assert all("healthcheck" in SERVICES[name] for name in ends)


def test_no_secret_is_written_in_the_file() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            assert "PASSWORD" not in variable or value.startswith("/run/secrets/"), f"{name}: {variable}"
    assert all(
        set(secret) == {"file"} and secret["file"].startswith("./var/") for secret in COMPOSE["secrets"].values()
    )


def test_every_name_that_is_used_is_defined() -> None:
    for service in SERVICES.values():
        assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()
        assert set(service["networks"]) <= COMPOSE["networks"].keys()
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"], volume


def test_who_watches_is_started_on_request_alone() -> None:
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["observability"]} == {
        "prometheus",
        "grafana",
    }


def test_prometheus_reads_our_alerts_and_asks_our_daemon_with_its_own_token() -> None:
    text = (ROOT / "config" / "observability" / "prometheus.yml").read_text()
    settings = yaml.safe_load(text)
    mounts = dict(volume.split(":")[:2][::-1] for volume in SERVICES["prometheus"]["volumes"])
    (scrape,) = settings["scrape_configs"]

    assert [mounts[file] for file in settings["rule_files"]] == ["./config/prometheus-alerts.yml"]
    assert (
        f"--config.file={next(p for p in mounts if p.endswith('prometheus.yml'))}" in SERVICES["prometheus"]["command"]
    )
    assert scrape["authorization"]["credentials_file"] == f"/run/secrets/{SERVICES['prometheus']['secrets'][0]}"
    assert scrape["static_configs"][0]["targets"] == [f"cdc-agent:{SERVICES['cdc-agent']['ports'][0].rsplit(':')[-1]}"]


def test_grafana_finds_prometheus_and_our_dashboard() -> None:
    folder = ROOT / "config" / "observability"
    (source,) = yaml.safe_load((folder / "datasource.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])

    assert source["url"] == f"http://prometheus:{SERVICES['prometheus']['ports'][0].rsplit(':')[-1]}"
    assert Path(mounts["./config/grafana-dashboard.json"]).parent == Path(provider["options"]["path"])
    # Where Grafana looks for such files.
    assert Path(mounts["./config/observability/datasource.yml"]).parent.name == "datasources"
    assert Path(mounts["./config/observability/dashboards.yml"]).parent.name == "dashboards"


def test_the_secrets_of_compose_can_be_made_and_the_tokens_let_in_whom_they_should(tmp_path: Path) -> None:
    # Given the script in a checkout of its own, run twice
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts" / "compose-secrets", tmp_path / "scripts")
    for _ in range(2):
        subprocess.run([script], check=True, timeout=30)
    folder = tmp_path / "var" / "compose"

    # Then every secret that is mounted is there, and not for others on this machine
    assert {path.name for path in folder.iterdir()} >= {
        Path(secret["file"]).name for secret in COMPOSE["secrets"].values()
    }
    assert folder.stat().st_mode & 0o077 == 0
    # And each token is known to the daemon for what it is for
    tokens = Tokens.load(folder / "tokens")
    for name, scopes in (("admin-token", {"search", "metrics", "admin"}), ("metrics-token", {"metrics"})):
        grant = tokens.grant((folder / name).read_text().strip())
        assert grant is not None
        assert set(grant.scopes) == scopes


def test_the_server_decodes_its_log() -> None:
    assert "wal_level=logical" in SERVICES["postgres"]["command"]


def test_the_daemon_has_time_to_stop() -> None:
    # Chroma is another container here, so nothing waits for it.
    assert seconds(SERVICES["cdc-agent"]["stop_grace_period"]) > _DRAIN_S + GRACE_S + 2


# config/compose.yaml


@pytest.fixture
def compose_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The daemon's configuration in compose, with its secrets in a folder of this test."""
    for variable in ("CDC_AGENT_CONFIG", "CDC_AGENT_SOURCE__DSN"):
        monkeypatch.delenv(variable, raising=False)
    text = (ROOT / "config" / "compose.yaml").read_text()
    assert set(re.findall(r"/run/secrets/([\w-]+)", text)) == set(SERVICES["cdc-agent"]["secrets"])
    (tmp_path / "cdc-agent-dsn").write_text("postgresql://cdc_agent:secret@postgres:5432/app\n")
    (tmp_path / "agent.yaml").write_text(text.replace("/run/secrets", str(tmp_path)))
    return load(tmp_path / "agent.yaml")


def test_the_example_configuration_fits_the_containers(compose_config) -> None:
    _, published, inside = SERVICES["chroma"]["ports"][0].rsplit(":", 2)
    command = SERVICES["chroma"]["command"]

    assert published
    assert (compose_config.vectorstore.mode, compose_config.vectorstore.host) == ("server", "chroma")
    assert str(compose_config.vectorstore.port) == inside == command[command.index("--port") + 1]
    assert SERVICES["cdc-agent"]["ports"][0].endswith(f":{compose_config.http.port}")
    assert compose_config.http.tokens_file is not None


def test_the_example_table_has_the_columns_that_are_indexed(compose_config) -> None:
    statements = (ROOT / "config" / "compose-init.sql").read_text()

    for spec in compose_config.collection_specs():
        for column in spec.needed_columns:
            assert re.search(rf"^    {column} ", statements, re.MULTILINE), column
    assert f"create publication {compose_config.source.publication_name} for table" in statements


# Dockerfile


INSTRUCTIONS = [
    re.split(r"\s+", line, maxsplit=1)
    for line in re.sub(r"\\\n", "", re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text())).splitlines()
    if line.strip()
]
LAST_STAGE = INSTRUCTIONS[max(i for i, (word, _) in enumerate(INSTRUCTIONS) if word == "FROM") :]


def last(word: str) -> str:
    return next(rest for name, rest in reversed(LAST_STAGE) if name == word)


def test_the_image_runs_as_somebody_without_a_name() -> None:
    assert last("USER") == "65532:65532"


def test_the_image_starts_the_daemon_without_a_shell() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["cdc-agent"]
    assert json.loads(last("CMD")) == ["run"]


def test_no_registry_is_written_into_the_image() -> None:
    text = "\n".join(rest for _, rest in INSTRUCTIONS)

    assert "://" not in text
    assert all(
        rest == "${BASE}" or rest.startswith(("${BASE} AS ", "needs AS ")) for w, rest in INSTRUCTIONS if w == "FROM"
    )


@pytest.mark.fault("supply-chain")
def test_the_image_has_the_torch_of_the_development_environment() -> None:
    wanted = re.search(r"CDC_AGENT_TORCH:-([^}]+)", (ROOT / "scripts" / "setup").read_text())

    assert wanted
    assert ["ARG", f"TORCH={wanted[1]}"] in INSTRUCTIONS


def test_state_lies_in_the_volume() -> None:
    environment = dict(pair.split("=", 1) for pair in shlex.split(last("ENV")))

    assert environment["CDC_AGENT_STATE_DIR"] == environment["HOME"] == last("VOLUME")
    for name in OURS:
        assert SERVICES[name]["volumes"][0].endswith(f":{last('VOLUME')}")


def test_only_what_is_named_goes_into_the_build() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    assert lines[0] == "*"
    copied = {
        source for word, rest in INSTRUCTIONS if word == "COPY" and "--from" not in rest for source in rest.split()[:-1]
    }
    assert {source.partition("/")[0] for source in copied} == {line[1:] for line in lines if line.startswith("!")}


# The health checks, run.


class _Answer(BaseHTTPRequestHandler):
    statuses: dict[str, int] = {}  # noqa: RUF012 (each test sets its own)

    def do_GET(self) -> None:
        self.send_response(self.statuses.get(self.path, 404))
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def image_check(port: int) -> list[str]:
    command = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    return ["env", f"CDC_AGENT_HTTP__PORT={port}", sys.executable, *command[1:]]


def chroma_check(port: int) -> list[str]:
    kind, _, *command = SERVICES["chroma"]["healthcheck"]["test"]
    assert kind == "CMD"
    return [sys.executable, *(word.replace("8000", str(port)) for word in command)]


@pytest.mark.parametrize(("check", "path"), [(image_check, "/healthz"), (chroma_check, "/api/v2/heartbeat")])
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_health_checks_follow_the_answer(
    server: ThreadingHTTPServer, check, path, status, healthy, monkeypatch
) -> None:
    # Given a server that answers this way, and a proxy that would not lead there
    monkeypatch.setattr(_Answer, "statuses", {path: status})
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    # When the health check is run as the engine runs it
    result = subprocess.run(check(server.server_address[1]), capture_output=True, timeout=30)

    # Then it says so
    assert (result.returncode == 0) is healthy, result.stderr


@pytest.mark.parametrize("check", [image_check, chroma_check])
def test_nobody_there_is_not_healthy(server: ThreadingHTTPServer, check) -> None:
    port = server.server_address[1]
    server.shutdown()
    server.server_close()

    assert subprocess.run(check(port), capture_output=True, timeout=30).returncode != 0


# config/cdc-agent.service


def unit_values(key: str) -> list[str]:
    text = (ROOT / "config" / "cdc-agent.service").read_text()
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def test_systemd_hears_from_the_daemon_and_gives_up_where_trying_again_is_no_use() -> None:
    assert unit_values("Type") == ["notify"]
    assert unit_values("NotifyAccess") == ["main"]
    assert unit_values("Restart") == ["always"]
    assert unit_values("RestartPreventExitStatus") == ["78"]
    assert float(unit_values("WatchdogSec")[0]) >= 60
    assert unit_values("ExecReload") == ["kill -HUP $MAINPID"]


def test_systemd_leaves_stopping_chroma_to_the_daemon_and_waits_for_both() -> None:
    assert unit_values("KillMode") == ["mixed"]
    assert float(unit_values("TimeoutStopSec")[0]) > LONGEST_STOP_S


def test_the_service_is_nobody_in_particular() -> None:
    assert unit_values("DynamicUser") == ["yes"]
    assert unit_values("StateDirectory") == ["cdc-agent"]
    assert unit_values("CapabilityBoundingSet") == [""]


def test_the_variables_of_the_service_are_keys_of_the_configuration(tmp_path, monkeypatch) -> None:
    # Given the variables of the unit, with its credentials and its state in a folder
    (tmp_path / "dsn").write_text("postgresql://db.example/shop")
    for variable, value in (pair.split("=", 1) for pair in unit_values("Environment")):
        monkeypatch.setenv(variable, value.replace("%S", str(tmp_path)).replace("%d", str(tmp_path)))
    # And a configuration that leaves both to them
    collection = {"name": "articles", "table": "articles", "text": "{title}"}
    (tmp_path / "agent.yaml").write_text(yaml.safe_dump({"collections": [collection]}))

    # When it is loaded
    config = load(tmp_path / "agent.yaml")

    # Then it has them
    assert config.state_dir == tmp_path / "cdc-agent"
    assert config.source.dsn.get_secret_value() == verified("postgresql://db.example/shop")


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])
