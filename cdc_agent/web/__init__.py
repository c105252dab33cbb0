"""The HTTP interface: search, wait, health, metrics, dead letters, resyncs. It knows the daemon as a ``Service``."""
