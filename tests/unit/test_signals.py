"""Signals: what somebody says by SQL is recorded, or logged and ignored; nothing else is listened to."""

from __future__ import annotations

import logging

import pytest

from cdc_agent.errors import LedgerError
from cdc_agent.events import Change, Transaction
from cdc_agent.ledger.base import Resync
from cdc_agent.lsn import Lsn
from cdc_agent.signals import SIGNAL_PREFIX, Signals

TABLES = {"docs": "public.docs", "titles": "public.docs", "notes": "public.notes"}


def heard(*contents: bytes, prefix: str = SIGNAL_PREFIX) -> list[Resync]:
    """The resyncs that one transaction with these messages asks for."""
    asked: list[Resync] = []
    changes = [Change("m", None, n, (prefix.encode(), content), None) for n, content in enumerate(contents, start=1)]
    tx = Transaction(xid=1, commit_lsn=Lsn(5), commit_ts_us=0, changes=[Change("t", None, 0, None, None), *changes])
    Signals(tables=TABLES, request=asked.append).hear(tx)
    return asked


def test_a_signal_asks_for_what_it_names() -> None:
    everything, one, keys, rows = heard(
        b'{"type": "resync"}',
        b'{"type": "resync", "collection": "titles", "rewrite": true}',
        b'{"type": "resync", "table": "public.docs", "keys": [["1"], ["2"]]}',
    )[0:1] + heard(
        b'{"type": "resync", "collection": "titles", "rewrite": true}',
        b'{"type": "resync", "table": "public.docs", "keys": [["1"], ["2"]]}',
        b'{"type": "resync", "table": "public.docs", "where": "lang = \'de\'", "reason": "import"}',
    )

    assert (everything.table, everything.collections) == ("public.docs", ("docs", "titles"))
    assert (one.collections, one.rewrite, one.reason) == (("titles",), True, "signal")
    assert keys.keys == (("1",), ("2",))
    assert (rows.predicate, rows.reason) == ("lang = 'de'", "import")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"",
        b"[]",
        b'{"type": "explode"}',
        b'{"type": "resync", "more": 1}',
        b'{"type": "resync", "keys": [[]]}',
        b'{"type": "resync", "keys": [["1"]]}',
        b'{"type": "resync", "table": "public.nothing"}',
        b'{"type": "resync", "collection": "nothing"}',
        b'{"type": "resync", "table": "public.docs", "where": "pg_sleep(9) is null"}',
        b'{"type": "resync", "table": "public.docs", "where": "true) or (select true"}',
        b'{"type": "resync", "table": "public.docs", "where": "n = 1 -- and no other"}',
        b'{"type": "resync", "table": "public.docs", "where": "n = 1 /* and no other */"}',
        b'{"type": "resync", "table": "public.docs", "where": "n = 1;"}',
        b'{"type": "resync", "table": "public.docs", "where": "' + b"(" * 50_000 + b'"}',
        b'{"type": "resync", "table": "public.docs", "where": "' + b"not " * 50_000 + b'n = 1"}',
        b'{"type": "resync", "keys": ' + b"[" * 500_000,
    ],
)
def test_what_cannot_be_understood_is_logged_and_ignored(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    good = b'{"type": "resync", "table": "public.notes"}'

    with caplog.at_level(logging.ERROR):
        asked = heard(content, good)

    # Then the good one beside it is followed all the same
    assert [resync.table for resync in asked] == ["public.notes"]
    assert caplog.text.count("signal ignored") == 1


def test_other_messages_are_none_of_ours() -> None:
    assert heard(b'{"type": "resync"}', prefix="somebody") == []


def test_a_signal_that_cannot_be_recorded_is_not_lost() -> None:
    def fail(_: Resync) -> None:
        raise LedgerError("the disk is gone")

    tx = Transaction(
        xid=1,
        commit_lsn=Lsn(5),
        commit_ts_us=0,
        changes=[Change("m", None, 1, (SIGNAL_PREFIX.encode(), b'{"type": "resync"}'), None)],
    )
    with pytest.raises(LedgerError):
        Signals(tables=TABLES, request=fail).hear(tx)
