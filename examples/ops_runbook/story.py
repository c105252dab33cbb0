"""What ``examples/run ops_runbook`` shows."""

from __future__ import annotations

import os
import time

from examples.stage.stage import Stage, settings_of


def play(stage: Stage) -> None:
    folder = stage.sandbox / "var" / "cache"
    folder.mkdir(parents=True)
    for name, age_s in (("build-1.tmp", 7200), ("build-2.tmp", 7200), ("in-use.tmp", 0), ("report.pdf", 7200)):
        (folder / name).write_text("…")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    secret = settings_of("ops_runbook")["webhooks"]["monitoring"]["secret"]
    print(f"\n> In {folder} lie {', '.join(sorted(path.name for path in folder.iterdir()))}", flush=True)
    usage = {"folder": "var/cache", "percent": 96}
    stage.webhook("Monitoring says that a disk fills up", "monitoring", "disk.usage", usage, secret)
    stage.wait_for("incident_told")
    print(f"\n> What is left: {', '.join(sorted(path.name for path in folder.iterdir()))}", flush=True)
