"""The places where tests break the daemon: each exists, each is passed, and costs nothing unarmed."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import cdc_agent
from cdc_agent import failpoints
from cdc_agent.errors import ConfigError
from tests.support.wait import until

PACKAGE = Path(cdc_agent.__file__).parent


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm(None)


def hits() -> Iterator[tuple[str, str]]:
    """``(name, where)`` of every ``hit("…")`` in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "hit":
                [argument] = node.args
                assert isinstance(argument, ast.Constant), f"{path}:{node.lineno} passes a place without a fixed name"
                yield str(argument.value), f"{path.relative_to(PACKAGE)}:{node.lineno}"


def test_every_place_is_passed_somewhere_and_every_passage_has_a_name() -> None:
    found = dict(hits())

    assert set(found) == set(failpoints.NAMES)
    assert len(set(failpoints.NAMES)) == len(failpoints.NAMES)


def test_a_place_that_is_not_armed_does_nothing() -> None:
    failpoints.arm("after_flip:raise")

    for name in failpoints.NAMES:
        if name != "after_flip":
            failpoints.hit(name)


def test_an_armed_place_breaks_at_the_counted_passage_and_only_then() -> None:
    failpoints.arm("before_gc:raise@3")

    failpoints.hit("before_gc")
    failpoints.hit("before_gc")
    with pytest.raises(failpoints.FailpointError):
        failpoints.hit("before_gc")
    failpoints.hit("before_gc")


def test_one_of_several_threads_is_hit() -> None:
    # Given a place that breaks at the fiftieth passage
    failpoints.arm("sweep:raise@50")
    broken: list[int] = []

    def walk(number: int) -> None:
        for _ in range(20):
            try:
                failpoints.hit("sweep")
            except failpoints.FailpointError:
                broken.append(number)

    # When ten threads pass it two hundred times
    threads = [threading.Thread(target=walk, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    # Then one of them broke, once
    assert len(broken) == 1


def test_a_hanging_place_never_returns() -> None:
    failpoints.arm("drain:hang")
    passed: list[str] = []

    def walk() -> None:
        failpoints.hit("mid_gc")
        passed.append("mid_gc")
        failpoints.hit("drain")
        passed.append("drain")

    thread = threading.Thread(target=walk, daemon=True)
    thread.start()
    until(lambda: passed == ["mid_gc"], what="the first place to be passed")
    thread.join(0.1)

    assert thread.is_alive()
    assert passed == ["mid_gc"]


def test_a_killing_place_leaves_no_time_for_anything() -> None:
    script = (
        "import atexit; from cdc_agent import failpoints; atexit.register(print, 'cleaned up')\n"
        "failpoints.arm('after_intent:kill@2'); failpoints.hit('after_intent'); print('once', flush=True)\n"
        "failpoints.hit('after_intent'); print('twice')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "once\n"


@pytest.mark.parametrize("spec", ["nowhere:kill", "sweep", "sweep:explode", "sweep:kill@x", "sweep:kill@-1"])
def test_a_misspelt_failpoint_is_refused_with_the_names(spec: str) -> None:
    with pytest.raises(ConfigError) as refused:
        failpoints.arm(spec)
    assert "after_flip" in refused.value.hint


def test_nothing_is_armed_without_a_wish() -> None:
    for spec in (None, ""):
        failpoints.arm("sweep:raise")
        failpoints.arm(spec)
        failpoints.hit("sweep")
