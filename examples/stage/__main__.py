"""Plays an example on this machine: ``examples/run NAME``. With ``--once`` it ends with its story."""

from __future__ import annotations

import argparse
import importlib
import signal
import time
from types import FrameType

from examples.stage.stage import EXAMPLES, stage


def main() -> int:
    names = sorted(path.parent.name for path in EXAMPLES.glob("*/story.py"))
    parser = argparse.ArgumentParser(prog="examples/run", description="Plays an example, then stays up.")
    parser.add_argument("name", choices=names)
    parser.add_argument("--once", action="store_true", help="end with the story")
    parser.add_argument(
        "--embedding", default="sentence-transformers", help="hashing needs no model, and finds words alone"
    )
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    story = importlib.import_module(f"examples.{args.name}.story")
    print("Postgres, the daemon and an outside world start …", flush=True)
    try:
        prepared = getattr(story, "prepared", None)
        with stage(args.name, embedding=args.embedding, prepared=prepared) as (scenery, *props):
            story.play(scenery, *props)
            if not args.once:
                print(f"\nIt keeps running: {scenery.agent.url}/ and psql '{scenery.dsn}'.", flush=True)
                print("Ctrl-C removes everything.", flush=True)
            while not args.once and scenery.agent.is_running:
                scenery.listen()
                time.sleep(0.5)
    except KeyboardInterrupt:
        print("removed")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature is Python's)
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
