"""When a NATS server is too old, and when what it acknowledged is on its disk."""

from __future__ import annotations

import pytest

from cdc_agent.errors import StreamError
from cdc_agent.stream.nats_server import SyncFacts, refuse_old, sync_facts


@pytest.mark.parametrize("version", ["2.9.10", "2.10.22", "2.10.22-RC.1", "1.4.1", "0.0.0-unknown"])
def test_an_old_server_is_refused(version: str) -> None:
    with pytest.raises(StreamError, match=version.split("-")[0]) as refused:
        refuse_old(version)
    assert "2.10.23" in refused.value.hint


@pytest.mark.parametrize("version", ["2.10.23", "2.10.27-binary", "2.14.0", "3.0.0"])
def test_a_newer_one_is_taken(version: str) -> None:
    refuse_old(version)


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9"])
def test_who_cannot_be_asked_syncs_as_seldom_as_servers_do(url: str | None) -> None:
    assert sync_facts(url) == SyncFacts(hold_s=150.0, known=False)
