"""config/kubernetes: every manifest is one that Kubernetes takes, and they fit each other, the image and the daemon."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cdc_agent import __version__
from cdc_agent.config import load
from tests.support.daemon import merged

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "config" / "kubernetes"
#: The oldest that is said to do, and the newest that is known.
KUBERNETES = ("1.29", kubernetes_validate.latest_version())


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


KUSTOMIZATION = read("kustomization.yaml")
MANIFESTS = {name: read(name) for name in KUSTOMIZATION["resources"]}
STATEFUL_SET = MANIFESTS["statefulset.yaml"]
POD = STATEFUL_SET["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
LABELS = STATEFUL_SET["spec"]["template"]["metadata"]["labels"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_takes_the_manifest(name: str, version: str) -> None:
    # Strict: a key that is misspelt, or in the wrong place, is an error.
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"spec": {"replica": 1}},
        {"spec": {"template": {"spec": {"securityContext": {"runAsNonRoot": "yes"}}}}},
        {"spec": {"template": {"spec": {"containers": [{"image": "without-a-name"}]}}}},
    ],
)
def test_a_mistake_would_be_found(wrong: dict[str, Any]) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(merged(STATEFUL_SET, wrong), KUBERNETES[-1], strict=True)


def test_every_file_is_named_and_every_name_is_a_file() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}

    assert set(KUSTOMIZATION["resources"]) == files
    component = read("monitoring/kustomization.yaml")
    assert {f"monitoring/{name}" for name in component["resources"]} == {
        str(path.relative_to(FOLDER)) for path in (FOLDER / "monitoring").glob("s*.yaml")
    }
    assert component["kind"] == "Component"


def test_the_image_is_that_of_this_version() -> None:
    (image,) = KUSTOMIZATION["images"]

    assert image["name"] == CONTAINER["image"]
    assert image["newTag"] == __version__


@pytest.mark.fault("supply-chain")
def test_the_pod_can_do_nothing_it_needs_not() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (
        POD["automountServiceAccountToken"] is MANIFESTS["serviceaccount.yaml"]["automountServiceAccountToken"] is False
    )
    assert not {"hostNetwork", "hostPID", "hostIPC"} & POD.keys()
    assert not any("hostPath" in volume for volume in POD["volumes"])


def test_it_runs_as_the_user_of_the_image() -> None:
    context = POD["securityContext"]
    users = f"{context['runAsUser']}:{context['runAsGroup']}"

    assert f"\nUSER {users}\n" in DOCKERFILE
    assert context["fsGroup"] == context["runAsGroup"]


def test_one_pod_keeps_its_state_where_the_image_does() -> None:
    (claim,) = STATEFUL_SET["spec"]["volumeClaimTemplates"]
    mounts = {mount["name"]: mount for mount in CONTAINER["volumeMounts"]}

    assert STATEFUL_SET["spec"]["replicas"] == 1
    assert f"\nVOLUME {mounts[claim['metadata']['name']]['mountPath']}\n" in DOCKERFILE
    assert mounts["config"]["mountPath"] + "/cdc-agent.yaml" in DOCKERFILE
    assert mounts["config"]["readOnly"]
    assert mounts["secrets"]["readOnly"]


def test_what_is_mounted_is_there_and_what_is_there_is_mounted() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    claims = {claim["metadata"]["name"] for claim in STATEFUL_SET["spec"]["volumeClaimTemplates"]}

    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == volumes.keys() | claims
    assert volumes["config"]["configMap"]["name"] == MANIFESTS["configmap.yaml"]["metadata"]["name"]
    assert POD["serviceAccountName"] == MANIFESTS["serviceaccount.yaml"]["metadata"]["name"]


def test_selectors_find_the_pod_and_ports_have_its_names() -> None:
    (port,) = CONTAINER["ports"]
    service, policy = MANIFESTS["service.yaml"]["spec"], MANIFESTS["networkpolicy.yaml"]["spec"]
    monitor = read("monitoring/servicemonitor.yaml")["spec"]

    assert STATEFUL_SET["spec"]["selector"]["matchLabels"] == service["selector"] == LABELS
    assert policy["podSelector"]["matchLabels"] == LABELS
    assert monitor["selector"]["matchLabels"] == MANIFESTS["service.yaml"]["metadata"]["labels"]
    assert STATEFUL_SET["spec"]["serviceName"] == MANIFESTS["service.yaml"]["metadata"]["name"]
    assert service["ports"][0]["targetPort"] == port["name"]
    assert monitor["endpoints"][0]["port"] == service["ports"][0]["name"]
    assert policy["ingress"][0]["ports"][0]["port"] == port["name"]
    assert all(CONTAINER[f"{kind}Probe"]["httpGet"]["port"] == port["name"] for kind in ("liveness", "readiness"))


def test_nobody_comes_in_who_is_not_named() -> None:
    policy = MANIFESTS["networkpolicy.yaml"]["spec"]

    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule["from"] and rule["ports"] for rule in policy["ingress"])
    assert all(rule["ports"] for rule in policy["egress"])


def test_probes_ask_what_needs_no_token() -> None:
    for kind in ("liveness", "readiness", "startup"):
        assert CONTAINER[f"{kind}Probe"]["httpGet"]["path"] == "/healthz"
    startup = CONTAINER["startupProbe"]
    # As long as systemd waits for it.
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300


def test_no_secret_is_in_a_manifest_and_those_it_needs_are_told() -> None:
    assert all(manifest["kind"] != "Secret" for manifest in MANIFESTS.values())
    secret = next(volume["secret"] for volume in POD["volumes"] if "secret" in volume)
    told = next(
        shlex.split(line.strip("# "))
        for line in (FOLDER / "kustomization.yaml").read_text().splitlines()
        if "create secret generic" in line
    )

    assert told[told.index("generic") + 1] == secret["secretName"]
    keys = {word.removeprefix("--from-file=") for word in told if word.startswith("--from-file=")}
    used = set(re.findall(r"/run/secrets/cdc-agent/(\w+)", MANIFESTS["configmap.yaml"]["data"]["cdc-agent.yaml"]))
    assert keys == used


def test_the_daemon_takes_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the map, with its secrets in a folder of this test
    for variable in ("CDC_AGENT_CONFIG", "CDC_AGENT_SOURCE__DSN"):
        monkeypatch.delenv(variable, raising=False)
    text = MANIFESTS["configmap.yaml"]["data"]["cdc-agent.yaml"]
    (tmp_path / "dsn").write_text("postgresql://cdc_agent@db.example/app\n")
    (tmp_path / "agent.yaml").write_text(text.replace("/run/secrets/cdc-agent", str(tmp_path)))

    # When it is loaded
    config = load(tmp_path / "agent.yaml")

    # Then the daemon listens where the pod says, only to those with a token, and Chroma to nobody else
    assert config.http.port == CONTAINER["ports"][0]["containerPort"]
    assert (config.http.host, config.http.tokens_file) == ("0.0.0.0", tmp_path / "tokens")
    assert (config.vectorstore.mode, config.vectorstore.host) == ("managed", "127.0.0.1")


def test_kustomize_builds_it() -> None:
    kustomize = shutil.which("kustomize") or shutil.which("kubectl")
    if kustomize is None:
        pytest.skip("neither kustomize nor kubectl is here: what they would do is checked above")
    command = [kustomize, "build", FOLDER] if kustomize.endswith("kustomize") else [kustomize, "kustomize", FOLDER]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert {one["kind"] for one in yaml.safe_load_all(result.stdout)} == {one["kind"] for one in MANIFESTS.values()}
