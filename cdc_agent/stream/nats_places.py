"""Where the readers of a stream are, in a key-value bucket beside it. Only one process writes here."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import nats.js.errors
from nats.js import api

from cdc_agent.stream.nats_link import NatsLink

__all__ = ["NatsPlaces"]


class NatsPlaces:
    """Offsets by the name of a reader; read once, then known here. Raises ``StreamUnavailable`` as the log does."""

    def __init__(self, link: NatsLink, bucket: str, *, replicas: int = 1) -> None:
        self._link = link
        self._bucket = bucket
        self._replicas = replicas
        self._store: Any = None
        self._offsets: dict[str, int] = {}

    def make(self) -> bool:
        """Make the bucket unless it is there; whether it was made now."""
        return self._link.call(self._make)

    async def _make(self) -> bool:
        js = self._link.js
        try:
            self._store = await js.key_value(self._bucket)
        except nats.js.errors.NotFoundError:
            self._store = await js.create_key_value(
                api.KeyValueConfig(bucket=self._bucket, history=1, replicas=self._replicas)
            )
            self._offsets = {}
            return True
        self._offsets = await self._load()
        return False

    async def _load(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for key in await self._keys():
            # A reader that was forgotten has left a mark.
            with suppress(nats.js.errors.KeyNotFoundError):
                found[bytes.fromhex(key).decode()] = int((await self._store.get(key)).value)
        return found

    async def _keys(self) -> list[str]:
        """Asked of the server in one question. (``KeyValue.keys`` listens for them, and now and then takes none for an
        answer before the first one comes: nats-io/nats.py#842.)"""
        prefix = f"$KV.{self._bucket}."
        info = await self._link.js.stream_info(f"KV_{self._bucket}", subjects_filter=f"{prefix}>")
        return sorted(subject.removeprefix(prefix) for subject in info.state.subjects or ())

    def remove(self) -> None:
        async def remove() -> None:
            try:
                await self._link.js.delete_key_value(self._bucket)
            except nats.js.errors.NotFoundError:
                pass

        self._link.call(remove)

    def all(self) -> dict[str, int]:
        return dict(self._offsets)

    def advance(self, name: str, offset: int) -> None:
        """Durable on return; never backward."""
        if offset > self._offsets.get(name, -1):
            self._link.call(self._put, name, offset)
            self._offsets[name] = offset

    async def _put(self, name: str, offset: int) -> None:
        self._link.check_connected()
        await self._store.put(_key(name), str(offset).encode())

    def forget(self, name: str) -> None:
        if name in self._offsets:
            self._link.call(self._remove, name)
            del self._offsets[name]

    async def _remove(self, name: str) -> None:
        self._link.check_connected()
        await self._store.purge(_key(name))


def _key(name: str) -> str:
    """Names of agents have characters that no key may have."""
    return name.encode().hex()
