"""How much of what Chroma holds do its searches not show, after a table is emptied and filled again and again?

    .venv/bin/python scripts/proof/lost_sight.py --dimensions 16 --rows 300 --rounds 20

Writes to a Chroma server of its own as the daemon does, without what mends it (``storekeeper.reach``). Chroma draws
the levels of its graph at random, so no two runs lose the same.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from cdc_agent.vectorstore.base import Record
from cdc_agent.vectorstore.chroma import ChromaStore
from cdc_agent.vectorstore.chroma_server import ChromaServer
from cdc_agent.vectorstore.finding import unfound
from cdc_agent.vectorstore.records import pages


def main() -> None:
    args = _arguments()
    rng, worst, losing = np.random.default_rng(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        server = ChromaServer(Path(folder) / "chroma")
        server.start()
        store = _opened(server, args.dimensions)
        live: dict[str, np.ndarray] = {}
        for number in range(args.rounds):
            for page in pages(list(live), 200):
                store.delete("docs", page)
            vectors = rng.standard_normal((args.rows, args.dimensions)).astype(np.float32)
            live = {f"{number}-{row}": vector for row, vector in enumerate(vectors)}
            for page in pages([Record(id=i, text=i, metadata={}, embedding=v) for i, v in live.items()], 64):
                store.upsert("docs", page)
            lost = len(unfound(store, "docs", live))
            worst, losing = max(worst, lost), losing + bool(lost)
            print(f"reload {number + 1}: {lost} of {args.rows} rows are found by no search", flush=True)
            if lost == worst > 0:
                store.close()
                server.stop()
                server.start()
                store = _opened(server, args.dimensions)
                print(f"  after a restart of Chroma: {len(unfound(store, 'docs', live))}", flush=True)
        print(f"{losing} of {args.rounds} reloads lost something, the worst {worst} rows")
        store.close()
        server.stop()


def _opened(server: ChromaServer, dimensions: int) -> ChromaStore:
    store = ChromaStore.http(server.host, server.port, timeout_s=30)
    store.open_collection("docs", dimensions=dimensions, marker={"ledger": "x"})
    return store


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("dimensions", 16), ("rows", 300), ("rounds", 20), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


if __name__ == "__main__":
    main()
