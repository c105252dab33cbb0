"""Traces by OpenTelemetry, sent by OTLP over HTTP. The only place that knows its SDK, which is an extra.

``capture`` is the root span, from the commit to its place in the stream; ``plan``, ``embed`` and ``write`` are its
children. Batches hold many commits: each that is sampled gets the times of its batch, and one that takes several
batches has the three spans of each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import cdc_agent
from cdc_agent.config import TracingConfig
from cdc_agent.errors import ConfigError
from cdc_agent.events import Transaction
from cdc_agent.lsn import Lsn
from cdc_agent.tracing import NO_TRACES, CommitIds, IndexedPart, Stages, Traces, commit_ids, is_sampled

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

__all__ = ["OtelTraces", "build_traces"]

Attributes: TypeAlias = dict[str, str | int]

#: How long the last spans may take to be sent.
_FLUSH_MS = 3_000


def build_traces(config: TracingConfig, source: str) -> Traces:
    """What the configuration asks for; without an endpoint nothing of OpenTelemetry is loaded.

    Raises ``ConfigError`` when the extra is not installed.
    """
    if config.endpoint is None:
        return NO_TRACES
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise ConfigError(
            f"tracing.endpoint is set, and OpenTelemetry is not installed: {exc}",
            hint="pip install 'cdc-agent[otel]', or leave tracing.endpoint out",
        ) from exc
    exporter = OTLPSpanExporter(endpoint=f"{config.endpoint.rstrip('/')}/v1/traces")
    return OtelTraces(source, BatchSpanProcessor(exporter), share=config.sample_ratio)


class OtelTraces:
    """See ``tracing.Traces``. ``source`` names slot and database in ids and attributes."""

    on = True

    def __init__(self, source: str, processor: SpanProcessor, *, share: float = 1.0) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        given = self._given = threading.local()

        class Ids(RandomIdGenerator):
            """Random ones, but for the first span of a commit."""

            def generate_trace_id(self) -> int:
                return getattr(given, "trace_id", 0) or super().generate_trace_id()

            def generate_span_id(self) -> int:
                return getattr(given, "span_id", 0) or super().generate_span_id()

        resource = Resource.create({"service.name": "cdc-agent", "service.version": cdc_agent.__version__})
        # Whether a commit is sampled is decided here, by its id. Of its own, and not the global provider.
        self._provider = TracerProvider(
            resource=resource, id_generator=Ids(), sampler=ALWAYS_ON, shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("cdc_agent", cdc_agent.__version__)
        self._source = source
        self._share = share

    def captured(self, transactions: Sequence[Transaction]) -> None:
        now = time.time_ns()
        for tx in transactions:
            if tx.end_lsn is not None and tx.changes and not tx.resync_id:
                ids = self._sampled(tx.commit_lsn)
                if ids is not None:
                    self._capture(ids, tx, now)

    def indexed(self, agent: str, parts: Iterable[IndexedPart], stages: Stages) -> None:
        for part in parts:
            ids = self._sampled(part.commit_lsn)
            if ids is not None:
                self._indexed(ids, agent, part, stages)

    def close(self) -> None:
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()

    def _sampled(self, lsn: Lsn) -> CommitIds | None:
        ids = commit_ids(self._source, lsn)
        return ids if is_sampled(ids.trace_id, self._share) else None

    def _indexed(self, ids: CommitIds, agent: str, part: IndexedPart, s: Stages) -> None:
        names: Attributes = {"agent": agent, "collection": part.collection, "documents": part.documents}
        chunks = names | {"chunks": part.new_chunks}
        self._child(ids, "plan", s.planned_from_ns, s.embedded_from_ns, part.commit_lsn, names)
        self._child(ids, "embed", s.embedded_from_ns, s.embedded_to_ns, part.commit_lsn, chunks)
        kept = chunks | {"kept_chunks": part.kept_chunks}
        self._child(ids, "write", s.written_from_ns, s.written_to_ns, part.commit_lsn, kept)

    def _child(self, ids: CommitIds, name: str, from_ns: int, to_ns: int, lsn: Lsn, more: Attributes) -> None:
        from opentelemetry import trace

        parent = trace.SpanContext(
            ids.trace_id, ids.span_id, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED)
        )
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        span = self._tracer.start_span(name, context=context, start_time=from_ns, attributes=_attributes(lsn, more))
        # Clocks of two machines: a span never ends before it begins.
        span.end(max(from_ns, to_ns))

    def _capture(self, ids: CommitIds, tx: Transaction, to_ns: int) -> None:
        from opentelemetry.context import Context

        from_ns = tx.commit_ts_us * 1_000
        counts: Attributes = {"source": self._source, "changes": len(tx.changes), "bytes": tx.size_bytes}
        self._given.trace_id, self._given.span_id = ids.trace_id, ids.span_id
        try:
            span = self._tracer.start_span(
                "capture", context=Context(), start_time=from_ns, attributes=_attributes(tx.commit_lsn, counts)
            )
        finally:
            self._given.trace_id = self._given.span_id = 0
        span.end(max(from_ns, to_ns))


def _attributes(lsn: Lsn, more: Attributes) -> Attributes:
    return {"cdc_agent.lsn": str(lsn), **{f"cdc_agent.{name}": value for name, value in more.items()}}
