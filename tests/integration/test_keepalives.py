"""The replication connection itself: how much it talks, and what making a slot waits for."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from cdc_agent.errors import SourceUnavailable
from cdc_agent.source import slot
from cdc_agent.source.pgoutput import PgOutputDecoder
from cdc_agent.source.replication import ReplicationFeed, plugin_options
from tests.support.postgres import Database

#: How long we talk, and how often. Each of our words asks for one; a server says something by itself, too, now and
#: then, and more where others write to its log. One that a stale position makes answer once more says twice as much.
SECONDS = 6.0
STATUS_INTERVAL_S = 0.25
MOST_A_WORD = 1.5


@pytest.mark.fault("keepalive-ping-pong")
def test_a_connection_with_nothing_to_acknowledge_is_answered_once_a_word(pg: Database) -> None:
    # Given a connection that streams, and has seen positions that it cannot acknowledge yet.
    pg.execute("create table items (id int primary key)")
    pg.execute(f"create publication {pg.slot_name} for table items")
    start = slot.create_slot(pg.dsn, slot_name=pg.slot_name, plugin="pgoutput")
    options = plugin_options("pgoutput", publication_name=pg.slot_name, schemas=frozenset({"public"}))
    feed = ReplicationFeed(
        pg.dsn,
        slot_name=pg.slot_name,
        decoder=PgOutputDecoder(lambda _: None),
        options=options,
        status_interval_s=STATUS_INTERVAL_S,
    )
    with closing(feed):
        feed.open()
        feed.start(start, acknowledged=start)
        pg.execute("insert into items select generate_series(1, 100)")

        # When it is left alone for a while.
        began = time.monotonic()
        while (passed_s := time.monotonic() - began) < SECONDS:
            feed.poll(STATUS_INTERVAL_S)

    # Then the server has answered each of our words at most once.
    assert 0 < feed.keepalives <= MOST_A_WORD * passed_s / STATUS_INTERVAL_S


@pytest.mark.fault("slot-creation-waits")
def test_making_a_slot_names_whom_it_waits_for_and_leaves_nothing_half_made(pg: Database) -> None:
    # Given a transaction that has written and does not end.
    pg.execute("create table items (id int primary key)")
    writer = pg.connect(autocommit=False)
    writer.execute("insert into items values (1)")

    # When a slot is to be made.
    with pytest.raises(SourceUnavailable, match=str(writer.info.backend_pid)) as refused:
        slot.create_slot(pg.dsn, slot_name=pg.slot_name, plugin="pgoutput", lock_timeout_s=0.3)

    # Then it says who is in the way and what to do, and there is no slot.
    assert "terminate those sessions" in refused.value.hint
    assert slot.describe(pg.dsn, pg.slot_name) is None
    writer.rollback()
    assert slot.create_slot(pg.dsn, slot_name=pg.slot_name, plugin="pgoutput") > 0
