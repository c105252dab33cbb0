"""Traces: one for each commit, from its place in the log to the moment at which it is found, over a restart too."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from cdc_agent.config import TracingConfig
from cdc_agent.daemon.otel import OtelTraces, build_traces
from cdc_agent.errors import ConfigError
from cdc_agent.lsn import Lsn
from cdc_agent.tracing import NO_TRACES, commit_ids, is_sampled
from tests.support.rig import Rig
from tests.support.scripted import Statement

SECRET = "Xylophone"


class Life:
    """What one process would send."""

    def __init__(self, *, share: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.traces = OtelTraces("slot", SimpleSpanProcessor(self._exporter), share=share)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def test_a_commit_is_one_trace_though_the_process_is_killed_in_between(rig: Rig) -> None:
    # Given a commit that one process captured, and was killed
    first, second = Life(), Life()
    rig.traces = first.traces
    rig.insert("1", SECRET, SECRET)

    # When another one indexes it
    rig.traces = second.traces
    rig.start()
    rig.assert_index_is_the_table()

    # Then both sent parts of the same trace
    [capture] = first.spans
    assert [span.name for span in second.spans] == ["plan", "embed", "write"]
    assert {span.context.trace_id for span in second.spans} == {capture.context.trace_id}
    assert capture.parent is None
    assert {span.parent.span_id for span in second.spans if span.parent} == {capture.context.span_id}

    # And each says where, what and how much, never a value
    plan, embed, write = second.spans
    assert write.attributes == {
        "cdc_agent.lsn": (capture.attributes or {})["cdc_agent.lsn"],
        "cdc_agent.agent": "indexer",
        "cdc_agent.collection": "docs",
        "cdc_agent.documents": 1,
        "cdc_agent.chunks": 1,
        "cdc_agent.kept_chunks": 0,
    }
    assert SECRET not in str([dict(span.attributes or {}) for span in (capture, *second.spans)])

    # In order
    times = [time for span in (plan, embed, write) for time in (span.start_time, span.end_time)]
    assert times == sorted(times, key=lambda time: time or 0)


def test_commits_of_one_batch_have_traces_of_their_own(rig: Rig) -> None:
    # Given three commits, of which one changes two rows, and one row twice
    life = Life()
    rig.traces = life.traces
    rig.commit(Statement("insert", "1", ("1", "t", "b", "en")), Statement("insert", "2", ("2", "t", "c", "en")))
    rig.insert("3")
    rig.update("3", "other")

    # When they are indexed together
    rig.start()
    rig.assert_index_is_the_table()

    # Then a document counts for the commit that it shows
    written = {
        str((span.attributes or {})["cdc_agent.lsn"]): (span.attributes or {})["cdc_agent.documents"]
        for span in life.spans
        if span.name == "write"
    }
    assert sorted(written.values(), key=str) == [1, 2]
    traces = [span.context.trace_id for span in life.spans if span.name == "capture"]
    assert len(set(traces)) == 3
    assert {span.context.trace_id for span in life.spans} == set(traces)


def test_what_is_not_sampled_is_not_sent(rig: Rig) -> None:
    life = Life(share=0.0)
    rig.traces = life.traces
    rig.insert("1")
    rig.start()
    rig.assert_index_is_the_table()

    assert life.spans == ()


@given(st.integers(0, 2**63 - 1), st.floats(0, 1))
def test_sampling_is_that_of_opentelemetry(lsn: int, share: float) -> None:
    trace_id = commit_ids("slot", Lsn(lsn)).trace_id

    decision = TraceIdRatioBased(share).should_sample(None, trace_id, "x").decision

    assert is_sampled(trace_id, share) == (decision is Decision.RECORD_AND_SAMPLE)


def test_ids_are_those_of_the_commit_and_of_its_source() -> None:
    ids = commit_ids("slot a", Lsn(7))

    assert ids == commit_ids("slot a", Lsn(7))
    assert ids != commit_ids("slot b", Lsn(7))
    assert 0 < ids.trace_id < 2**128
    assert 0 < ids.span_id < 2**64


# -- configuration -----------------------------------------------------------------------------------------------


def test_without_an_endpoint_nothing_is_traced() -> None:
    assert build_traces(TracingConfig(), "slot") is NO_TRACES
    assert not NO_TRACES.on


def test_an_endpoint_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)

    with pytest.raises(ConfigError, match="OpenTelemetry is not installed") as refused:
        build_traces(TracingConfig(endpoint="http://127.0.0.1:4318"), "slot")

    assert "cdc-agent[otel]" in refused.value.hint
