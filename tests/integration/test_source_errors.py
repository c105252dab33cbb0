"""What the server's errors mean depends on who asked: only the stream's own refusals make us look at the slot."""

from __future__ import annotations

import time

import psycopg
import pytest

from cdc_agent.errors import IdentityMismatch, SourceError, SourceUnavailable
from cdc_agent.lsn import Lsn
from cdc_agent.source import catalog, slot
from cdc_agent.source.connection import classify
from cdc_agent.source.pgoutput import PgOutputDecoder
from cdc_agent.source.replication import ReplicationFeed, plugin_options
from tests.support.postgres import Database
from tests.support.tcp_proxy import TcpProxy


@pytest.mark.parametrize(
    ("statement", "sqlstate"), [("select 'x'::no_such_type", "42704"), ("select lastval()", "55000")]
)
def test_a_mistake_in_an_ordinary_statement_says_nothing_of_the_slot(
    pg: Database, statement: str, sqlstate: str
) -> None:
    with pytest.raises(psycopg.Error) as failed:
        pg.execute(statement)

    error = classify(failed.value)

    assert failed.value.sqlstate == sqlstate
    assert type(error) is SourceError
    assert not isinstance(error, IdentityMismatch)


def test_a_server_that_refuses_to_stream_is_asked_again_and_then_believed(pg: Database) -> None:
    # Given a connection that streams from a slot which does not exist
    options = plugin_options("pgoutput", publication_name="p", schemas=frozenset({"public"}))
    feed = ReplicationFeed(pg.dsn, slot_name=pg.slot_name, decoder=PgOutputDecoder(lambda _: None), options=options)
    refused = []
    for _ in range(3):
        refused.append(feed.open().refused)
        with pytest.raises(SourceUnavailable, match="refuses to stream"):
            feed.start(Lsn(8), acknowledged=Lsn(8))

    # Then each refusal may be tried again, and the second one running is told to who checks
    assert refused == ["", "", "42704"]

    # When it is asked from elsewhere, then that is forgotten
    with pytest.raises(SourceUnavailable):
        feed.start(Lsn(16), acknowledged=Lsn(16))
    assert feed.open().refused == ""
    feed.close()


def test_a_slot_of_another_database_or_of_another_kind_is_told_apart(pg: Database) -> None:
    pg.execute("select pg_create_physical_replication_slot(%s)", (pg.slot_name,))
    physical = slot.describe(pg.dsn, pg.slot_name)
    pg.execute("select pg_drop_replication_slot(%s)", (pg.slot_name,))
    slot.create_slot(pg.dsn, slot_name=pg.slot_name, plugin="pgoutput")
    ours, elsewhere = slot.describe(pg.dsn, pg.slot_name), slot.describe(pg.server.dsn(), pg.slot_name)

    assert physical is not None
    assert physical.plugin is None
    assert ours is not None
    assert (ours.ours, ours.plugin, ours.invalidation) == (True, "pgoutput", None)
    assert elsewhere is not None
    assert not elsewhere.ours


def test_a_publication_is_known_by_its_oid(pg: Database) -> None:
    assert slot.publication_oid(pg.dsn, "p") == 0

    pg.execute("create publication p")
    first = slot.publication_oid(pg.dsn, "p")
    pg.execute("drop publication p")
    pg.execute("create publication p")

    assert 0 < first != slot.publication_oid(pg.dsn, "p") > 0


@pytest.mark.fault("black-hole")
def test_a_question_to_the_catalog_is_given_up_where_the_network_swallows_the_answer(
    pg: Database, pg_proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a catalog that has been asked before, over a network that takes everything and passes nothing on
    monkeypatch.setattr(catalog, "ANSWER_TIMEOUT_S", 0.5)
    pg.execute("create table items (id int primary key)")
    asked = catalog.Catalog(pg_proxy.dsn(pg.name), connect_timeout_s=2.0)
    oid = asked.watch([("public", "items")])[0].oid
    pg_proxy.blackhole()

    # When the reader of the log needs to know a table
    began = time.monotonic()
    with pytest.raises(SourceUnavailable):
        asked.by_oid(oid, refresh=True)

    # Then it has an answer to that soon, and the right one once the network is back
    assert time.monotonic() - began < 10
    pg_proxy.let_through()
    found = asked.by_oid(oid, refresh=True)
    assert found is not None
    assert found.name == "items"
    asked.close()
