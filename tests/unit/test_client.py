"""Where the last record ends, when the log stands at the beginning of a page."""

from __future__ import annotations

import pytest

from cdc_agent.client.freshness import end_of_records
from cdc_agent.lsn import Lsn

PAGE, SEGMENT = 8192, 16 << 20


@pytest.mark.parametrize(
    ("position", "end"),
    [
        pytest.param(5 * PAGE + 1000, 5 * PAGE + 1000, id="inside-a-page"),
        pytest.param(5 * PAGE, 5 * PAGE, id="at-the-end-of-a-page"),
        pytest.param(5 * PAGE + 24, 5 * PAGE, id="behind-the-header-of-an-empty-page"),
        pytest.param(SEGMENT + 40, SEGMENT, id="behind-the-header-of-an-empty-segment"),
        pytest.param(5 * PAGE + 40, 5 * PAGE + 40, id="sixteen-bytes-into-a-page"),
        pytest.param(SEGMENT + 24, SEGMENT, id="inside-the-header-of-a-segment-stands-no-record"),
    ],
)
def test_a_place_for_the_next_record_may_lie_behind_the_end_of_the_last(position: int, end: int) -> None:
    assert end_of_records(Lsn(position), page_bytes=PAGE, segment_bytes=SEGMENT) == end
