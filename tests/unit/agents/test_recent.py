"""What has just become true in the index: by key and kind of change, and how soon after its commit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cdc_agent.agents.folding import Pending
from cdc_agent.agents.planning import Plan
from cdc_agent.agents.recent import Indexed, Recent
from cdc_agent.ledger.base import Manifest
from cdc_agent.lsn import Lsn, Version

NOW = 1_000.0
LIVE = Manifest(collection="docs", document_id="public.docs:7", version=Version(Lsn(1), 1), xid=1, relation_oid=1)


def a_plan(base: Manifest | None = LIVE, *, age_s: float = 0.25, **more: Any) -> Plan:
    pending = Pending(
        document_id="public.docs:7",
        key=("7",),
        base=base,
        version=Version(Lsn(9), 1),
        xid=9,
        relation_oid=1,
        first_commit_ts_us=int((NOW - age_s) * 1_000_000),
        touched=more.pop("touched", True),
        from_resync=more.pop("from_resync", False),
    )
    return Plan(collection="docs", pending=pending, **more)


def written(*plans: Plan) -> list[Indexed]:
    recent = Recent(clock=lambda: NOW)
    recent.found(plans)
    return recent.since(0)


@pytest.mark.parametrize(
    ("plan", "op"),
    [
        (a_plan(None, new=[0, 1]), "c"),
        (a_plan(replace(LIVE, deleted=True), new=[0]), "c"),
        (a_plan(new=[1], kept={0: "a"}), "u"),
        (a_plan(same=True, kept={0: "a"}), "u"),
        (a_plan(deleted=True), "d"),
        (a_plan(None, new=[0], from_resync=True), "r"),
    ],
)
def test_each_kind_of_change_has_its_name(plan: Plan, op: str) -> None:
    [entry] = written(plan)

    assert (entry.op, entry.table, entry.key, entry.found_at) == (op, "public.docs", ("7",), NOW)
    assert (entry.new, entry.kept) == (len(plan.new), len(plan.kept))
    assert entry.age_s == (None if op == "r" else pytest.approx(0.25))


@pytest.mark.parametrize(
    "plan",
    [
        a_plan(touched=False, same=True),
        a_plan(from_resync=True, same=True, kept={0: "a"}),
        a_plan(None, deleted=True),
    ],
    ids=["only bookkeeping moved", "a read found what was known", "a row came and went"],
)
def test_what_no_reader_can_tell_is_no_news(plan: Plan) -> None:
    assert written(plan) == []


def test_only_changes_count_as_fresh() -> None:
    recent = Recent(clock=lambda: NOW)

    recent.found([a_plan(age_s=0.5), a_plan(None, new=[0], from_resync=True), a_plan(touched=False)])

    fresh = recent.freshness.over(60)
    assert fresh is not None
    assert (fresh.count, fresh.max_s) == (1, pytest.approx(0.5))


def test_the_ring_is_bounded_and_counts_on() -> None:
    # Given more than is remembered, in one batch and in several
    recent = Recent(clock=lambda: NOW)
    recent.found([a_plan() for _ in range(1_200)])
    recent.found([a_plan(), a_plan()])

    # Then numbers count all of it, and the newest are there
    assert recent.newest == 1_202
    kept = recent.since(0)
    assert len(kept) == 500
    assert [entry.number for entry in kept] == list(range(703, 1_203))
    assert [entry.number for entry in recent.since(1_200)] == [1_201, 1_202]
    assert recent.since(1_202) == []
