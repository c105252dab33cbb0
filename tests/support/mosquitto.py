"""A real mosquitto on loopback that a test may stop and start again, and a publisher that waits to be heard."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.wait import until

__all__ = ["Mosquitto", "found"]


def found() -> str:
    """The command; without it the test is skipped, or fails when CI is set."""
    command = shutil.which("mosquitto") or next((p for p in ["/usr/sbin/mosquitto"] if Path(p).exists()), None)
    if command is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("mosquitto is not installed")
    assert command is not None
    return command


class Mosquitto:
    """``users``: who may connect, with passwords; empty: anybody. With an ``authority`` it speaks TLS as ``localhost``,
    to those alone that have a certificate of that authority, too."""

    def __init__(
        self, folder: Path, users: dict[str, str] | None = None, *, authority: Authority | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = authority
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._user = next(iter((users or {}).items()), None)
        lines = [f"listener {self.port} 127.0.0.1", "persistence true", f"persistence_location {folder}/"]
        lines += ["autosave_interval 1", "max_queued_messages 0", f"log_dest file {folder}/broker.log", "user root"]
        if users:
            passwords = folder / "passwords"
            passwords.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
            tool = shutil.which("mosquitto_passwd") or "/usr/bin/mosquitto_passwd"
            subprocess.run([tool, "-U", str(passwords)], check=True)
            lines += [f"password_file {passwords}"]
        lines += [f"allow_anonymous {'false' if users else 'true'}"]
        if authority is not None:
            authority.issue(folder, "localhost")
            authority.issue(folder, "a client of ours", stem="client")
            lines += [f"certfile {folder}/server.crt", f"keyfile {folder}/server.key"]
            lines += [f"cafile {authority.certificate}", "require_certificate true"]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    @property
    def host(self) -> str:
        return "127.0.0.1" if self.authority is None else "localhost"

    @property
    def cert_file(self) -> Path:
        """With an authority: who may connect. The key is in ``key_file``."""
        return self._folder / "client.crt"

    @property
    def key_file(self) -> Path:
        return self._folder / "client.key"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        self._process = subprocess.Popen([found(), "-c", str(self._folder / "mosquitto.conf")])
        until(self._answers, 10, "mosquitto to answer")

    def stop(self) -> None:
        """In order: sessions and what waits in them are written down."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def publish(self, messages: Iterable[tuple[str, bytes | str]], *, retain: bool = False) -> None:
        """With QoS 1; returns when the broker has all of them."""
        client = self._client()
        client.connect(self.host, self.port)
        client.loop_start()
        told = [client.publish(topic, payload, qos=1, retain=retain) for topic, payload in messages]
        for one in told:
            one.wait_for_publish(20)
            assert one.is_published()
        client.disconnect()
        client.loop_stop()

    def _client(self) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2)
        if self._user is not None:
            client.username_pw_set(*self._user)
        if self.authority is not None:
            client.tls_set(str(self.authority.certificate), str(self.cert_file), str(self.key_file))
        return client

    def _answers(self) -> bool:
        try:
            client = self._client()
            client.connect(self.host, self.port)
            client.disconnect()
        except OSError:
            return False
        return True
