"""The daemon: wires everything (``build``), runs it (``run``), answers for it (``service``)."""

from cdc_agent.daemon.build import Daemon, build
from cdc_agent.daemon.run import run

__all__ = ["Daemon", "build", "run"]
