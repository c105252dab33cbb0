#!/usr/bin/env python3
"""The backfilling script: reads tables again and mends what differs, whether or not the daemon runs.

    scripts/resync.py -c cdc-agent.yaml                                     everything
    scripts/resync.py -c cdc-agent.yaml --table public.docs --where "updated_at > now() - interval '1 day'"
    scripts/resync.py -c cdc-agent.yaml --table public.docs --keys keys.txt

With the daemon running it asks the daemon, shows progress and waits. Without, it runs the same machinery here until
everything is read and in the index, and stops. The same as ``cdc-agent resync --wait --offline``, whose options it
takes (docs/CLI.md).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_VENV = Path(__file__).resolve().parents[1] / ".venv"

if __name__ == "__main__":
    if Path(sys.prefix) != _VENV and (_VENV / "bin" / "python").exists():
        os.execv(_VENV / "bin" / "python", [str(_VENV / "bin" / "python"), __file__, *sys.argv[1:]])
    from cdc_agent.cli import main

    raise SystemExit(main(["resync", "--wait", "--offline", *sys.argv[1:]]))
