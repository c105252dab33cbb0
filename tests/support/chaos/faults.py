"""What is done to the parts. A *death* ends a life of the daemon, a *disturbance* is something it must live through."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import psycopg

from cdc_agent.failpoints import NAMES
from tests.support import fake_openai
from tests.support.chaos.stage import Stage

__all__ = ["DEATHS", "DISTURBANCES", "Fault", "failpoint_of", "unusable"]

#: Places that a run of ours passes. Mending, migrating and parking do not happen here.
_PLACES = tuple(
    n
    for n in NAMES
    if not n.startswith(("mending_", "migrate_", "agents_", "saga_")) and n not in ("dead_letter", "drain")
)
#: The second daemon, when it may not stream, says so and ends.
_REFUSED = (75, 78)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """``act`` begins it and ends it again. ``stores`` are the modes that it can be done to; with ``disk`` it needs one
    of our file systems. ``indexed``: it is over only once the index, too, has caught up."""

    name: str
    act: Callable[[Stage, random.Random], None]
    stores: frozenset[str] = field(default=frozenset({"managed", "server", "embedded"}))
    disk: str = ""
    indexed: bool = False


def failpoint_of(rng: random.Random) -> str:
    return f"{rng.choice(_PLACES)}:kill@{rng.choice((1, 1, 2, 3, 5, 9))}"


def unusable(fault: Fault, stage: Stage) -> str | None:
    """Why this cannot be done here."""
    if stage.store not in fault.stores:
        return f"not with --store {stage.store}"
    return stage.disks if fault.disk and isinstance(stage.disks, str) else None


# -- deaths: called with a daemon that was just started ------------------------------------------------------


def kill(stage: Stage, rng: random.Random) -> None:
    """At any moment after it streams."""
    stage.sleep(rng.uniform(0.05, 3.0))
    _kill(stage)


def kill_starting(stage: Stage, rng: random.Random) -> None:
    """Once more, before it streams."""
    stage.sleep(rng.uniform(0.05, 1.0))
    _kill(stage)
    stage.start()
    stage.sleep(rng.uniform(0.05, 2.0))
    _kill(stage)


def failpoint(stage: Stage, rng: random.Random) -> None:
    """It was started to die by itself; what it does not pass in time does not count."""
    stage.sleep(rng.uniform(2.0, 4.0))
    if stage.daemon.returncode == -signal.SIGKILL:
        stage.record.fault("died_at_a_failpoint")
    _kill(stage)


def sigterm(stage: Stage, rng: random.Random) -> None:
    """In the middle of work, and it has to end well."""
    stage.sleep(rng.uniform(0.05, 2.0))
    stage.tick()
    began = time.monotonic()
    code = stage.daemon.terminate(30.0)
    stage.record.recovered("sigterm, ended", time.monotonic() - began)
    if code != 0:
        stage.record.violation("stuck", f"SIGTERM was answered with {code}: {stage.daemon.log[-1500:]}")


def takeover(stage: Stage, rng: random.Random) -> None:
    """A second daemon waits beside the first one, which is killed."""
    first = stage.daemon
    second = stage.new_daemon(first.settings)
    second.port = first.port
    second.start(ready=False, env=stage.new_life())
    stage.sleep(rng.uniform(0.2, 2.5))
    stage.take_over(second)
    stage.recover("takeover", indexed=False)
    stage.sleep(rng.uniform(0.05, 1.0))
    _kill(stage)


def rival(stage: Stage, rng: random.Random) -> None:
    """A second daemon with a state of its own wants the same slot."""
    second = stage.new_daemon(
        {
            **stage.daemon.settings,
            "state_dir": str(stage.folder / f"rival{rng.randrange(10**9)}"),
            "stream": {},
            "ledger": {},
            "vectorstore": {"mode": "embedded"},
            "http": {"port": 0},
        }
    )
    second.start(ready=False)
    try:
        stage.sleep(rng.uniform(1.0, 3.0))
        if second.running:
            second.kill()
        elif second.returncode not in _REFUSED:
            stage.record.violation("stuck", f"a rival ended with {second.returncode}: {second.log[-1500:]}")
    finally:
        second.close()
    _kill(stage)


def _kill(stage: Stage) -> None:
    stage.endpoint.disturb()
    if stage.daemon.running:
        stage.daemon.kill()


# -- disturbances: called with a daemon that streams ---------------------------------------------------------


def postgres_crash(stage: Stage, rng: random.Random) -> None:
    stage.pg.server.restart("immediate")


def walsender(stage: Stage, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 4)):
        stage.pg.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s",
            (stage.pg.slot_name,),
        )
        stage.sleep(rng.uniform(0.1, 0.6))


def postgres_blackhole(stage: Stage, rng: random.Random) -> None:
    stage.network.blackhole()
    stage.sleep(rng.uniform(0.5, 5.0))
    stage.network.let_through()


def postgres_cut(stage: Stage, rng: random.Random) -> None:
    """In the middle of a message."""
    for _ in range(rng.randrange(1, 4)):
        stage.network.cut_after(rng.randrange(1, 20_000))
        stage.sleep(rng.uniform(0.3, 1.0))
    stage.network.let_through()


def postgres_slow(stage: Stage, rng: random.Random) -> None:
    stage.network.latency(rng.uniform(0.02, 0.2))
    stage.sleep(rng.uniform(1.0, 2.0))
    stage.network.let_through()


def chroma_killed(stage: Stage, rng: random.Random) -> None:
    stage.late = True
    for _ in range(rng.randrange(1, 3)):
        stage.signal_chroma(signal.SIGKILL)
        stage.sleep(rng.uniform(0.1, 1.5))


def chroma_frozen(stage: Stage, rng: random.Random) -> None:
    """What it has read by then is done later."""
    stage.late = True
    stage.signal_chroma(signal.SIGSTOP)
    try:
        stage.sleep(rng.uniform(0.5, 5.0))
    finally:
        stage.signal_chroma(signal.SIGCONT)


def store_blackhole(stage: Stage, rng: random.Random) -> None:
    assert stage.store_network is not None
    stage.late = True
    stage.store_network.blackhole()
    stage.sleep(rng.uniform(0.5, 5.0))
    stage.store_network.let_through()


def store_slow(stage: Stage, rng: random.Random) -> None:
    assert stage.store_network is not None
    stage.late = True
    stage.store_network.latency(rng.uniform(0.05, 2.5))
    stage.sleep(rng.uniform(1.0, 4.0))
    stage.store_network.let_through()


def store_cut(stage: Stage, rng: random.Random) -> None:
    """The request was carried out, and its answer is lost."""
    assert stage.store_network is not None
    stage.late = True
    for _ in range(rng.randrange(1, 6)):
        stage.store_network.cut_after(rng.randrange(1, 400))
        stage.sleep(rng.uniform(0.1, 0.5))
    stage.store_network.let_through()


def model_fails(stage: Stage, rng: random.Random) -> None:
    """Any of what endpoints do, several times in a row; never so often that a text could be held to blame."""
    kinds = (
        fake_openai.rate_limited(retry_after_s=1),
        fake_openai.rate_limited(),
        fake_openai.server_error(500),
        fake_openai.server_error(503),
        fake_openai.garbage(),
        fake_openai.not_a_number(),
        fake_openai.too_few(),
        fake_openai.reversed_order(),
    )
    stage.endpoint.script(*rng.choices(kinds, k=rng.randrange(1, 6)))
    stage.sleep(rng.uniform(0.5, 2.0))


def model_hangs(stage: Stage, rng: random.Random) -> None:
    stage.endpoint.script(*[fake_openai.hang()] * rng.randrange(1, 3))
    stage.sleep(rng.uniform(0.5, 3.0))


def disk_full(which: str) -> Callable[[Stage, random.Random], None]:
    def act(stage: Stage, rng: random.Random) -> None:
        assert isinstance(stage.disks, dict)
        stage.endpoint.disturb()
        stage.late = True
        disk = stage.disks[which]
        stage.store_was_full = stage.store_was_full or which == "store"
        # What was written between asking for the size and setting it: then once more.
        with suppress(subprocess.CalledProcessError):
            disk.fill()
        try:
            stage.sleep(rng.uniform(0.5, 4.0))
        finally:
            disk.free()
        stage.endpoint.disturb()

    return act


def resync(stage: Stage, rng: random.Random) -> None:
    """Not a fault by itself: a table is read again, and whatever comes next meets it."""
    table = rng.choice(("notes", "parts", "scraps"))
    with suppress(httpx.TransportError, psycopg.Error):
        stage.daemon.post("/resyncs", {"table": f"public.{table}", "rewrite": rng.random() < 0.2})


DEATHS = {
    fault.name: fault
    for fault in (
        Fault(name="kill", act=kill),
        Fault(name="kill_starting", act=kill_starting),
        Fault(name="failpoint", act=failpoint),
        Fault(name="sigterm", act=sigterm),
        Fault(name="takeover", act=takeover),
        Fault(name="rival", act=rival),
    )
}
_SERVERS = frozenset({"managed", "server"})
_NETWORK = frozenset({"server"})
DISTURBANCES = {
    fault.name: fault
    for fault in (
        Fault(name="postgres_crash", act=postgres_crash),
        Fault(name="walsender", act=walsender),
        Fault(name="postgres_blackhole", act=postgres_blackhole),
        Fault(name="postgres_cut", act=postgres_cut),
        Fault(name="postgres_slow", act=postgres_slow),
        Fault(name="chroma_killed", act=chroma_killed, stores=_SERVERS, indexed=True),
        Fault(name="chroma_frozen", act=chroma_frozen, stores=_SERVERS, indexed=True),
        Fault(name="store_blackhole", act=store_blackhole, stores=_NETWORK, indexed=True),
        Fault(name="store_slow", act=store_slow, stores=_NETWORK, indexed=True),
        Fault(name="store_cut", act=store_cut, stores=_NETWORK, indexed=True),
        Fault(name="model_fails", act=model_fails, indexed=True),
        Fault(name="model_hangs", act=model_hangs, indexed=True),
        Fault(name="disk_full_stream", act=disk_full("stream"), disk="stream"),
        Fault(name="disk_full_ledger", act=disk_full("ledger"), disk="ledger", indexed=True),
        Fault(name="disk_full_store", act=disk_full("store"), disk="store", indexed=True),
        Fault(name="resync", act=resync),
    )
}
