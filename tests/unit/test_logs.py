"""Log lines: what somebody else wrote into a name or a message cannot pass for a record of ours."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from cdc_agent.config import LogConfig
from cdc_agent.daemon import logs

FORGED = "x\r\n2026-01-01T00:00:00.000Z ERROR   main cdc_agent forged\x1b[2J\u2028end\x85"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    root = logging.getLogger()
    handlers, level, ours = root.handlers[:], root.level, logging.getLogger("cdc_agent").level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("cdc_agent").setLevel(ours)


def written(monkeypatch: pytest.MonkeyPatch, form: str) -> str:
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    logs.configure(LogConfig(format=form))  # type: ignore[arg-type]
    log = logging.getLogger("cdc_agent.test")
    log.warning("renamed table=%s", FORGED)
    try:
        raise ValueError(FORGED)
    except ValueError:
        log.exception("failed path=%s", FORGED)
    return out.getvalue()


def test_a_line_for_people_stays_one_line(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(monkeypatch, "text")

    # Every line is a record of ours or a part of a traceback that is set in.
    for line in text.split("\n")[:-1]:
        assert "cdc_agent.test " in line or line.startswith("  | "), line
    assert not any(sign in text for sign in "\r\x1b\u2028\x85")
    assert r"x\x0d\x0a2026-01-01" in text


def test_a_line_for_machines_stays_one_object(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = written(monkeypatch, "json").split("\n")[:-1]

    assert [json.loads(line)["level"] for line in lines] == ["warning", "error"]
    assert json.loads(lines[0])["message"] == f"renamed table={FORGED}"


def test_machines_get_the_names_and_values_of_a_message(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given messages with names, with some, with none, and with half of a surrogate pair
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    logs.configure(LogConfig(format="json"))
    log = logging.getLogger("cdc_agent.test")
    log.info("resync done id=%d table=%s rows=%d share=%.1f", 7, "public.docs", 12, 0.51)
    log.info("%s stopped name=%s", "who", "indexer")
    log.info("streaming")
    log.info("cannot read path=%s", "a\udcff")

    named, some, none, odd = map(json.loads, out.getvalue().splitlines())

    # Then each value stands under its name and with its type, and a message without names is itself
    assert named["message"] == "resync done id=7 table=public.docs rows=12 share=0.5"
    assert named["event"] == "resync done"
    assert named["fields"] == {"id": 7, "table": "public.docs", "rows": 12, "share": 0.51}
    assert "fields" not in some
    assert "fields" not in none
    assert odd["fields"] == {"path": "a\\udcff"}
