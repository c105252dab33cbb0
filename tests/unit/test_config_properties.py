"""A valid configuration is read the same from YAML and from the environment; a misspelt key is told what was meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cdc_agent.config import load
from cdc_agent.config.problems import nearest
from cdc_agent.config.tree import Config
from cdc_agent.errors import ConfigError

SECONDS = st.integers(1, 600)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
TEXTS = st.text("aé\"'#: \\{{}}", max_size=6).map(lambda t: t.replace("{", "{{").replace("}", "}}"))
COLLECTIONS = st.fixed_dictionaries(
    {"table": st.builds("{}.{}".format, NAMES, NAMES), "text": st.builds("{}{{{}}}".format, TEXTS, NAMES)},
    optional={"where": st.sampled_from(["ok", "id > 1 and not done", "lang in ('en', 'de')"])},
)
SECTIONS: Mapping[str, Mapping[str, st.SearchStrategy[Any]]] = {
    "source": {
        "slot_name": NAMES,
        "publication_name": st.text("aé\"' .", min_size=1, max_size=9),
        "plugin": st.sampled_from(["pgoutput", "wal2json"]),
        "on_mismatch": st.sampled_from(["stop", "resync"]),
        "status_interval_s": SECONDS,
        "connect_timeout_s": SECONDS,
    },
    "stream": {"max_bytes": st.integers(1 << 20, 1 << 40), "retention_h": st.integers(0, 99)},
    "ledger": {"embedding_cache_bytes": st.integers(0, 1 << 40)},
    "embedding": {"batch_tokens": st.integers(1, 9999), "timeout_s": SECONDS},
    "vectorstore": {"timeout_s": SECONDS},
    "retry": {"max_attempts": st.integers(1, 99)},
    "resync": {"rows_per_chunk": st.integers(1, 100_000)},
    "log": {
        "level": st.sampled_from(["debug", "info", "warning", "error"]),
        "format": st.sampled_from(["text", "json"]),
    },
}


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for section, keys in SECTIONS.items():
        if found := draw(st.fixed_dictionaries({}, optional=dict(keys))):
            tree[section] = found
    tree.setdefault("source", {})["dsn"] = "postgresql://cdc:s%20'\"ecret@h/d"
    names = draw(st.lists(NAMES.map(lambda name: f"c{name}s"), min_size=1, max_size=2, unique=True))
    tree["collections"] = [{"name": name, **draw(COLLECTIONS)} for name in names]
    return tree


def from_yaml(folder: Path, tree: Mapping[str, Any]) -> Config:
    file = folder / "cdc-agent.yaml"
    file.write_text(yaml.safe_dump(dict(tree), allow_unicode=True))
    return load(file)


def from_environment(folder: Path, tree: Mapping[str, Any]) -> Config:
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for section, keys in tree.items():
            if isinstance(keys, list):
                patched.setenv(f"CDC_AGENT_{section.upper()}", json.dumps(keys))
            for key, value in keys.items() if isinstance(keys, dict) else ():
                patched.setenv(f"CDC_AGENT_{section.upper()}__{key.upper()}", str(value))
        return load(None)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees())
def test_yaml_and_environment_say_the_same(tmp_path: Path, tree: dict[str, Any]) -> None:
    written = from_yaml(tmp_path, tree)

    assert written == from_environment(tmp_path, tree)
    for section, keys in tree.items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            if key != "dsn":
                assert getattr(getattr(written, section), key) == value


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees(), st.data())
def test_a_misspelt_key_is_told_what_was_meant(tmp_path: Path, tree: dict[str, Any], data: st.DataObject) -> None:
    # Given a key with one character too much, or one too few
    section = data.draw(st.sampled_from(sorted(SECTIONS)))
    known = list(Config.model_fields[section].annotation.model_fields)  # type: ignore[union-attr]
    right = data.draw(st.sampled_from(sorted(SECTIONS[section])))
    at = data.draw(st.integers(0, len(right) - 1))
    wrong = data.draw(st.sampled_from([right[:at] + "x" + right[at:], right[:at] + right[at + 1 :]]))
    assume(wrong not in known)
    tree[section] = {**tree.get(section, {}), wrong: 1}

    # Then the error names the key and the one that was meant
    with pytest.raises(ConfigError) as caught:
        from_yaml(tmp_path, tree)
    assert f"{section}.{wrong} is not a known key; did you mean {section}.{nearest(wrong, known)}?" in str(caught.value)
