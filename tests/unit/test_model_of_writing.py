"""The write protocol is checked in every state that it can reach, and each of its rules is needed."""

from __future__ import annotations

import pytest

from tests.model.explorer import explore
from tests.model.write_protocol import Rules, model


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(Rules(), id="as-built"),
        pytest.param(Rules(ahead=True, crashes=1), id="planned-ahead"),
        pytest.param(Rules(crashes=3, failures=0), id="three-crashes"),
        pytest.param(Rules(late=False, sweep=False), id="without-late-requests-no-sweep-is-needed"),
    ],
)
def test_the_index_is_right_in_every_state(rules: Rules) -> None:
    explored = explore(model(rules))

    assert explored.violation is None, explored
    assert explored.states > 1_000


MUTANTS = {
    "ids are places in the document": Rules(ids="place"),
    "ids are the content": Rules(ids="content"),
    "ids are born with the version": Rules(ids="version"),
    "nothing sweeps": Rules(sweep=False),
    "no intents, and nothing sweeps": Rules(intents=False, sweep=False, late=False),
    "a crash in a metadata write leaves no taint": Rules(taint_after_crash=False),
    "a failed metadata write is simply tried again": Rules(taint_after_failure=False),
    "a repeated upsert raises no suspicion": Rules(suspect_repeated_upserts=False),
    "metadata are written in place beside new text": Rules(no_metadata_beside_new_text=False),
    "a batch that was planned ahead outlives the failure of the one before": Rules(
        ahead=True, drop_ahead_after_failure=False
    ),
    "a batch that was planned ahead outlives a suspicion": Rules(ahead=True, drop_ahead_after_suspicion=False),
    "the flip comes before the store": Rules(flip="before_upsert"),
    "the old is deleted before the flip": Rules(flip="after_delete"),
    "the checkpoint is saved before the flip": Rules(checkpoint_with_flip=False),
    "garbage is remembered in memory only, and nothing sweeps": Rules(durable_garbage=False, sweep=False, late=False),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_without_one_of_its_rules_it_goes_wrong(mutant: str) -> None:
    explored = explore(model(MUTANTS[mutant]))

    assert explored.violation is not None, explored
