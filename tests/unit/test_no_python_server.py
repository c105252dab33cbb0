"""Chroma's Python server has known weaknesses without a fix. Nothing of ours imports it, so nothing can start it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cdc_agent.vectorstore.chroma_server import _CHILD

PACKAGE = Path(__file__).parents[2] / "cdc_agent"

#: Everything of ours that loads a part of chromadb; what those load is asked for afterwards.
LOADED = """
import sys
import cdc_agent.daemon.run, cdc_agent.vectorstore.chroma
import chromadb.api.fastapi, chromadb.api.rust
print(*sorted(name for name in sys.modules if name.startswith("chromadb.server")))
"""


def test_no_module_of_ours_names_it() -> None:
    assert [path for path in PACKAGE.rglob("*.py") if "chromadb.server" in path.read_text()] == []


def test_what_a_daemon_loads_of_chroma_does_not_bring_it() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_the_server_that_we_start_is_the_one_in_rust() -> None:
    assert "chromadb_rust_bindings.cli" in _CHILD
