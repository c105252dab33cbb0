"""``check``: the questions that decide whether ``run`` will work, each with its remedy. Changes nothing."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path

import httpx

from cdc_agent.cli.output import print_json, wants_json
from cdc_agent.config import Config, load
from cdc_agent.config.secret_files import loose_files
from cdc_agent.errors import CdcAgentError
from cdc_agent.source.preflight import Finding

__all__ = ["run"]

_ANSWER_S = 5.0


def run(args: argparse.Namespace) -> int:
    """Exit code 1 when a finding is not ok."""
    config = load(args.config)
    rooms = (_source, _feeds, _state, _stream, _ledger, _embedding, _vectorstore, _http, _secrets, _agents)
    findings = [finding for room in rooms for finding in room(config)]
    failed = sum(not finding.ok for finding in findings)
    if wants_json(args):
        print_json({"ok": failed == 0, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            _print_finding(finding)
        print("everything is ready" if failed == 0 else f"{failed} of {len(findings)} checks failed")
    return 1 if failed else 0


def _print_finding(finding: Finding) -> None:
    mark = "ok  " if finding.ok else "FAIL"
    if sys.stdout.isatty():
        mark = f"\x1b[32m{mark}\x1b[0m" if finding.ok else f"\x1b[31m{mark}\x1b[0m"
    print(f"{mark}  {finding.name}: {finding.message}")
    if finding.hint:
        print(f"      hint: {finding.hint}")


def _source(config: Config) -> list[Finding]:
    from cdc_agent.source import preflight

    source = config.source
    return preflight.check(
        source.dsn.get_secret_value(),
        slot_name=source.slot_name,
        publication_name=source.publication_name,
        plugin=source.plugin,
        tables=[(spec.schema, spec.table) for spec in config.table_specs()],
        columns=_columns(config),
    )


def _columns(config: Config) -> dict[tuple[str, str], Collection[str]]:
    columns: dict[tuple[str, str], Collection[str]] = {}
    for spec in config.table_specs():
        table = spec.schema, spec.table
        columns[table] = {*columns.get(table, ()), *spec.needed_columns}
    return columns


def _feeds(config: Config) -> Iterator[Finding]:
    """Whether the documents that are kept elsewhere can be read."""
    from cdc_agent.daemon.feeds import examined

    if all(collection.feed is None for collection in config.collections):
        return
    for name, found in examined(config):
        yield Finding(name=f"feed {name}", ok=found.ok, message=found.message, hint=found.hint)


def _state(config: Config) -> Iterator[Finding]:
    """The folders that the daemon writes into."""
    folders = {config.state_dir, config.stream_path.parent}
    if config.ledger.backend == "sqlite":
        folders.add(config.ledger_path.parent)
    for folder in sorted(folders):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        ok = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        yield Finding(
            name="state",
            ok=ok,
            message=f"{folder} is writable" if ok else f"{folder} cannot be written",
            hint="" if ok else f"make {existing} writable for this user, or set state_dir",
        )


def _stream(config: Config) -> Iterator[Finding]:
    """Whether NATS answers, is new enough, has JetStream, and says when it writes to its disk."""
    if config.stream.backend != "jetstream":
        return
    from cdc_agent.daemon.streams import examined

    try:
        facts = examined(config)
    except CdcAgentError as exc:
        yield Finding(name="stream", ok=False, message=exc.message, hint=exc.hint)
        return
    yield Finding(name="stream", ok=True, message=f"NATS {facts.version} answers and has JetStream")
    yield Finding(
        name="stream",
        ok=True,
        message=f"Postgres keeps what NATS took for {facts.hold_s:.0f} s",
        hint=""
        if facts.known
        else "set stream.monitor_url, to ask when NATS writes to its disk, or stream.hold_back_s",
    )


def _ledger(config: Config) -> Iterator[Finding]:
    from cdc_agent.daemon.ledgers import ledger_findings

    return ledger_findings(config)


def _embedding(config: Config) -> Iterator[Finding]:
    embedding = config.embedding
    if embedding.backend == "openai":
        yield _embedding_endpoint(config)
    elif embedding.backend == "sentence-transformers":
        ok = importlib.util.find_spec("sentence_transformers") is not None
        yield Finding(
            name="embedding",
            ok=ok,
            message="sentence-transformers is installed" if ok else "sentence-transformers is not installed",
            hint="" if ok else "pip install 'cdc-agent[local]', or set embedding.backend to openai",
        )


def _embedding_endpoint(config: Config) -> Finding:
    """Whether somebody answers there; a wrong key shows as well."""
    embedding = config.embedding
    url = (embedding.url or "").rstrip("/").removesuffix("/embeddings")
    key = embedding.api_key.get_secret_value() if embedding.api_key else ""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        status = httpx.get(f"{url}/models", headers=headers, timeout=_ANSWER_S).status_code
    except httpx.HTTPError as exc:
        return Finding(name="embedding", ok=False, message=f"{url} does not answer: {exc}", hint="check embedding.url")
    if status in (401, 403):
        return Finding(
            name="embedding", ok=False, message=f"{url} refuses the key (HTTP {status})", hint="set embedding.api_key"
        )
    return Finding(name="embedding", ok=True, message=f"{url} answers")


def _agents(config: Config) -> Iterator[Finding]:
    if not config.agents:
        return
    from cdc_agent.reactions.loading import load as load_agents

    try:
        app = load_agents(config.agents)
    except CdcAgentError as exc:
        yield Finding(name="agents", ok=False, message=exc.message, hint=exc.hint)
        return
    names = ", ".join(sorted(app.agents)) or "none"
    yield Finding(name="agents", ok=True, message=f"agents: {names}")


def _vectorstore(config: Config) -> Iterator[Finding]:
    store = config.vectorstore
    if store.backend != "chroma":
        return
    if store.mode == "server":
        yield _chroma_server(f"http://{store.host}:{store.port}")
    elif store.mode == "managed":
        beside = Path(sys.executable).with_name("chroma")
        ok = beside.exists() or shutil.which("chroma") is not None
        yield Finding(
            name="vectorstore",
            ok=ok,
            message="chroma is installed" if ok else "the command chroma is not installed",
            hint="" if ok else "pip install chromadb, or set vectorstore.mode to server or embedded",
        )


def _chroma_server(url: str) -> Finding:
    try:
        # Without the environment's proxies, as the daemon will do it.
        with httpx.Client(trust_env=False, timeout=_ANSWER_S) as client:
            ok = client.get(f"{url}/api/v2/heartbeat").is_success
        message = f"Chroma answers at {url}" if ok else f"what answers at {url} is not Chroma"
    except httpx.HTTPError as exc:
        ok, message = False, f"no Chroma answers at {url}: {exc}"
    hint = "" if ok else "start it (chroma run --path DIR --host HOST --port PORT), or set vectorstore.mode to managed"
    return Finding(name="vectorstore", ok=ok, message=message, hint=hint)


def _secrets(config: Config) -> Iterator[Finding]:
    """A warning: what mode a file needs depends on who else is on this machine."""
    for file in loose_files(config):
        yield Finding(name="secrets", ok=True, message=file.message, hint=file.hint)


def _http(config: Config) -> Iterator[Finding]:
    from cdc_agent.web.tokens import read_tokens

    if config.http.tokens_file is None:
        return
    try:
        count = len(read_tokens(config.http.tokens_file))
        yield Finding(name="http", ok=True, message=f"{count} token(s) in {config.http.tokens_file}")
    except CdcAgentError as exc:
        yield Finding(name="http", ok=False, message=exc.message, hint=exc.hint)
