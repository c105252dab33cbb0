"""What a change costs: the model embeds words that are new, and nothing else. Counted by the daemon's own metric."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

import psycopg
import pytest

from tests.support.daemon import DaemonProcess
from tests.support.fake_openai import FakeOpenAI
from tests.support.oracle import assert_index_equals_table, texts_of
from tests.support.postgres import Database
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import until

NOTES = {
    "name": "notes",
    "table": "public.notes",
    "text": "{title}\n\n{body}",
    "metadata": ["lang", "n"],
    "chunking": {"max_tokens": 60},
}
#: More than Postgres keeps in the row itself, whatever it compresses to.
LONG = 12_000
PARAGRAPHS = 100
#: Versions out of five hundred that may be embedded.
HANDFUL = 25


def paragraph(seed: object, words: int | None = None) -> str:
    """Fifteen to forty words; the same seed gives the same ones."""
    chosen = random.Random(repr(seed))
    return " ".join(f"w{chosen.randrange(10**9)}" for _ in range(words or chosen.randint(15, 40)))


def create_notes(pg: Database) -> None:
    pg.execute("create table notes (id int primary key, title text, body text, lang text, n int)")
    pg.execute("alter table notes alter column body set storage external")


def write(pg: Database, number: int, body: str, title: str = "a title") -> None:
    pg.execute(
        "insert into notes values (%s, %s, %s, 'en', 0)"
        " on conflict (id) do update set title = excluded.title, body = excluded.body",
        (number, title, body),
    )


def embedded(daemon: DaemonProcess) -> int:
    """Texts that the model has embedded since the daemon started."""
    return int(daemon.metric("cdc_agent_chunks_embedded_total"))


def embedded_by(daemon: DaemonProcess, pg: Database, change: Callable[[], object]) -> int:
    """How many texts a change made the model embed, by the time that the index is true again."""
    before = embedded(daemon)
    change()
    assert_index_equals_table(daemon, pg)
    return embedded(daemon) - before


@pytest.fixture
def daemon(pg: Database, new_daemon: Callable[..., DaemonProcess]) -> DaemonProcess:
    """A daemon over an empty table of notes."""
    create_notes(pg)
    daemon = new_daemon(pg, collections=[NOTES])
    daemon.start()
    return daemon


@pytest.mark.fault("unchanged-toast")
def test_new_metadata_and_touches_embed_nothing_also_where_the_text_is_toasted(
    pg: Database, daemon: DaemonProcess
) -> None:
    # Given a short text, and one that Postgres keeps outside of the row.
    write(pg, 1, "a short body")
    write(pg, 2, paragraph("long", LONG // 10))
    assert_index_equals_table(daemon, pg)
    assert embedded(daemon) > 2
    assert pg.execute("select pg_relation_size(reltoastrelid) > 0 from pg_class where relname = 'notes'") == [(True,)]

    # When metadata changes, and columns are overwritten with what they hold.
    def metadata() -> None:
        pg.execute("update notes set lang = 'de', n = n + 1")

    def touch() -> None:
        pg.execute("update notes set body = body")
        pg.execute("update notes set title = title, n = n")

    # Then nothing is embedded, nor is any row read again to find that out.
    assert embedded_by(daemon, pg, metadata) == 0
    assert embedded_by(daemon, pg, touch) == 0
    assert embedded_by(daemon, pg, metadata) == 0
    assert daemon.metric("cdc_agent_reread_rows_total") == 0

    # When the title beside the toasted body changes, the row is read again and little is embedded.
    assert embedded_by(daemon, pg, lambda: pg.execute("update notes set title = 'another title'")) <= 3
    assert daemon.metric("cdc_agent_reread_rows_total") == 1


@pytest.mark.fault("killed-around-an-acknowledgement")
def test_a_transaction_that_was_never_acknowledged_embeds_nothing_after_a_kill(
    pg: Database, daemon: DaemonProcess
) -> None:
    # Given a daemon that takes a transaction into its stream and index, and never gets to acknowledge it.
    write(pg, 1, paragraph("old"))
    assert_index_equals_table(daemon, pg)
    daemon.terminate()
    write(pg, 1, paragraph("new"))
    committed = pg.execute("select pg_current_wal_lsn()::text")[0][0]
    write(pg, 2, paragraph("other"))
    daemon.start(failpoint="after_append:hang", ready=False)
    until(lambda: daemon.problems() is not None, 60.0, "the daemon to answer")
    daemon.wait_applied(committed)
    assert embedded(daemon) >= 1

    # When it is killed and started again.
    daemon.kill()
    acknowledged = "select confirmed_flush_lsn < %s::pg_lsn from pg_replication_slots where slot_name = %s"
    assert pg.execute(acknowledged, (committed, pg.slot_name)) == [(True,)]
    daemon.start()

    # Then the index is true and the transaction cost nothing again.
    assert_index_equals_table(daemon, pg)
    assert embedded(daemon) == 0


@pytest.mark.fault("server-crashes")
def test_a_slot_that_a_crash_of_postgres_rewound_embeds_nothing(
    private_pg: Database, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given changes that were captured, indexed and acknowledged after Postgres' last checkpoint.
    create_notes(private_pg)
    daemon = new_daemon(private_pg, collections=[NOTES])
    daemon.start()
    assert_index_equals_table(daemon, private_pg)
    private_pg.execute("checkpoint")
    for number in range(20):
        write(private_pg, number, paragraph(number))
    assert_index_equals_table(daemon, private_pg)
    end = private_pg.execute("select pg_current_wal_lsn()::text")[0][0]
    slot = "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name = %s"
    reached = [(True,)]
    until(lambda: private_pg.execute(slot, (end, private_pg.slot_name)) == reached, 40.0, "the slot to get there")
    before = embedded(daemon)

    # When Postgres crashes, which takes the slot back (seen while the daemon is held: it would acknowledge at once).
    daemon.signal(signal.SIGSTOP)
    private_pg.server.kill_immediate()
    private_pg.server.start()
    assert private_pg.execute(slot, (end, private_pg.slot_name)) == [(False,)]
    daemon.signal(signal.SIGCONT)
    until(lambda: daemon.metric("cdc_agent_reconnects_total") > 0, what="the daemon to connect again")

    # Then the daemon is back by itself, and what comes again costs nothing.
    daemon.wait_ready()
    assert_index_equals_table(daemon, private_pg)
    assert embedded(daemon) == before
    write(private_pg, 5, paragraph("after the crash"))
    assert_index_equals_table(daemon, private_pg)
    assert embedded(daemon) - before <= 2


def rewrite_often(pg: Database) -> None:
    """Five hundred versions of row 1 in about five seconds."""
    with pg.connect() as connection:
        for version in range(500):
            connection.execute("update notes set body = %s where id = 1", (paragraph(version),))
            connection.execute("select pg_sleep(0.009)")


@pytest.mark.fault("many-small-transactions")
def test_five_hundred_versions_of_a_row_in_five_seconds_embed_a_handful(pg: Database, daemon: DaemonProcess) -> None:
    # Given one row, and nobody who waits for a commit (that would end every pause).
    write(pg, 1, paragraph("first"))
    assert_index_equals_table(daemon, pg)
    alone = time.monotonic() + 2
    until(lambda: time.monotonic() >= alone, what="our own wait to be forgotten")

    # When it is rewritten five hundred times, about every ten milliseconds.
    spent = embedded_by(daemon, pg, lambda: rewrite_often(pg))

    # Then most versions were never embedded.
    assert spent <= HANDFUL


@pytest.mark.fault("many-small-transactions")
def test_a_slow_model_never_reads_versions_that_are_outdated_already(
    pg: Database, fake_openai: FakeOpenAI, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given one row, and a model that takes about half a second for an answer.
    create_notes(pg)
    with TcpProxy(int(fake_openai.base_url.split(":")[2].split("/")[0])) as model:
        embedding = {"backend": "openai", "url": f"http://127.0.0.1:{model.port}/v1", "model": "fake"}
        daemon = new_daemon(pg, collections=[NOTES], embedding=embedding)
        daemon.start()
        write(pg, 1, "a body")
        assert_index_equals_table(daemon, pg)
        model.latency(0.25)

        # When the row is rewritten five hundred times, about every ten milliseconds.
        before = len(fake_openai.requests)
        rewrite_often(pg)
        assert_index_equals_table(daemon, pg)

        # Then the model was asked a few times, and not for every version.
        assert len(fake_openai.requests) - before <= HANDFUL


def test_one_edited_paragraph_of_a_hundred_embeds_at_most_three_chunks_wherever_it_stands(
    pg: Database, daemon: DaemonProcess
) -> None:
    # Given a document of a hundred paragraphs.
    paragraphs = [paragraph(i) for i in range(PARAGRAPHS)]
    write(pg, 1, "\n\n".join(paragraphs))
    assert_index_equals_table(daemon, pg)
    assert len(texts_of(daemon.config, "notes")) > 30

    # When one paragraph changes: other words at its beginning, in its middle, all of it; at several places.
    for place in (0, 1, 13, 37, 50, 77, 98, 99):
        for edit, words in enumerate(
            (
                ["changed", *paragraphs[place].split()[1:]],
                [*paragraphs[place].split()[:-1], "changed"],
                paragraph((place, "rewritten")).split(),
            )
        ):
            paragraphs[place] = " ".join(words)
            spent = embedded_by(daemon, pg, lambda: write(pg, 1, "\n\n".join(paragraphs)))

            # Then at most three chunks are embedded.
            assert 1 <= spent <= 3, f"edit {edit} of paragraph {place} embedded {spent} chunks"


@pytest.mark.parametrize("place", [0, 50, PARAGRAPHS])
def test_a_paragraph_that_comes_or_goes_embeds_at_most_three_chunks(
    pg: Database, daemon: DaemonProcess, place: int
) -> None:
    # Given a document of a hundred paragraphs.
    paragraphs = [paragraph(i) for i in range(PARAGRAPHS)]
    write(pg, 1, "\n\n".join(paragraphs))
    assert_index_equals_table(daemon, pg)

    # When a paragraph is inserted, and then another one beside it is deleted.
    longer = [*paragraphs[:place], paragraph("inserted"), *paragraphs[place:]]
    shorter = [*longer[: max(0, place - 1)], *longer[max(0, place - 1) + 1 :]]

    # Then either embeds at most three chunks, though every chunk behind it has moved.
    assert 1 <= embedded_by(daemon, pg, lambda: write(pg, 1, "\n\n".join(longer))) <= 3
    assert embedded_by(daemon, pg, lambda: write(pg, 1, "\n\n".join(shorter))) <= 3


def test_texts_that_were_seen_before_embed_nothing(pg: Database, daemon: DaemonProcess) -> None:
    # Given two documents, of which one is rewritten.
    before, after = paragraph("before", 100), paragraph("after", 100)
    write(pg, 1, before)
    write(pg, 2, paragraph("second"))
    assert_index_equals_table(daemon, pg)
    assert embedded_by(daemon, pg, lambda: write(pg, 1, after)) > 0

    # Then going back to the old words embeds nothing, and neither does a new key, a row that is replaced in one
    # transaction, or a restart.
    assert embedded_by(daemon, pg, lambda: write(pg, 1, before)) == 0
    assert embedded_by(daemon, pg, lambda: pg.execute("update notes set id = id + 1000")) == 0

    def replace() -> None:
        with psycopg.connect(pg.dsn) as connection:
            connection.execute("delete from notes where id = 1001")
            connection.execute("insert into notes values (1001, 'a title', %s, 'en', 0)", (before,))

    assert embedded_by(daemon, pg, replace) == 0
    assert daemon.terminate() == 0
    daemon.start()
    assert_index_equals_table(daemon, pg)
    assert embedded(daemon) == 0


@pytest.mark.fault("key-changes", "unchanged-toast")
def test_a_new_key_of_a_toasted_row_embeds_nothing(pg: Database, daemon: DaemonProcess) -> None:
    # Given a row whose text lies outside of it.
    write(pg, 1, paragraph("long", LONG // 10))
    assert_index_equals_table(daemon, pg)

    # When only its key changes, which the log tells without the text.
    spent = embedded_by(daemon, pg, lambda: pg.execute("update notes set id = 2"))

    # Then its vectors move along.
    assert spent == 0


def test_the_same_text_in_many_rows_is_embedded_once(pg: Database, daemon: DaemonProcess) -> None:
    # Given rows that all say the same, written at once and one by one.
    def at_once() -> None:
        pg.execute("insert into notes select i, 'same', 'words', 'en', i from generate_series(1, 200) i")

    def one_by_one() -> None:
        for number in range(300, 320):
            write(pg, number, "words", "same")

    # Then the model reads them once.
    assert embedded_by(daemon, pg, at_once) == 1
    assert embedded_by(daemon, pg, one_by_one) == 0
