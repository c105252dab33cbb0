"""Runs the daemon in the foreground: start, watch, reload, stop in order."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from cdc_agent import config as configuration
from cdc_agent import failpoints, metrics
from cdc_agent.config import Config
from cdc_agent.daemon import logs
from cdc_agent.daemon.build import Daemon, build
from cdc_agent.daemon.notify import notify
from cdc_agent.daemon.service import DaemonService
from cdc_agent.daemon.threads import Threads
from cdc_agent.errors import CdcAgentError
from cdc_agent.web.access import Tokens
from cdc_agent.web.app import create_app
from cdc_agent.web.server import HttpServer

__all__ = ["calm_garbage_collector", "run"]

log = logging.getLogger(__name__)

#: How long work in hand may take after SIGTERM before it is abandoned (which is safe, only repeated later).
_DRAIN_S = 15.0
_TICK_S = 0.5


def run(config_path: Path) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Raises ``CdcAgentError`` when it cannot start."""
    failpoints.arm(os.environ.get("CDC_FAILPOINT"))
    config = configuration.load(config_path)
    logs.configure(config.log)
    signals = _Signals()
    daemon = build(config, signals.stop)
    calm_garbage_collector()
    return _Running(daemon, config_path, signals).until_stopped()


def calm_garbage_collector() -> None:
    """What is loaded by now stays; decoding makes millions of short-lived tuples, none of them in cycles.

    A tenth to a quarter of decoding was the collector looking at them (measured).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


class _Signals:
    """SIGTERM and SIGINT stop, SIGHUP reloads."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.reload = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (the signature is Python's)
        self.stop.set()

    def _on_reload(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.reload.set()


class _Running:
    """The daemon from its first thread to its last."""

    def __init__(self, daemon: Daemon, config_path: Path, signals: _Signals) -> None:
        self._daemon = daemon
        self._config_path = config_path
        self._config = daemon.config
        self._signals = signals
        self._threads = Threads(daemon.stop)
        app = create_app(DaemonService(daemon), tokens=Tokens.load(self._config.http.tokens_file))
        self._http = HttpServer(app, host=self._config.http.host, port=self._config.http.port)

    def until_stopped(self) -> int:
        try:
            self._http.start()
            self._start()
            notify("READY=1")
            while not self._daemon.stop.wait(_TICK_S):
                self._tick()
        finally:
            failed = self._end()
        if failed is not None:
            raise failed
        return 0

    def _start(self) -> None:
        daemon = self._daemon
        self._threads.start("replication", daemon.capture.run_reader)
        self._threads.start("capture", daemon.capture.run_writer)
        self._threads.start("planner", daemon.indexer.run_planner)
        self._threads.start("writer", daemon.indexer.run_writer)
        self._threads.start("resync", daemon.resync.run)

    def _tick(self) -> None:
        if self._daemon.chroma is not None and not self._daemon.chroma.watch():
            self._daemon.health.report("chroma_server", "Chroma's server died", hint="it is being started again")
        else:
            self._daemon.health.clear("chroma_server")
        watermark = self._daemon.indexer.watermark
        metrics.APPLIED_LSN.set(watermark.applied_lsn)
        metrics.DEAD_LETTERS.set(len(self._daemon.ledger.dead_letters()))
        if self._daemon.capture.alive_within(60.0):
            notify("WATCHDOG=1")
        if self._signals.reload.is_set():
            self._signals.reload.clear()
            self._reload()

    def _reload(self) -> None:
        """Read the configuration again: what can change does, the rest is named. Bad input changes nothing."""
        notify("RELOADING=1")
        try:
            fresh = configuration.load(self._config_path)
        except CdcAgentError as exc:
            log.error("reload refused, going on as before error=%s", exc.message)
        else:
            logs.configure(fresh.log)
            left = _needs_restart(self._config, fresh)
            if left:
                log.warning("reload: a restart is needed for keys=%s", ",".join(left))
            log.info("reloaded log_level=%s", fresh.log.level)
        notify("READY=1")

    def _end(self) -> BaseException | None:
        """Stop in order: reading, writing, answering, the store's server; then close the files."""
        notify("STOPPING=1")
        daemon = self._daemon
        daemon.stop.set()
        daemon.feed.alarm.ring()
        daemon.stream.wake()
        daemon.resync.notify()
        failpoints.hit("drain")
        began = time.monotonic()
        busy = self._threads.join(_DRAIN_S)
        if busy:
            log.warning("abandoning work in hand threads=%s", ",".join(busy))
        self._http.stop()
        if daemon.chroma is not None:
            daemon.chroma.stop()
        if not busy:
            for end in (daemon.stream, daemon.ledger, daemon.row_reader, daemon.catalog, daemon.store, daemon.embedder):
                end.close()
        log.info("stopped drain_s=%.1f", time.monotonic() - began)
        return self._threads.failure


def _needs_restart(before: Config, after: Config) -> list[str]:
    return [
        name for name in type(before).model_fields if name != "log" and getattr(before, name) != getattr(after, name)
    ]
