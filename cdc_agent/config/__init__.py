"""The configuration: one frozen tree, read from one YAML file and ``CDC_AGENT_*`` variables.

``tree`` is its shape, ``loading`` reads it, ``problems`` words what is wrong with it. Only ``daemon.build()`` and the
command line read a ``Config``; every other class takes plain arguments. ``docs/CONFIG.md`` is the reference.
"""

from cdc_agent.config.dsn import is_loopback, redacted_dsn
from cdc_agent.config.loading import load
from cdc_agent.config.tree import (
    ChunkingConfig,
    CollectionConfig,
    Config,
    EmbeddingConfig,
    FeedConfig,
    HttpConfig,
    LedgerConfig,
    LogConfig,
    MqttConfig,
    ResyncConfig,
    RetryConfig,
    Secret,
    SourceConfig,
    StreamConfig,
    TracingConfig,
    VectorStoreConfig,
    WebhookConfig,
)

__all__ = [
    "ChunkingConfig",
    "CollectionConfig",
    "Config",
    "EmbeddingConfig",
    "FeedConfig",
    "HttpConfig",
    "LedgerConfig",
    "LogConfig",
    "MqttConfig",
    "TracingConfig",
    "ResyncConfig",
    "RetryConfig",
    "Secret",
    "SourceConfig",
    "StreamConfig",
    "VectorStoreConfig",
    "WebhookConfig",
    "is_loopback",
    "load",
    "redacted_dsn",
]
