"""Runs the daemon in the foreground: start, watch, reload, stop in order."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

from cdc_agent import __version__, failpoints, metrics
from cdc_agent import config as configuration
from cdc_agent.config import Config
from cdc_agent.config.secret_files import loose_files
from cdc_agent.daemon import logs
from cdc_agent.daemon.build import build
from cdc_agent.daemon.errand import Errand
from cdc_agent.daemon.live import LiveFacts
from cdc_agent.daemon.lock import hold_state, try_state
from cdc_agent.daemon.notify import be_patient, notify, notify_ready, watchdog_s
from cdc_agent.daemon.parts import Daemon
from cdc_agent.daemon.service import DaemonService
from cdc_agent.daemon.state_files import condemn
from cdc_agent.daemon.threads import Threads
from cdc_agent.errors import CdcAgentError, DaemonUnavailable, IdentityMismatch, LedgerUnavailable, SourceUnavailable
from cdc_agent.identity import StartOver
from cdc_agent.web.app import create_app
from cdc_agent.web.server import HttpServer
from cdc_agent.web.tokens import Tokens

__all__ = ["calm_garbage_collector", "run"]

log = logging.getLogger(__name__)

#: How long work in hand may take after SIGTERM before it is abandoned (which is safe, only repeated later).
_DRAIN_S = 15.0
_TICK_S = 0.5


def run(config_path: Path, *, adopt_server: bool = False, errand: Errand | None = None) -> int:
    """Run until SIGTERM or SIGINT, or until an ``errand`` is done; returns the exit code.

    Raises ``CdcAgentError`` when it cannot start.
    """
    failpoints.arm(os.environ.get("CDC_FAILPOINT"))
    config = configuration.load(config_path)
    logs.configure(config.log)
    for file in loose_files(config):
        log.warning("secret file can be read by others key=%s path=%s who=%s", file.key, file.path, file.who)
    signals = _Signals()
    lock = hold_state(config.state_dir, signals.stop) if errand is None else _free_state(config)
    if lock is None:
        return 0
    with lock:
        while not _lived(config, config_path, signals, adopt_server=adopt_server, errand=errand):
            # As a restart would. What is recorded now says all; nobody adopts a server twice.
            config = configuration.load(config_path)
            adopt_server = False
            signals.renew()
    return 0


def _free_state(config: Config) -> IO[str]:
    """The state folder, which nobody else may hold: an errand is not worth waiting for."""
    lock = try_state(config.state_dir)
    if lock is None:
        raise DaemonUnavailable(
            f"another cdc-agent holds state_dir {config.state_dir}, but no daemon answers", hint="look at its log"
        )
    return lock


def _lived(config: Config, config_path: Path, signals: _Signals, *, adopt_server: bool, errand: Errand | None) -> bool:
    """Run a daemon to its end. False when it has to begin anew on the same state (see ``identity.guard``)."""
    log.info("starting version=%s config=%s state_dir=%s", __version__, config_path, config.state_dir)
    be_patient()
    daemon = build(config, signals.stop, adopt_server=adopt_server, reload=lambda: configuration.load(config_path))
    calm_garbage_collector()
    running = _Running(daemon, config_path, signals, errand)
    try:
        running.until_stopped()
    except (StartOver, IdentityMismatch) as exc:
        if running.abandoned and not isinstance(exc, IdentityMismatch):
            # A thread that is still at work must not meet the state that is made anew.
            raise SourceUnavailable(f"{exc}: to be mended at the next start", hint="start again") from exc
        if isinstance(exc, IdentityMismatch) and (running.abandoned or not condemn(config, exc)):
            raise
        if not signals.told:
            log.warning("starting over state=%s", exc)
            return False
    return True


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
        self.told = False
        self.reload = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)

    def renew(self) -> None:
        """A new event for a new daemon: the old one ended because of itself."""
        self.stop = threading.Event()
        # A signal that comes in between is not lost either.
        if self.told:
            self.stop.set()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (the signature is Python's)
        self.told = True
        self.stop.set()

    def _on_reload(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.reload.set()


class _Running:
    """The daemon from its first thread to its last."""

    def __init__(self, daemon: Daemon, config_path: Path, signals: _Signals, errand: Errand | None) -> None:
        self._daemon = daemon
        self._errand = errand
        self._config_path = config_path
        self._config = daemon.config
        self._signals = signals
        self._threads = Threads(daemon.stop)
        #: Whether threads were left at work at the end.
        self.abandoned = False
        self._service = DaemonService(daemon)
        self._tokens = Tokens.load(self._config.http.tokens_file)
        app = create_app(self._service, tokens=self._tokens, live=LiveFacts(daemon, self._service))
        self._http = HttpServer(app, host=self._config.http.host, port=self._config.http.port)

    def until_stopped(self) -> None:
        try:
            self._http.start()
            self._start()
            notify_ready()
            while not self._daemon.stop.wait(_TICK_S):
                self._tick()
        finally:
            failed = self._end()
        if failed is not None:
            raise failed

    def _start(self) -> None:
        daemon = self._daemon
        self._threads.start("replication", daemon.capture.run_reader)
        self._threads.start("capture", daemon.capture.run_writer)
        daemon.indexer.start(self._threads)
        self._threads.start("resync", daemon.resync.run)
        self._threads.start("store", daemon.store_watch.run)
        self._threads.start("reach", daemon.reach.run)
        self._threads.start("tables", daemon.shapes.run)
        self._threads.start("verify", daemon.verify.run)
        daemon.copies.run(self._threads)
        if daemon.agency is not None:
            daemon.agency.start(self._threads)
        daemon.feeds.start(self._threads)
        daemon.listeners.start(self._threads)
        if daemon.sagas is not None:
            daemon.sagas.start(self._threads)

    def _tick(self) -> None:
        if self._daemon.chroma is not None and not self._daemon.chroma.watch():
            words = "Chroma's server died, or could not write any more"
            self._daemon.health.report("chroma_server", words, hint="it is being started again")
            # Who was killed while writing may have left something that cannot be read.
            self._daemon.store_watch.soon()
        else:
            self._daemon.health.clear("chroma_server")
        watermark = self._daemon.indexer.watermark
        metrics.APPLIED_LSN.set(watermark.applied_lsn)
        # While the ledger's server is away, the loops that wait for it say so.
        with suppress(LedgerUnavailable):
            metrics.DEAD_LETTERS.set(sum(self._daemon.ledger.dead_letter_counts().values()))
            self._daemon.guard.tell()
            self._daemon.migrations.tell()
        if self._daemon.agency is not None:
            self._daemon.agency.tell()
        if self._daemon.sagas is not None:
            self._daemon.sagas.tell()
        if any(problem.name == "stream" for problem in self._daemon.health.problems()):
            self._daemon.indexer.make_room()
        if self._daemon.capture.alive_within(watchdog_s()):
            notify("WATCHDOG=1")
        if self._signals.reload.is_set():
            self._signals.reload.clear()
            self._reload()
        if self._errand is not None and self._errand.done(self._service):
            self._daemon.stop.set()

    def _reload(self) -> None:
        """Read the configuration again: what can change does, the rest is named. Bad input changes nothing."""
        notify("RELOADING=1")
        try:
            fresh = configuration.load(self._config_path)
            self._tokens.renew(self._config.http.tokens_file)
        except CdcAgentError as exc:
            log.error("reload refused, going on as before error=%s", exc.message)
        else:
            failpoints.hit("hup_swap")
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
        daemon.indexer.stop()
        daemon.feed.alarm.ring()
        daemon.stream.wake()
        if daemon.agency is not None:
            daemon.agency.wake()
        if daemon.sagas is not None:
            daemon.sagas.wake()
        daemon.resync.notify()
        daemon.verify.wake()
        daemon.feeds.wake()
        failpoints.hit("drain")
        began = time.monotonic()
        busy = self._threads.join(_DRAIN_S)
        self.abandoned = bool(busy)
        if busy:
            log.warning("abandoning work in hand threads=%s", ",".join(busy))
        self._http.stop()
        self._service.close()
        if daemon.agency is not None:
            daemon.agency.close()
        if daemon.sagas is not None:
            daemon.sagas.close()
        daemon.traces.close()
        if daemon.chroma is not None:
            daemon.chroma.stop()
        if not busy:
            readers = (daemon.row_reader, daemon.rereader, daemon.catalog)
            journal = (daemon.mail.journal,) if daemon.mail else ()
            ends = (daemon.stream, daemon.ledger, *readers, daemon.store, daemon.embedders, daemon.feeds, *journal)
            for end in ends:
                end.close()
        log.info("stopped drain_s=%.1f", time.monotonic() - began)
        return self._threads.failure


def _needs_restart(before: Config, after: Config) -> list[str]:
    return [
        name for name in type(before).model_fields if name != "log" and getattr(before, name) != getattr(after, name)
    ]
