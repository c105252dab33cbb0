"""A stage for an example: a Postgres of its own, the daemon with the example's configuration and agents, an outside
world, and everything told as it happens. What it is made of is the demo's."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import yaml

from cdc_agent.demo.agent import Agent
from cdc_agent.demo.postgres import PostgresServer
from cdc_agent.demo.stage import preferred_installation, throwaway_folder
from examples.stage.world import Effect, World

__all__ = ["EXAMPLES", "Stage", "settings_of", "stage"]

EXAMPLES = Path(__file__).parents[1]
_POLL_S = 0.1
_WAIT_S = 60.0
#: Of what is told of one event.
_WIDTH = 240

#: Changes the settings and puts files into the folder of the daemon; what it gives is the story's.
Prepared = Callable[[dict[str, Any], Path], AbstractContextManager[Any]]


def settings_of(name: str) -> dict[str, Any]:
    """The example's configuration, with the place of its agents spelled out, for a copy that lies elsewhere."""
    folder = EXAMPLES / name
    settings: dict[str, Any] = yaml.safe_load((folder / "cdc-agent.yaml").read_text())
    settings["agents"] = [reference.replace("./", f"{folder}/", 1) for reference in settings["agents"]]
    return settings


class Stage:
    """What a ``story.py`` plays on."""

    def __init__(self, dsn: str, agent: Agent, world: World, sandbox: Path) -> None:
        self.dsn = dsn
        self.sandbox = sandbox
        self.agent = agent
        self.world = world
        self._heard = 0
        self._types: list[str] = []

    def sql(self, what: str, statements: str) -> None:
        """Run statements in one transaction."""
        print(f"\n> {what}\n  {' '.join(statements.split())}", flush=True)
        with psycopg.connect(self.dsn) as connection:
            connection.execute(statements.encode())

    def webhook(self, what: str, source: str, type_: str, data: Any, secret: str) -> None:
        """Deliver an event as Standard Webhooks says, twice, as senders do that did not hear our answer."""
        print(f"\n> {what}\n  POST /webhooks/{source} {type_} {json.dumps(data)}, twice", flush=True)
        body, number, now = json.dumps({"type": type_, "data": data}), f"msg_{uuid.uuid4().hex}", str(int(time.time()))
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signature = base64.b64encode(hmac.digest(key, f"{number}.{now}.{body}".encode(), hashlib.sha256)).decode()
        headers = {"webhook-id": number, "webhook-timestamp": now, "webhook-signature": f"v1,{signature}"}
        for _ in range(2):
            httpx.post(f"{self.agent.url}/webhooks/{source}", content=body, headers=headers).raise_for_status()

    def post(self, path: str, body: Any) -> httpx.Response:
        """Ask the daemon for something."""
        return httpx.post(self.agent.url + path, json=body).raise_for_status()

    def wait_for(self, type_: str, count: int = 1) -> None:
        """Tell what happens until so many facts of this type have been recorded."""
        deadline = time.monotonic() + _WAIT_S
        while self._types.count(type_) < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"no {type_} in {_WAIT_S:g} s; the daemon's log is {self.agent.log_path}")
            self.listen()
            time.sleep(_POLL_S)

    def listen(self) -> None:
        """Tell the facts and commands that are new."""
        answer = httpx.get(f"{self.agent.url}/facts", params={"after": self._heard, "limit": 100})
        for fact in answer.raise_for_status().json()["facts"]:
            self._heard = fact["entry"]
            self._types.append(fact["type"])
            print(f"  journal  {fact['type']:<26} {json.dumps(fact['data'], ensure_ascii=False)}", flush=True)


@contextlib.contextmanager
def stage(name: str, *, embedding: str, prepared: Prepared | None = None) -> Iterator[tuple[Any, ...]]:
    """Put up everything in a folder that is thrown away, and what ``prepared`` makes; gives what a story plays on."""
    with ExitStack() as things:
        folder = Path(things.enter_context(throwaway_folder()))
        server = things.enter_context(PostgresServer(preferred_installation().bin_dir, folder / "postgres"))
        with psycopg.connect(server.dsn()) as connection:
            connection.execute((EXAMPLES / name / "schema.sql").read_bytes())
        world = things.enter_context(World(_told))
        sandbox = folder / "sandbox"
        sandbox.mkdir()
        os.environ |= {"EXAMPLE_DSN": server.dsn(), "EXAMPLE_WORLD": world.url, "EXAMPLE_SANDBOX": str(sandbox)}
        own = folder / "agent"
        own.mkdir(mode=0o700)
        settings = settings_of(name)
        settings.setdefault("embedding", {})["backend"] = embedding
        props = (things.enter_context(prepared(settings, own)),) if prepared is not None else ()
        agent = Agent(own, server.dsn(), settings)
        things.callback(agent.close)
        agent.start()
        yield Stage(server.dsn(), agent, world, sandbox), *props


def _told(effect: Effect) -> None:
    _say(f"  outside  POST {effect.path:<21} {json.dumps(effect.body, ensure_ascii=False)}")


def _say(line: str) -> None:
    # In one piece: the outside world tells from threads of its own.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
