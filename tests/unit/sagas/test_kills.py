"""Killed with SIGKILL at every passage of every place: a saga completes or is compensated, never both, and every effect
in the world happens once by its key."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cdc_agent.journal.saga_book import SagaState
from tests.support.saga_child import CROWD, PLACES, trip
from tests.support.saga_world import FileWorld, House, judge

ROOT = Path(__file__).parents[3]


def lives(scenario: str, folder: Path) -> list[str]:
    """Where it died, each time."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.saga_child", scenario, str(folder)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    deaths: list[str] = json.loads(done.stdout)
    return deaths


def found(folder: Path) -> tuple[House, FileWorld]:
    world = FileWorld(folder / "world.jsonl")
    return House(folder / "journal.sqlite", trip(world)), world


def judge_all(house: House, world: FileWorld) -> collections.Counter[str]:
    """Every saga of a journal; how many ended how."""
    saga = trip(world)
    ends: collections.Counter[str] = collections.Counter()
    for record in house.book.find(limit=1_000):
        history = house.book.history(record)
        said = [entry.event.type.removeprefix("saga.") for entry in history]
        judge(record, saga, world.effects, said)
        assert len([what for what in said if what == "started"]) == 1
        for what in ("step_done", "undone"):
            steps = [e.event.data["step"] for e in history if e.event.type == f"saga.{what}"]
            assert len(steps) == len(set(steps)), (record.id, said)
        ends[str(record.state)] += 1
    return ends


@pytest.mark.chaos
@pytest.mark.fault("killed-in-a-saga")
@pytest.mark.parametrize(("scenario", "end"), [("well", SagaState.COMPLETED), ("ill", SagaState.COMPENSATED)])
def test_a_saga_that_is_killed_anywhere_comes_to_the_same_end(tmp_path: Path, scenario: str, end: SagaState) -> None:
    # When it is killed once at each passage of each place, and goes on
    deaths = lives(scenario, tmp_path)

    # Then it has died everywhere
    assert {death.partition("-kill")[0] for death in deaths} == set(PLACES)
    assert len(deaths) > 20
    for death in deaths:
        house, world = found(tmp_path / death)
        # and has come to the end that it would have come to,
        assert judge_all(house, world) == {end: 1}, death
        # with at most one call that was made again.
        house.file.close()
        undisturbed = {"well": 6, "ill": 10}[scenario]
        assert undisturbed <= len(world.calls) <= undisturbed + 2, (death, world.calls)


@pytest.mark.chaos
@pytest.mark.fault("saga-kills-the-process")
def test_a_step_that_kills_the_process_does_not_do_so_for_ever(tmp_path: Path) -> None:
    # When a step kills the process whenever it is done, and later another one whenever it is undone
    deaths = lives("doomed", tmp_path)

    # Then the one is done in another way after three deaths; the other is tried on, with pauses, until it does not kill
    house, world = found(tmp_path / "doomed")
    assert judge_all(house, world) == {"compensated": 1}
    names = [name for name, _ in world.calls]
    house.file.close()
    assert [name for name in names if name in ("hotel", "hostel")] == ["hotel", "hotel", "hotel", "hostel"]
    assert names.count("unflight") == 6
    assert len(deaths) == 8


@pytest.mark.chaos
@pytest.mark.fault("killed-in-a-saga")
def test_sixty_sagas_in_a_deadly_world_each_come_to_one_end(tmp_path: Path) -> None:
    # When sixty sagas go on through death after death
    deaths = lives("crowd", tmp_path)

    # Then all have ended, some well and some not, and each key had its effect once
    house, world = found(tmp_path / "crowd")
    ends = judge_all(house, world)
    house.file.close()
    print(f"deaths={len(deaths)} ends={dict(ends)} calls={len(world.calls)} effects={len(world.effects)}")
    assert sum(ends.values()) == CROWD
    assert set(ends) == {"completed", "compensated"}
    assert len(deaths) > 10
