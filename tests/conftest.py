"""Fixtures that every test may use. What they are made of lies in ``tests/support``.

A test that takes ``pg`` runs on Postgres 15 with pgoutput. ``@pytest.mark.postgres(versions="all", plugin="all")``
makes it run on every kind of server there is, ``@pytest.mark.postgres(versions=[16, 18])`` on some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from examples.stage.world import World
from tests.support.daemon import NURSERY, DaemonProcess, merged
from tests.support.fake_openai import FakeOpenAI
from tests.support.postgres import ALL_KINDS, Database, Kind, Servers, kinds_wanted
from tests.support.tcp_proxy import TcpProxy

_servers = pytest.StashKey[Servers]()

# A machine that does other things besides is no finding.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")
# For the state machine, and for properties that do not say how many examples they want: `--hypothesis-profile=nightly`.
# Whoever looks for survivors among mutants needs no short example.
settings.register_profile("mutants", max_examples=60, phases=[Phase.generate], database=None, deadline=None)
settings.register_profile("nightly", max_examples=10_000, stateful_step_count=60, deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_servers] = Servers()


def pytest_unconfigure(config: pytest.Config) -> None:
    # Here and not in a fixture: it also runs when the session is interrupted.
    NURSERY.close()
    if _servers in config.stash:
        config.stash[_servers].close()


def pytest_report_header(config: pytest.Config) -> str:
    return f"postgres: {config.stash[_servers].describe()}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in ("pg", "private_pg"):
        if fixture in metafunc.fixturenames:
            kinds = kinds_wanted(metafunc.definition.get_closest_marker("postgres"))
            metafunc.parametrize(fixture, kinds, ids=str, indirect=True)


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Servers:
    """The session's Postgres servers, for tests that want one that is not running yet."""
    return pytestconfig.stash[_servers]


@pytest.fixture
def pg(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Database]:
    """A database of this test's own on a server that the whole session shares."""
    kind: Kind = getattr(request, "param", ALL_KINDS[0])
    database = servers.database(kind)
    yield database
    database.close()


@pytest.fixture
def private_pg(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Database]:
    """A database on a server of this test's own, which it may kill, stop and reconfigure."""
    kind: Kind = getattr(request, "param", ALL_KINDS[0])
    database = servers.private_database(kind)
    yield database
    database.disconnect()
    database.server.stop("immediate")


@pytest.fixture
def pg_proxy(pg: Database) -> Iterator[TcpProxy]:
    """A proxy in front of ``pg``'s server that can be told to break; ``pg_proxy.dsn(pg.name)`` leads through it."""
    with TcpProxy(pg.server.port) as proxy:
        yield proxy


@pytest.fixture
def fake_openai() -> Iterator[FakeOpenAI]:
    """A local server that speaks OpenAI's embeddings API and fails on request."""
    with FakeOpenAI() as server:
        yield server


@pytest.fixture
def world() -> Iterator[World]:
    """A pretended outside world, which counts effects by their idempotency keys."""
    with World() as server:
        yield server


@pytest.fixture
def new_daemon(tmp_path: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """Makes daemons that are ended with the test: ``new_daemon(pg, collections=[...], **settings)``, not started."""
    made: list[DaemonProcess] = []

    def make(
        pg: Database, *, collections: Sequence[Mapping[str, Any]], dsn: str = "", **settings: Any
    ) -> DaemonProcess:
        folder = tmp_path / f"daemon{len(made)}"
        folder.mkdir()
        source = {
            "dsn": dsn or pg.dsn,
            "slot_name": pg.slot_name,
            "publication_name": pg.slot_name,
            "plugin": pg.plugin,
        }
        over = merged({"source": source, "collections": list(collections)}, settings)
        made.append(DaemonProcess(folder, over))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()
