"""Consumers of the stream. The indexer is the first one."""
