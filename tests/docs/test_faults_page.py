"""docs/FAULTS.md: every fault has a test or a reason, every marker names a fault, nothing else is there."""

from __future__ import annotations

from collections import Counter

from tests.support.faults import COMMAND, PAGE, catalogue, page, provokers, stray_markers

FAULTS = catalogue()
PROVOKERS = provokers()


def test_every_fault_has_a_test_or_the_reason_why_it_has_none() -> None:
    provoked = {one.fault_id for one in PROVOKERS}

    assert [fault.id for fault in FAULTS if fault.id not in provoked and not fault.reason] == []


def test_a_fault_that_has_a_test_needs_no_reason() -> None:
    provoked = {one.fault_id for one in PROVOKERS}

    assert [fault.id for fault in FAULTS if fault.id in provoked and fault.reason] == []


def test_every_marker_names_a_fault_of_the_catalogue() -> None:
    known = {fault.id for fault in FAULTS}

    assert [f"{one.file.name}: {one.fault_id}" for one in PROVOKERS if one.fault_id not in known] == []
    assert stray_markers() == []


def test_every_fault_is_there_once() -> None:
    assert [fault_id for fault_id, times in Counter(fault.id for fault in FAULTS).items() if times > 1] == []


def test_the_page_is_what_the_command_makes() -> None:
    assert PAGE.read_text() == page(), f"run: {COMMAND}"
