"""Every Prometheus metric, as a constant in one registry of our own. Nothing here measures; the rooms do.

Base units, ``_total`` for counters (added by the client), labels from a closed set. ``docs/METRICS.md`` is the
reference; a test keeps it complete.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE", "REGISTRY", "render", "total"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Only ours: no process or garbage collector metrics of the client library, and nothing global.
REGISTRY = CollectorRegistry()

_SHORT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


def _counter(name: str, sentence: str, *labels: str) -> Counter:
    return Counter(name, sentence, labels, namespace="cdc_agent", registry=REGISTRY)


def _gauge(name: str, sentence: str, *labels: str) -> Gauge:
    return Gauge(name, sentence, labels, namespace="cdc_agent", registry=REGISTRY)


def _histogram(name: str, sentence: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(name, sentence, labels, namespace="cdc_agent", registry=REGISTRY, buckets=buckets)


# Source and capture.
CHANGES_RECEIVED = _counter("changes_received", "Changes decoded from the replication stream, by kind.", "op")
TRANSACTIONS = _counter("transactions", "Transactions that are durable in the stream.")
RECONNECTS = _counter("reconnects", "Times the replication connection was opened again after it was lost.")
REPLICATION_LAG_BYTES = _gauge("replication_lag_bytes", "WAL between the server's end and what is captured.")
SLOT_RETAINED_BYTES = _gauge("slot_retained_bytes", "WAL that the server keeps because of our slot.")
SOURCE_LAG_SECONDS = _gauge("source_lag_seconds", "Age of the newest captured commit when it was captured.")
CAPTURED_LSN = _gauge("captured_lsn", "Position up to which every commit is durable in the stream, in bytes.")
STREAMING = _gauge("streaming", "1 while the replication connection streams, otherwise 0.")
QUEUE_TRANSACTIONS = _gauge("queue_transactions", "Transactions that were decoded and are not durable yet.")

# Stream.
STREAM_BYTES = _gauge("stream_bytes", "Bytes that stream entries use on disk.")
STREAM_FULL = _gauge("stream_full", "1 while the stream has no room and capture waits, otherwise 0.")

# Indexer.
APPLIED_LSN = _gauge("applied_lsn", "Commit up to which the index is complete, in bytes.")
LAG_SECONDS = _gauge("lag_seconds", "Age of the oldest captured commit that is not in the index, 0 when there is none.")
AGENT_LAG_ENTRIES = _gauge("agent_lag_entries", "Entries of the stream that an agent has not dealt with.", "agent")
FRESHNESS_SECONDS = _histogram("freshness_seconds", "Time from commit to searchable, per changed document.", _LONG_S)
CHUNKS_EMBEDDED = _counter("chunks_embedded", "Chunk texts that the model embedded.", "collection")
CHUNKS_CACHED = _counter("chunks_cached", "New chunks whose vector was in the embedding cache.")
CHUNKS_UNCHANGED = _counter("chunks_unchanged", "Chunks that kept their vector through a change.")
CHUNKS_DELETED = _counter("chunks_deleted", "Chunks removed from the index.")
UNFINDABLE = _counter("unfindable_documents", "Documents that no search found, which were written anew.", "collection")
METADATA_UPDATES = _counter("metadata_updates", "Chunks whose metadata alone was written.")
OVERTAKEN = _counter("overtaken", "Documents written ahead of others that wait for the model.")
EMBED_BATCH_SECONDS = _histogram("embed_batch_seconds", "Time the model took for one batch of texts.", _SHORT_S)
VECTORSTORE_WRITE_SECONDS = _histogram("vectorstore_write_seconds", "Time of one write to the vector store.", _SHORT_S)
DOCUMENTS = _gauge("documents", "Documents in the index.", "collection")
CHUNKS = _gauge("chunks", "Chunks in the index.", "collection")
REREAD_ROWS = _counter("reread_rows", "Rows read again from their table because the log did not carry a value.")

# Dead letters.
DEAD_LETTERS = _gauge("dead_letters", "Documents parked right now.")
DEAD_LETTERED = _counter("dead_lettered", "Documents parked, by reason.", "reason")

# Resync.
RESYNC_ROWS = _counter("resync_rows", "Rows that resyncs have read.")
RESYNCS_RUNNING = _gauge("resyncs_running", "Resyncs that are not done.")

# Verify.
VERIFY_ROWS = _counter("verify_rows", "Rows that audits have compared with the index.")
VERIFY_DEFECTS = _gauge("verify_defects", "Defects that the last audit found and did not mend, by kind.", "kind")

# Generations.
GENERATION_PROGRESS = _gauge(
    "generation_progress", "How much of the first copy of a generation is done, 0 to 1.", "collection", "generation"
)

# Search.
SEARCH_SECONDS = _histogram("search_seconds", "Time of one search, embedding of the query included.", _SHORT_S)

# Tables.
TABLE_CHANGES = _counter("table_changes", "Changes of tables that write no row into the log, by kind.", "difference")

# Webhooks.
WEBHOOKS = _counter("webhooks", "Webhook deliveries, by sender and what became of them.", "source", "outcome")

# The user's agents.
AGENT_EVENTS = _counter("agent_events", "Attempts of an agent at an event, by what came of them.", "agent", "outcome")
AGENT_SECONDS = _histogram("agent_seconds", "Time an agent took for one event.", _SHORT_S, "agent")
AGENT_GUARD = _counter("agent_guard", "Events that a loop guard stopped, by guard.", "agent", "reason")
AGENT_BACKLOG = _gauge("agent_backlog", "Events in the journal that an agent has not passed.", "agent")
AGENT_LETTERS = _gauge("agent_letters", "Dead letters of an agent.", "agent")
AGENT_UP = _gauge("agent_up", "1 while an agent works, 0 when it gave up.", "agent")
AGENT_CHANGES = _counter("agent_changes", "Row changes that agents listen to.")

# MQTT.
MQTT_MESSAGES = _counter("mqtt_messages", "MQTT messages, by broker and what became of them.", "source", "outcome")
MQTT_UNREADABLE = _counter("mqtt_unreadable", "MQTT messages whose payload is no JSON, or too large.", "source")
MQTT_CONNECTED = _gauge("mqtt_connected", "1 while a broker is connected.", "source")

# Feeds.
FEED_LOOKS = _counter("feed_looks", "Looks at a feed, by collection and what came of them.", "collection", "outcome")
FEED_FETCHES = _counter("feed_fetches", "Documents that were fetched from a feed.", "collection")
FEED_LOOKED = _gauge("feed_looked_timestamp_seconds", "When all of a feed was last looked at.", "collection")

# Sagas.
SAGAS = _gauge("sagas", "Sagas under way, by state.", "state")
SAGAS_ENDED = _counter("sagas_ended", "Sagas that came to an end, by how.", "outcome")
SAGA_SECONDS = _histogram("saga_seconds", "Time from the beginning of a saga to its end.", _LONG_S)
SAGA_ATTEMPTS = _counter("saga_attempts", "Calls of steps, to do or undo, by what became of them.", "action", "outcome")

# Identity.
MISMATCH = _gauge("mismatch", "1 while source, stream, ledger and store do not belong together, by state.", "state")

# The daemon.
PROBLEM = _gauge("problem", "1 while /readyz complains of this, otherwise 0.", "component")
BUILD_INFO = _gauge("build_info", "Always 1; its label is the version that runs.", "version")


def total(counter: Counter) -> int:
    """What a counter has come to since the process began, over all its labels."""
    samples = (sample for family in counter.collect() for sample in family.samples)
    return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))


def render() -> bytes:
    """Every metric in Prometheus' text format."""
    return generate_latest(REGISTRY)
