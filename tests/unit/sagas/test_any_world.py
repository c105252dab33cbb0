"""Whatever the world does and whenever the process dies, restarts or somebody answers: one end, once."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc_agent import failpoints
from cdc_agent.errors import UsageError
from cdc_agent.failpoints import FailpointError
from cdc_agent.journal.saga_book import ENDED
from cdc_agent.sagas import Approval, Saga, Step
from tests.support.saga_child import PLACES
from tests.support.saga_world import House, World, judge

OUTCOMES = st.sampled_from(["ok", "ok", "ok", "fail", "lost", "refuse"])
#: What a step may be: attempts, other ways, whether it can be undone; or an approval and what silence means.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 3), st.integers(0, 2), st.booleans()), st.sampled_from(["compensate", "continue"])
    ),
    min_size=1,
    max_size=5,
).filter(lambda shapes: any(isinstance(shape, tuple) for shape in shapes))
#: What happens between two moments of rest: a death at some passage of some place, an answer, or time that passes.
MISHAPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(PLACES), st.integers(1, 6)),
        st.sampled_from(["approve", "reject", "cancel", "time"]),
    ),
    max_size=25,
)


def declared(world: World, shapes: list[Any]) -> Saga:
    steps: list[Step | Approval] = []
    for number, shape in enumerate(shapes):
        name = f"s{number}"
        if isinstance(shape, str):
            steps.append(Approval(name, timeout_s=60, on_timeout=shape))  # type: ignore[arg-type]
            continue
        attempts, others, can_undo = shape
        steps.append(
            Step(
                name,
                world.does(name),
                undo=world.does(f"un{name}") if can_undo else None,
                attempts=attempts,
                alternatives=[world.does(f"{name}-{other}") for other in range(others)],
            )
        )
    return Saga("any", steps)


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(shapes=STEPS, outcomes=st.lists(OUTCOMES, max_size=40), mishaps=MISHAPS)
def test_a_saga_comes_to_one_end_and_leaves_nothing_half_done(
    shapes: list[Any], outcomes: list[str], mishaps: list[Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(failpoints.arm, None)
        # Given a world with such outcomes, call after call, in which all is well at last
        world = World()
        left = list(outcomes)
        world._outcome = lambda _name: left.pop(0) if left else "ok"  # type: ignore[method-assign]
        saga = declared(world, shapes)
        house = House(Path(folder) / "journal.sqlite", saga)
        stack.callback(lambda: house.file.close())

        # When a saga is begun, and the process dies, and people answer, as it comes
        with contextlib.suppress(FailpointError):
            if mishaps and isinstance(mishaps[0], tuple):
                failpoints.arm("{}:raise@{}".format(*mishaps[0]))
            house.start("any")
        for mishap in mishaps:
            happen(house, mishap)
        failpoints.arm(None)
        house.reopened()
        house.to_the_end()

        # Then it has come to one end, with nothing left half done, and every transition was said once
        [record] = house.book.find()
        history = [(entry.event.type.removeprefix("saga."), entry.event.data) for entry in house.book.history(record)]
        assert record.state in ENDED
        judge(record, saga, world.effects, [what for what, _ in history])
        assert history[0][0] == "started"
        for what in ("step_done", "undone", "approved", "approval_wanted"):
            steps = [data["step"] for said, data in history if said == what]
            assert len(steps) == len(set(steps))
        assert_in_order(record.step_names, history)


def assert_in_order(names: tuple[str, ...], history: list[tuple[str, Any]]) -> None:
    """Forward in the order of the declaration, then backward in the reverse."""
    forward = [names.index(data["step"]) for what, data in history if what == "step_done"]
    backward = [names.index(data["step"]) for what, data in history if what == "undone"]
    assert forward == sorted(forward)
    assert backward == sorted(backward, reverse=True)
    whats = [what for what, _ in history]
    if backward:
        assert whats.index("undone") > max((i for i, what in enumerate(whats) if what == "step_done"), default=0)


def happen(house: House, mishap: Any) -> None:
    """One thing; a death is an exception at the place, after which only the files are left."""
    try:
        if isinstance(mishap, tuple):
            failpoints.arm("{}:raise@{}".format(*mishap))
        elif mishap == "time":
            house.now = max(house.now, house.runtime.next_due() or 0)
        else:
            with contextlib.suppress(UsageError):
                for record in house.book.find():
                    house.operations.act(record.id, mishap, by="somebody")
        house.runtime.until_idle()
    except FailpointError:
        house.reopened()
