"""An event that kills the process is known for it after as many deaths as it has attempts."""

from __future__ import annotations

from pathlib import Path

from cdc_agent.reactions.hands import Hands


def test_what_is_in_hand_when_the_process_dies_is_counted(tmp_path: Path) -> None:
    # Given one event in hand and one put back, and a process that dies: nobody closes the file
    path = tmp_path / "hands.json"
    dead = Hands(path)
    dead.take("a", 7)
    dead.take("a", 8)
    dead.put("a", 8)

    # Then the first is known, also by a process that dies before it takes anything up
    assert (Hands(path).crashes("a", 7), Hands(path).crashes("a", 8)) == (1, 0)
    again = Hands(path)
    again.take("a", 7)
    assert Hands(path).crashes("a", 7) == 2

    # and when it is handled at last, nothing is left.
    last = Hands(path)
    last.take("a", 7)
    last.put("a", 7)
    assert Hands(path).crashes("a", 7) == 0


def test_nothing_is_to_blame_for_an_end_that_was_meant(tmp_path: Path) -> None:
    hands = Hands(tmp_path / "hands.json")
    hands.take("a", 7)
    hands.close()
    hands.put("a", 7)

    assert Hands(tmp_path / "hands.json").crashes("a", 7) == 0


def test_a_torn_file_is_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "hands.json"
    path.write_bytes(b'[{"agent": "a", "num')

    assert Hands(path).crashes("a", 7) == 0
    assert path.read_bytes() == b"[]"
