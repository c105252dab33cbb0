"""The state machine of ``tests/unit/test_any_history.py`` with its ledger on a real server: the same promises hold.

pytest --hypothesis-profile=nightly tests/integration/test_any_history_on_postgres.py
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.postgres import Database
from tests.support.slow_motion import ServerLedger, SlowMotion
from tests.unit.test_any_history import AnyHistory


@pytest.mark.timeout(0)
@pytest.mark.fault("torn-read", "killed-while-writing", "late-write", "answer-lost")
def test_every_promise_holds_in_any_history(pg: Database, caplog: pytest.LogCaptureFixture) -> None:
    # Given the machine, each of whose histories has a schema of its own
    numbers = itertools.count(1)

    class OnPostgres(AnyHistory):
        def begin(self, folder: Path) -> SlowMotion:
            schema = f"history_{next(numbers)}"
            return SlowMotion(folder, self.plugin, lambda _, budget: ServerLedger(pg.dsn, schema, budget))

    # When it goes through some of them: a life here takes as long as ten on a file
    chosen = settings(
        max_examples=max(5, settings.default.max_examples // 10),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with caplog.at_level(logging.WARNING, logger="cdc_agent.ledger"):
        run_state_machine_as_test(OnPostgres, settings=chosen)

    # Then all is as promised, and no flip of the one process was ever late
    assert [record.message for record in caplog.records if "late flip" in record.message] == []
