"""Files with secrets that others can read are named, by the modes that libpq allows a key to have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdc_agent.config import Config, load
from cdc_agent.config.secret_files import loose_files

CONFIG = """
source: {dsn_file: dsn}
collections: [{name: items, table: items, text: "{body}"}]
embedding: {backend: openai, url: "http://127.0.0.1:1", model: m, dimensions: 2, api_key_file: key}
http: {tokens_file: tokens}
webhooks: {shop: {kind: stripe, secret_file: stripe}}
ledger: {backend: postgres, dsn_file: ledger}
stream: {backend: jetstream, url: "nats://127.0.0.1:4222", token_file: nats}
"""
NAMES = {
    "source.dsn_file": "dsn",
    "ledger.dsn_file": "ledger",
    "embedding.api_key_file": "key",
    "http.tokens_file": "tokens",
    "webhooks.shop.secret_file": "stripe",
    "stream.token_file": "nats",
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """One whose every secret stands in a file of its own, closed to others."""
    (tmp_path / "cdc-agent.yaml").write_text(CONFIG)
    for name in NAMES.values():
        (tmp_path / name).write_text("postgresql://a@127.0.0.1/b")
        (tmp_path / name).chmod(0o600)
    return load(tmp_path / "cdc-agent.yaml")


def test_files_of_our_own_are_not_named(config: Config) -> None:
    assert loose_files(config) == []


@pytest.mark.parametrize("key", NAMES)
def test_each_file_that_everybody_can_read_is_named_with_its_key_and_remedy(
    config: Config, tmp_path: Path, key: str
) -> None:
    path = tmp_path / NAMES[key]
    path.chmod(0o644)

    [found] = loose_files(config)

    assert found.message == f"{key}: {path} can be read by everybody"
    assert found.hint.startswith(f"chmod 600 {path}")


def test_a_file_for_a_group_is_named_unless_root_lends_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dsn"
    path.chmod(0o640)
    # Whoever owns it is who we are, at first.
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid)
    assert [file.who for file in loose_files(config)] == ["its group"]

    # Root's file, and we are somebody else.
    if path.stat().st_uid == 0:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert loose_files(config) == []


def test_a_file_that_is_gone_is_somebody_elses_error(config: Config, tmp_path: Path) -> None:
    for name in NAMES.values():
        (tmp_path / name).unlink()

    assert loose_files(config) == []
