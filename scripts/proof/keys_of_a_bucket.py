"""How often nats-py says that a bucket with one key has none (nats-io/nats.py#842):
``python -m scripts.proof.keys_of_a_bucket 600`` (looks), from the root of the repository."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import nats
import nats.js.errors
from nats.js import api

from tests.support.nats import NatsServer


async def look(url: str, looks: int) -> int:
    client = await nats.connect(url)
    bucket = await client.jetstream().create_key_value(api.KeyValueConfig(bucket="places", history=1))
    await bucket.put("reader", b"1")
    await client.close()
    none = 0
    for _ in range(looks):
        client = await nats.connect(url)
        try:
            await (await client.jetstream().key_value("places")).keys()
        except nats.js.errors.NoKeysError:
            none += 1
        await client.close()
    return none


if __name__ == "__main__":
    wanted = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder)) as server:
        print(f"no keys: {asyncio.run(look(server.url, wanted))} of {wanted}")
