"""A folder with a model is data to us: weights are safetensors alone, and no code that lies in it is ever run."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.embedding.sentence_transformers import SentenceTransformersEmbedder, _load, _place_on_disk
from cdc_agent.errors import EmbeddingError

#: What somebody else's code would leave behind.
TOUCH = "import pathlib; pathlib.Path({!r}).touch()"


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._code = TOUCH.format(str(path))

    def __reduce__(self) -> Any:
        return exec, (self._code,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of our own, a copy."""
    found = _place_on_disk("all-MiniLM-L6-v2")
    assert found is not None
    return Path(shutil.copytree(found, tmp_path / "model"))


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def test_weights_that_are_a_pickle_are_refused_and_not_unpickled(folder: Path, ran: Path) -> None:
    # Given a model whose weights are a pickle
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(ran)))

    # When it is opened, then that is refused, and what stood in it did not run
    with pytest.raises(EmbeddingError, match="cannot be opened") as raised:
        SentenceTransformersEmbedder(str(folder))
    assert "safetensors" in raised.value.hint
    assert not ran.exists()


def test_code_that_lies_beside_a_model_is_not_run(folder: Path, ran: Path) -> None:
    # Given a model that says that its class is in a file beside it
    (folder / "evil.py").write_text(TOUCH.format(str(ran)) + "\nfrom transformers import BertModel as Evil\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))

    # When it is opened, whether that works or not, then that file was not run
    with contextlib.suppress(EmbeddingError):
        SentenceTransformersEmbedder(str(folder)).close()
    assert not ran.exists()


@pytest.mark.parametrize("on_disk", [True, False], ids=["on disk", "from the hub"])
def test_no_way_to_a_model_leaves_the_two_out(folder: Path, on_disk: bool) -> None:
    # Given a library that has nothing on disk
    asked: list[dict[str, Any]] = []

    def library(name: str, **options: Any) -> str:
        asked.append(options)
        if options.get("local_files_only") and not on_disk:
            raise OSError("not here")
        return name

    # When a model is loaded, then each attempt says both
    _load(library, str(folder) if on_disk else "somebody/a-model", "cpu")
    assert len(asked) == (1 if on_disk else 2)
    for options in asked:
        assert options["trust_remote_code"] is False
        assert options["model_kwargs"] == {"use_safetensors": True}
