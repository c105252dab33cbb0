"""What a saga may look like is checked when it is declared, not when it is under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cdc_agent.errors import ConfigError
from cdc_agent.sagas import Approval, Saga, Step


def do(context: Any) -> None: ...


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: Saga("refund", []), "has no steps"),
        (lambda: Saga("refund", [Approval("agree")]), "has no steps"),
        (lambda: Saga("re:fund", [Step("pay", do)]), "no name for a saga"),
        (lambda: Saga("refund", [Step("pay", do), Approval("pay")]), "two steps named pay"),
        (lambda: Saga("refund", [Step("pay", do), do]), "is no step"),
        (lambda: Saga("refund", [Step("pay", do)], on_stuck="mail"), "on_stuck is no function"),
        (lambda: Step("a b", do), "no name for a step"),
        (lambda: Step("pay", None), "is no function"),
        (lambda: Step("pay", do, undo="x"), "is no function"),
        (lambda: Step("pay", do, alternatives=[None]), "is no function"),
        (lambda: Step("pay", do, attempts=0), "attempts is 0"),
        (lambda: Step("pay", do, attempts=1.5), "attempts is 1.5"),
        (lambda: Step("pay", do, backoff_s=-1), "backoff_s is -1"),
        (lambda: Step("pay", do, timeout_s=0), "timeout_s is 0"),
        (lambda: Step("pay", do, timeout_s="10"), "timeout_s is '10'"),
        (lambda: Step("pay", do, timeout_s=float("nan")), "timeout_s is nan"),
        (lambda: Approval("agree", timeout_s=float("inf")), "timeout_s is inf"),
        (lambda: Approval("agree", timeout_s=1e12), "at most ten years"),
        (lambda: Approval("agree", on_timeout="ignore"), "on_timeout is 'ignore'"),
    ],
)
def test_a_saga_that_makes_no_sense_is_refused_with_a_hint(declare: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        declare()
    assert says in str(refused.value)
    assert refused.value.hint


def test_a_saga_under_way_remembers_names_approvals_and_what_can_be_undone() -> None:
    saga = Saga("refund", [Step("reserve", do, undo=do), Approval("agree"), Step("pay", do)])

    assert saga.shape == ("reserve~", "agree?", "pay")
