"""The daemon: wires everything (``build``), runs it (``run``), answers for it (``service``)."""

from cdc_agent.daemon.build import build
from cdc_agent.daemon.parts import Daemon
from cdc_agent.daemon.run import run

__all__ = ["Daemon", "build", "run"]
