"""Hot documents: embedded now and then only, and never missing meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rig import Rig
from tests.support.scripted import Statement
from tests.support.wait import until
from tests.unit.agents.test_indexer import LONG
from tests.unit.agents.test_overtaking import langs


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def heat(rig: Rig, key: str) -> None:
    """Embed the document of a key so often that its next text is put off; it is gone again afterwards."""
    rig.insert(key, "t", "text 0", "0")
    for turn in ("1", "2"):
        until(lambda: langs(rig).get(key) is not None, what="the document")
        rig.update(key, "t", f"text {turn}", turn)
        until(lambda turn=turn: langs(rig).get(key) == turn, what="its next text")  # type: ignore[misc]
    rig.commit(Statement("delete", key))
    until(lambda: key not in langs(rig), what="the document to go")


def test_a_document_that_moves_to_a_key_that_is_hot_is_found_at_one_of_them_all_the_time(rig: Rig) -> None:
    # Given a document, and a key whose next text would be put off
    rig.start()
    rig.insert("1", "t", LONG)
    until(lambda: "1" in langs(rig), what="the document")
    heat(rig, "7")
    embedded = Counter(rig.embedder.texts)

    # When the document moves there
    rig.commit(Statement("update", "1", ("7", "t", LONG, "en")))
    until(lambda: "1" not in langs(rig), what="the document to leave its key")

    # Then it is there at once, and nothing was embedded for it
    assert langs(rig) == {"7": "en"}
    rig.assert_index_is_the_table()
    assert Counter(rig.embedder.texts) == embedded
