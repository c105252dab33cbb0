"""Processes that carry sagas on and are killed at it: ``python -m tests.support.saga_child SCENARIO FOLDER``.

The process forks one child for each life of a journal, so that a life costs milliseconds. ``exhaustive`` scenarios are
lived once for every passage of every failpoint, each in a folder of its own; ``crowd`` has sixty sagas in one;
``doomed`` is one saga whose steps kill the process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

from cdc_agent import failpoints
from cdc_agent.reactions.hands import Hands
from cdc_agent.sagas import Approval, Saga, Step
from tests.support.saga_world import Fate, FileWorld, House, start_command

__all__ = ["CROWD", "FATES", "trip"]

PLACES = tuple(name for name in failpoints.NAMES if name.startswith("saga_"))
CROWD = 60
_LIVES = 200


def trip(world: FileWorld) -> Saga:
    """Everything that a saga can have: retries, another way, an approval, steps with and without a way back."""

    def step(name: str, **more: object) -> Step:
        return Step(name, world.does(name), undo=world.does(f"un{name}"), backoff_s=0, timeout_s=30, **more)  # type: ignore[arg-type]

    steps = [
        step("flight"),
        step("hotel", attempts=2, alternatives=[world.does("hostel")]),
        Approval("agree"),
        Step("mail", world.does("mail"), backoff_s=0),
        step("car", attempts=2),
    ]
    return Saga("trip", steps)


def _well(name: str, _key: str, nth: int) -> str:
    """The first hotel does not answer; everything else is fine."""
    return "fail" if name == "hotel" else "ok"


def _ill(name: str, _key: str, nth: int) -> str:
    """There is no car: one answer is lost, then it is refused. The flight can be undone at the third attempt."""
    if name == "car":
        return ("lost", "fail")[nth % 2]
    return "fail" if name == "unflight" and nth < 2 else "ok"


def _deadly(name: str, key: str, nth: int) -> str:
    """A world that kills whoever calls it, one time in twenty, and fails one time in three; some steps always."""
    dice = random.Random(f"{name} {key} {nth}")
    if name in ("car", "hotel", "hostel") and crc32(key.encode()) % 4 == 0:
        return dice.choice(["fail", "lost"])
    return dice.choice(["ok"] * 25 + ["fail", "lost"] * 6 + ["cut", "shot"])


def _murderous(name: str, _key: str, _nth: int) -> str:
    """Whoever books the hotel dies of it; so does whoever cancels the flight. There is no car."""
    if name == "car":
        return "refuse"
    return "shot" if name in ("hotel", "unflight") and _nth < 5 else "ok"


#: Scenarios that are lived exhaustively.
FATES: dict[str, Fate] = {"well": _well, "ill": _ill}


def _live(folder: Path, fate: Fate, spec: str | None, *, inline: bool) -> None:
    """One life, in this process, to the end of all sagas."""
    failpoints.arm(spec)
    world, in_hand = FileWorld(folder / "world.jsonl", fate), Hands(folder / "in-hand.json")
    house = House(folder / "journal.sqlite", trip(world), inline=inline, in_hand=in_hand)
    if inline:
        while house.runtime.until_idle() or _approve(house):
            house.now += 1
        return
    for body in (house.runtime.run_intake, house.runtime.run):
        threading.Thread(target=body, daemon=True).start()
    while len(house.book.find(limit=1_000)) < CROWD or house.book.counts():
        _approve(house)
        threading.Event().wait(0.01)


def _approve(house: House) -> bool:
    """All that wait; whether anything is still under way."""
    for record in house.book.find(state="waiting", limit=1_000):
        house.operations.act(record.id, "approve", by="child")
    return bool(house.book.counts())


def _begin(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    house = House(folder / "journal.sqlite")
    house.journal.append([start_command("trip", number, {"n": number}, f"k{number}") for number in range(count)])
    house.file.close()


def _forked(life: Callable[[], None]) -> int:
    """The exit code of a process that does this; negative for a signal."""
    pid = os.fork()
    if not pid:
        try:
            life()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _exhaustive(folder: Path, fate: Fate) -> Iterator[str]:
    """Die at the n-th passage of each place, for every n that there is; then live on."""
    for place in PLACES:
        for passage in range(1, 1_000):
            spec = f"{place}:kill@{passage}"
            one = folder / spec.replace(":", "-")
            _begin(one, 1)
            code = _forked(lambda one=one, spec=spec: _live(one, fate, spec, inline=True))  # type: ignore[misc]
            if code == 0:
                break
            assert code == -signal.SIGKILL, code
            assert _forked(lambda one=one: _live(one, fate, None, inline=True)) == 0  # type: ignore[misc]
            yield one.name


def _crowd(folder: Path) -> Iterator[str]:
    """Sixty sagas in a deadly world, each life ended by the world or at some passage of some place."""
    dice = random.Random(7)
    _begin(folder / "crowd", CROWD)
    for _ in range(_LIVES):
        spec = f"{dice.choice(PLACES)}:kill@{dice.randrange(1, 60)}"
        code = _forked(lambda spec=spec: _live(folder / "crowd", _deadly, spec, inline=False))  # type: ignore[misc]
        if code == 0:
            return
        assert code == -signal.SIGKILL, code
        yield spec
    raise AssertionError("they never end")


def _doomed(folder: Path) -> Iterator[str]:
    """One saga with steps that kill, life after life."""
    _begin(folder / "doomed", 1)
    while (code := _forked(lambda: _live(folder / "doomed", _murderous, None, inline=True))) != 0:
        assert code == -signal.SIGKILL, code
        yield "died"


def main(scenario: str, folder: Path) -> None:
    others = {"crowd": _crowd, "doomed": _doomed}
    lives = others[scenario](folder) if scenario in others else _exhaustive(folder, FATES[scenario])
    print(json.dumps(list(lives)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
