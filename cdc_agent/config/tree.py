"""The shape of the configuration: every key, its type, its default and one sentence about it.

The sentence under a key is its documentation: ``docs/CONFIG.md`` carries it, and a test says so. Nothing here touches
a file but by name; ``loading`` reads them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from cdc_agent.config.dsn import is_conninfo, is_loopback, redacted_dsn, unverified, verified
from cdc_agent.config.problems import wrong
from cdc_agent.config.table_name import parse_table
from cdc_agent.documents.metadata import RESERVED_PREFIX

if TYPE_CHECKING:
    from cdc_agent.documents.collection import CollectionSpec

#: A value that prints as ``***``.
Secret = SecretStr
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]

ENV_PREFIX = "CDC_AGENT_"
ENV_DELIMITER = "__"
_NATS_URL = re.compile(r"(nats|tls)://[^/?#@,\s]+")
#: Longer names are cut by Postgres.
_MOST_NAME_BYTES = 63
_COLLECTION_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


def _checked_dsn(dsn: Secret, *, insecure: bool, section: str) -> Secret:
    """The same DSN, which on its way to another machine makes sure whose server answers."""
    if not is_conninfo(dsn.get_secret_value()):
        raise wrong(
            "is not a Postgres connection string",
            hint="write postgresql://user:password@host:5432/dbname (percent-encode special characters) "
            "or host=... dbname=... user=...",
        )
    if insecure:
        return dsn
    if mode := unverified(dsn.get_secret_value()):
        raise wrong(
            f"leads to another machine with sslmode={mode}, which does not check whose server it is",
            hint=f"say sslmode=verify-full (the default) and sslrootcert=FILE, or set {section}.insecure to true",
        )
    return Secret(verified(dsn.get_secret_value()))


class SourceConfig(_Section):
    insecure: bool = False
    """Connect without checking the server's certificate, or without TLS, to a server on another machine."""
    dsn: Secret
    """Connection string of the database (URL or keywords); its role needs REPLICATION and SELECT. Required."""
    dsn_file: Path | None = None
    """File that holds the connection string, instead of `dsn`."""
    slot_name: str = Field(default="cdc_agent", pattern=r"^[a-z0-9_]{1,63}$")
    """Replication slot. One daemon per slot; a second one waits as its standby."""
    publication_name: str = Field(default="cdc_agent", min_length=1, max_length=63)
    """Publication that names the tables (pgoutput only)."""
    plugin: Literal["pgoutput", "wal2json"] = "pgoutput"
    """Output plugin. pgoutput is built into Postgres; wal2json must be installed on the server."""
    on_mismatch: Literal["stop", "resync"] = "stop"
    """What to do when source, stream, ledger and store do not belong together: stop with exit code 78, or rebuild."""
    status_interval_s: Seconds = 10.0
    """Seconds between standby status updates; never more than a third of the server's wal_sender_timeout."""
    connect_timeout_s: Seconds = 10.0
    """Seconds to wait for a connection."""
    schema_check_interval_s: Seconds = 10.0
    """Seconds between looks for changed tables while the server writes WAL; one that is idle is not asked."""

    @field_validator("dsn")
    @classmethod
    def _is_conninfo_and_verified(cls, dsn: Secret, info: ValidationInfo) -> Secret:
        return _checked_dsn(dsn, insecure=bool(info.data.get("insecure")), section="source")

    @property
    def redacted_dsn(self) -> str:
        return redacted_dsn(self.dsn.get_secret_value())


class StreamConfig(_Section):
    insecure: bool = False
    """Talk to a NATS server on another machine without TLS (jetstream only)."""
    backend: Literal["sqlite", "jetstream"] = "sqlite"
    """Where the durable log of changes lives: a file here, or a NATS server with JetStream (extra `jetstream`)."""
    path: Path | None = None
    """File of the stream. Default: `stream.sqlite` in `state_dir` (sqlite only)."""
    url: str | None = None
    """`tls://host:4222` or `nats://host:4222`, with commas between servers of a cluster. Required with jetstream."""
    name: str = Field(default="cdc_agent", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Name of the stream on the server; one daemon per name (jetstream only)."""
    replicas: int = Field(default=1, ge=1, le=5)
    """Servers that keep a copy, 3 or 5 in a cluster (jetstream only)."""
    monitor_url: str | None = Field(default=None, pattern=r"^https?://")
    """Monitoring port of the server, such as `http://host:8222`, to ask when it writes to its disk (jetstream only)."""
    hold_back_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Seconds that Postgres keeps what NATS took, against a loss of its power (jetstream only). Default: asked."""
    timeout_s: Seconds = 5.0
    """Seconds to wait for one answer of the server (jetstream only)."""
    ca_file: Path | None = None
    """Certificates that the server's is checked with. Default: the system's (jetstream only)."""
    user: str | None = None
    """Who we are to the server (jetstream only)."""
    password: Secret | None = None
    """Password of `user`."""
    password_file: Path | None = None
    """File that holds the password, instead of `password`."""
    token: Secret | None = None
    """Token that the server asks for, instead of a user."""
    token_file: Path | None = None
    """File that holds the token, instead of `token`."""
    credentials_file: Path | None = None
    """Credentials file (`.creds`) of an account with NKeys, read at each connection."""
    max_bytes: int = Field(default=4 * 1024**3, ge=1024**2)
    """Most bytes of entries; when they are used up capture waits, and the server keeps its WAL."""
    retention_h: float = Field(default=24.0, ge=0, allow_inf_nan=False)
    """Hours that entries stay after every agent has read them."""

    @field_validator("url")
    @classmethod
    def _is_of_nats(cls, url: str | None) -> str | None:
        # What it says is not repeated: there may be a password in it.
        if url is not None and not all(_NATS_URL.fullmatch(one.strip()) for one in url.split(",")):
            raise wrong(
                "is not nats://host:port or tls://host:port (with commas between several)",
                hint="who we are is said by stream.user, stream.token or stream.credentials_file",
            )
        return url

    @model_validator(mode="after")
    def _jetstream_has_a_server(self) -> Self:
        if self.backend == "sqlite":
            return self
        if self.url is None:
            raise wrong("is missing", key="url", hint="backend jetstream needs the address of a NATS server")
        for url in self.urls:
            if url.startswith("nats://") and not (self.insecure or is_loopback(urlsplit(url).hostname or "")):
                raise wrong(
                    f"leads to another machine without TLS: {url}",
                    key="url",
                    hint="write tls://, or set stream.insecure to true",
                )
        if self.password is not None and self.user is None:
            raise wrong("is missing", key="user", hint="a password without a name is nothing to a server")
        ways = [key for key in ("user", "token", "credentials_file") if getattr(self, key) is not None]
        if len(ways) > 1:
            raise wrong(f"has {' and '.join(ways)}", hint="one way to say who we are is enough")
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers of a cluster, or the one there is."""
        return tuple(url.strip() for url in self.url.split(",")) if self.url else ()


class LedgerConfig(_Section):
    backend: Literal["sqlite", "postgres"] = "sqlite"
    """Where the durable state of agents lives: a file, or a schema of a Postgres database."""
    path: Path | None = None
    """File of the ledger (sqlite only). Default: `ledger.sqlite` in `state_dir`."""
    insecure: bool = False
    """Connect without checking the server's certificate, or without TLS, to a server on another machine."""
    dsn: Secret | None = None
    """Connection string of the ledger's database, which may be the source's (postgres only). Required with it."""
    dsn_file: Path | None = None
    """File that holds the connection string, instead of `dsn`."""
    schema_name: str = Field(default="cdc_agent", min_length=1, max_length=63)
    """Schema of the ledger's tables, made if it is not there (postgres only). One for each daemon."""
    embedding_cache_bytes: int = Field(default=256 * 1024**2, ge=0)
    """Most bytes of vectors kept by content, so that a text seen before is not embedded again; 0 keeps none."""

    @field_validator("dsn")
    @classmethod
    def _is_conninfo_and_verified(cls, dsn: Secret | None, info: ValidationInfo) -> Secret | None:
        return dsn and _checked_dsn(dsn, insecure=bool(info.data.get("insecure")), section="ledger")

    @field_validator("schema_name")
    @classmethod
    def _is_no_schema_of_others(cls, name: str) -> str:
        if len(name.encode()) > _MOST_NAME_BYTES or "\0" in name:
            raise wrong("is no name for a schema", hint="at most 63 bytes, and no NUL")
        if name.startswith("pg_") or name in ("public", "information_schema"):
            raise wrong(f"{name} is not ours to fill", hint="give the ledger a schema of its own")
        return name

    @model_validator(mode="after")
    def _postgres_has_a_database(self) -> Self:
        if self.backend == "postgres" and self.dsn is None:
            raise wrong("is required with backend postgres", key="dsn", hint="set ledger.dsn or ledger.dsn_file")
        if self.backend == "sqlite" and self.dsn is not None:
            raise wrong("is for backend postgres", key="dsn", hint="set ledger.backend to postgres, or take it out")
        return self


class EmbeddingConfig(_Section):
    backend: Literal["sentence-transformers", "openai", "hashing"] = "sentence-transformers"
    """sentence-transformers (in this process), openai (any OpenAI-compatible endpoint), hashing (tests only)."""
    model: str = Field(default="all-MiniLM-L6-v2", min_length=1)
    """Name of the model, or the folder that holds it. Required with backend openai."""
    device: str = Field(default="cpu", min_length=1)
    """torch device such as `cpu`, `cuda` or `mps` (sentence-transformers only)."""
    batch_tokens: int = Field(default=1600, ge=1)
    """Most tokens in one batch, padding included (sentence-transformers only); more pays on a GPU."""
    url: str | None = Field(default=None, pattern=r"^https?://")
    """Base URL of the endpoint, such as `https://api.openai.com/v1`. Required with backend openai."""
    api_key: Secret | None = None
    """Key for the endpoint (openai only)."""
    api_key_file: Path | None = None
    """File that holds the key, instead of `api_key`."""
    dimensions: int | None = Field(default=None, ge=1, le=65535)
    """Length of the vectors to ask for (openai, hashing). Default: what the model gives."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of one text (openai, hashing). Default: what the backend knows."""
    timeout_s: Seconds = 30.0
    """Seconds to wait for one answer of the endpoint (openai only)."""

    @model_validator(mode="after")
    def _openai_names_url_and_model(self) -> Self:
        for key in ("url", "model"):
            if self.backend == "openai" and (key not in self.model_fields_set or getattr(self, key) is None):
                raise wrong("is missing", key=key, hint=f"backend openai has no default for it: set embedding.{key}")
        return self


class VectorStoreConfig(_Section):
    backend: Literal["chroma", "memory"] = "chroma"
    """Where vectors live: chroma, or memory (tests only)."""
    mode: Literal["managed", "server", "embedded"] = "managed"
    """managed (the daemon runs Chroma's server), server (yours, at host and port), embedded (nobody else can read)."""
    path: Path | None = None
    """Folder of the store (managed and embedded). Default: `chroma` in `state_dir`."""
    host: str = Field(default="127.0.0.1", min_length=1)
    """Address of Chroma's server. With mode managed a loopback address, because Chroma has no authentication."""
    port: Port = 8900
    """Port of Chroma's server."""
    timeout_s: Seconds = 30.0
    """Seconds to wait for one answer of the store."""

    @model_validator(mode="after")
    def _managed_stays_here(self) -> Self:
        if self.mode == "managed" and not is_loopback(self.host):
            raise wrong(
                f"mode managed would serve Chroma on {self.host}, and Chroma has no authentication",
                key="host",
                hint="set vectorstore.host to 127.0.0.1, or run your own Chroma and set vectorstore.mode to server",
            )
        return self


class ChunkingConfig(_Section):
    max_tokens: int = Field(default=256, ge=8)
    """Most tokens of one chunk, by the model's own tokenizer."""
    overlap_tokens: int = Field(default=0, ge=0)
    """Tokens that a chunk repeats from the one before it."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap_tokens >= self.max_tokens:
            raise wrong(
                f"{self.overlap_tokens} is not smaller than max_tokens ({self.max_tokens})",
                key="overlap_tokens",
                hint="an overlap of a tenth of max_tokens is usual; 0 embeds least",
            )
        return self


class FeedConfig(_Section):
    kind: Literal["github", "notion"]
    """Who keeps the documents. Required."""
    webhook: str | None = None
    """Name in `webhooks` of the sender that says when something changed. Default: nobody, it is found in time."""
    token_file: Path | None = None
    """File with the token that may read the documents, read at each request. Required with notion."""
    api_url: str | None = Field(default=None, pattern=r"^https?://[^/?#@]+(/[^?#@]*)?$")
    """Base URL of the API, which alone is asked. Default: that of GitHub or Notion."""
    list_every_s: float = Field(default=900.0, ge=1, allow_inf_nan=False)
    """Seconds between looks at everything, which make up for webhooks that never came."""
    max_documents: int = Field(default=10_000, ge=1)
    """Most documents; where there are more, nothing is indexed until this is raised."""
    max_file_bytes: int = Field(default=1024**2, ge=1, le=50 * 1024**2)
    """Most bytes of one document; larger ones are left out, and told of in `/readyz`."""
    repository: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}$")
    """Repository, `owner/name` (github only, required there)."""
    branch: str = Field(default="main", min_length=1, max_length=250)
    """Branch whose head is indexed (github only)."""
    paths: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=("**/*.md",), min_length=1)
    """Files to index: `*` within one name, `**` over any number of folders (github only)."""

    @field_validator("api_url")
    @classmethod
    def _is_private(cls, url: str | None) -> str | None:
        if url is not None and url.startswith("http://") and not is_loopback(urlsplit(url).hostname or ""):
            raise wrong("would send the token to another machine without TLS", hint="write https://")
        return url

    @model_validator(mode="after")
    def _names_its_place(self) -> Self:
        if self.kind == "github" and self.repository is None:
            raise wrong("is missing", key="repository", hint="write owner/name, as in the address of the repository")
        if self.kind == "notion" and self.token_file is None:
            raise wrong(
                "is missing", key="token_file", hint="write the integration's token into a file; Notion needs one"
            )
        fields = type(self).model_fields
        # By value: the ledger remembers a feed with all its defaults.
        others = [n for n in ("repository", "branch", "paths") if getattr(self, n) != fields[n].default]
        if self.kind == "notion" and others:
            raise wrong("is for github only", key=others[0], hint="share pages with the integration, in Notion")
        return self


class CollectionConfig(_Section):
    name: str
    """Name of the collection in the store: 3-512 of `[a-zA-Z0-9._-]`, a letter or digit at both ends. Required."""
    table: str = Field(default_factory=str)
    """Table of the documents, `schema.table` or `table` (then `public`); quote names with a dot. This, or `feed`."""
    feed: FeedConfig | None = None
    """Documents that somebody else keeps, instead of a table; see docs/FEEDS.md."""
    text: str = Field(min_length=1)
    """Text of a document, with columns in braces: `"{title}\\n\\n{body}"`. Required."""
    metadata: tuple[str, ...] = ()
    """Columns that are stored beside each chunk, under their own names."""
    where: str | None = None
    """SQL predicate on a row; rows that do not satisfy it are not in the index. Default: every row."""
    chunking: ChunkingConfig = ChunkingConfig()
    """How the text is cut."""

    @field_validator("name")
    @classmethod
    def _is_collection_name(cls, name: str) -> str:
        if not _COLLECTION_NAME.fullmatch(name):
            raise wrong(
                f"{name!r} cannot be the name of a collection in Chroma",
                hint="use 3 to 512 of a-z A-Z 0-9 . _ - and begin and end with a letter or digit",
            )
        return name

    @field_validator("table")
    @classmethod
    def _is_table(cls, text: str) -> str:
        if text:
            parse_table(text)
        return text

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        if self.feed is None and "table" in self.model_fields_set:
            parse_table(self.table)
        if bool(self.table) == (self.feed is not None):
            both = "table and feed" if self.table else "neither table nor feed"
            raise wrong(f"has {both}", hint="write table for rows of the database, or feed for documents elsewhere")
        return self

    @field_validator("metadata")
    @classmethod
    def _keeps_off_reserved_keys(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        for column in columns:
            if column.startswith(RESERVED_PREFIX):
                raise wrong(
                    f"{column!r} starts with {RESERVED_PREFIX}, which is reserved",
                    hint="leave the column out, or expose it under another name with a generated column",
                )
        if len(set(columns)) != len(columns):
            raise wrong("names a column twice", hint="name each column once")
        return columns

    @property
    def table_name(self) -> tuple[str, str]:
        """Schema and table, without quotes. A feed goes by a name that no table of another collection has."""
        if self.feed is not None:
            return self.feed.kind, self.name
        return parse_table(self.table)


class ResyncConfig(_Section):
    rows_per_chunk: int | None = Field(default=None, ge=1, le=100_000)
    """Rows that one SELECT of a resync reads. Default: what the indexer deals with in half a second."""


class RetryConfig(_Section):
    initial_s: Seconds = 1.0
    """Seconds before the second attempt; doubles from there."""
    maximum_s: Seconds = 60.0
    """Most seconds between two attempts."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts at one document before it is parked as a dead letter. Outages are retried for ever."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.maximum_s < self.initial_s:
            raise wrong("is smaller than retry.initial_s", key="maximum_s", hint="set it to at least retry.initial_s")
        return self


class WebhookConfig(_Section):
    kind: Literal["standard", "github", "stripe", "notion", "debezium"]
    """Who sends, and so how deliveries are signed; `standard` is Standard Webhooks. Required."""
    secret: Secret | None = None
    """What the sender signs with."""
    secret_file: Path | None = None
    """File with one or two secrets, one a line, instead of `secret`. It is read again when it changes."""
    max_body_bytes: int = Field(default=1024**2, ge=1024, le=25 * 1024**2)
    """Most bytes of one delivery. GitHub sends up to 25 MiB."""

    @model_validator(mode="after")
    def _has_one_secret(self) -> Self:
        if (self.secret is None) == (self.secret_file is None):
            raise wrong(
                "needs secret or secret_file, and not both",
                key="secret",
                hint="unsigned deliveries are never taken: make a secret and give it to the sender",
            )
        return self


class MqttTopicConfig(_Section):
    filter: str = Field(min_length=1)
    """Topics: `+` stands for one whole level, `#` for all the rest. The first filter that fits counts. Required."""
    type: str = Field(min_length=1, max_length=200)
    """Type of the events, such as `disk.usage`. Required."""
    key: str = "{topic}"
    """What an event is about: text with `{topic}`, `{topic[1]}` or `{payload.device.id}`."""
    id: str | None = None
    """What names a message, such as `{payload.id}`, so that one that is sent twice is one event. Default: nothing."""


class MqttConfig(_Section):
    insecure: bool = False
    """Talk to a broker on another machine without TLS."""
    host: str = Field(min_length=1)
    """Address of the broker. Required."""
    port: Port = 1883
    """Port of the broker; with TLS usually 8883."""
    tls: bool = False
    """Talk TLS, and check the broker's certificate."""
    ca_file: Path | None = None
    """Certificates that the broker's is checked with. Default: the system's."""
    cert_file: Path | None = None
    """Our own certificate, where the broker wants one."""
    key_file: Path | None = None
    """The key of our own certificate."""
    username: str | None = None
    """Who we are to the broker."""
    password_file: Path | None = None
    """File with the password, alone on one line. It is read at each connection."""
    client_id: str | None = Field(default=None, min_length=1, max_length=128)
    """Name of our session at the broker; nobody else may use it. Default: `cdc-agent-<name>`."""
    keepalive_s: int = Field(default=30, ge=5, le=65535)
    """Seconds after which a silent connection counts as lost."""
    max_payload_bytes: int = Field(default=256 * 1024, ge=1)
    """Most bytes of one payload; of larger ones only the size is recorded."""
    topics: tuple[MqttTopicConfig, ...] = Field(min_length=1)
    """What to listen to."""

    @model_validator(mode="after")
    def _is_private(self) -> Self:
        if not (self.tls or self.insecure or is_loopback(self.host)):
            raise wrong(
                f"{self.host} is another machine, and there is no TLS",
                key="tls",
                hint="set tls to true (and port to 8883), or insecure to true",
            )
        if self.key_file is not None and self.cert_file is None:
            raise wrong("needs cert_file", key="key_file", hint="a key alone is nothing to a broker")
        if self.password_file is not None and self.username is None:
            raise wrong("is missing", key="username", hint="a password without a name is nothing to a broker")
        return self


class HttpConfig(_Section):
    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on. Anything but a loopback address needs `tokens_file`."""
    port: Port = 8765
    """Port to listen on."""
    tokens_file: Path | None = None
    """File with bearer tokens: one a line, or a list with scopes. With it, every request but `/healthz` needs one."""

    @model_validator(mode="after")
    def _guards_open_addresses(self) -> Self:
        if self.tokens_file is None and not is_loopback(self.host):
            raise wrong(
                f"{self.host} can be reached from other machines, and there are no tokens",
                key="host",
                hint="set http.tokens_file to a file with one token a line, or http.host to 127.0.0.1",
            )
        return self


class LogConfig(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are written."""
    format: Literal["text", "json"] = "text"
    """text for people, json for machines (one object a line)."""


class TracingConfig(_Section):
    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """OTLP/HTTP endpoint of a collector, such as `http://127.0.0.1:4318` (extra `otel`). Default: no traces."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    """Share of commits that are traced, 0 to 1. Each costs some 0.1 ms: thousands a second want a small share."""


class Config(BaseSettings):
    """The whole tree. Build it with ``load``: it reads files and makes paths absolute."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
    )

    source: SourceConfig
    """The Postgres database that is followed."""
    state_dir: Path = Path("./var/cdc-agent")
    """Folder for stream, ledger and store. Relative paths start at the folder of the configuration file."""
    stream: StreamConfig = StreamConfig()
    """The durable log between capture and agents."""
    ledger: LedgerConfig = LedgerConfig()
    """The durable state of agents."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """The model."""
    vectorstore: VectorStoreConfig = VectorStoreConfig()
    """The vector store."""
    collections: tuple[CollectionConfig, ...] = Field(min_length=1)
    """What is indexed: one entry for each collection."""
    resync: ResyncConfig = ResyncConfig()
    """Reading tables again while streaming."""
    retry: RetryConfig = RetryConfig()
    """Trying again."""
    webhooks: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")], WebhookConfig] = {}
    """Who may deliver webhooks to `POST /webhooks/<name>`."""
    agents: tuple[Annotated[str, Field(pattern=r"^.+:[A-Za-z_][A-Za-z0-9_]*$")], ...] = ()
    """Your own agents: `package.module:app`, or `./agents.py:app` (from this file's folder). See docs/AGENTS.md."""
    mqtt: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")], MqttConfig] = {}
    """Brokers whose messages become events."""
    http: HttpConfig = HttpConfig()
    """The HTTP interface."""
    log: LogConfig = LogConfig()
    """Logging, to standard error."""
    tracing: TracingConfig = TracingConfig()
    """Traces from commit to found, by OpenTelemetry."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (the signature is pydantic's)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: ``loading`` merges the environment itself, so that ``Config(...)`` is pure."""
        return (init_settings,)

    @field_validator("collections")
    @classmethod
    def _names_are_unique(cls, collections: tuple[CollectionConfig, ...]) -> tuple[CollectionConfig, ...]:
        names = [collection.name for collection in collections]
        for name in names:
            if names.count(name) > 1:
                raise wrong(f"the name {name!r} is used {names.count(name)} times", hint="give each its own name")
        tables = {one.table_name for one in collections if one.feed is None}
        if not tables:
            raise wrong("has feeds alone", hint="at least one collection is made of a table, for now")
        if shared := tables & {one.table_name for one in collections if one.feed is not None}:
            raise wrong(f"has a table and a feed by the name {'.'.join(min(shared))}", hint="name the feed otherwise")
        return collections

    @field_validator("mqtt")
    @classmethod
    def _brokers_are_no_senders(cls, mqtt: dict[str, MqttConfig], info: ValidationInfo) -> dict[str, MqttConfig]:
        for name in mqtt.keys() & info.data.get("webhooks", {}).keys():
            raise wrong(f"{name!r} is a webhook, too", hint="a name is the source of events: give each its own")
        return mqtt

    @model_validator(mode="after")
    def _doorbells_are_there(self) -> Self:
        for place, feed in ((i, c.feed) for i, c in enumerate(self.collections) if c.feed is not None):
            sender = self.webhooks.get(feed.webhook or "")
            if feed.webhook is not None and (sender is None or sender.kind != feed.kind):
                known = [name for name, webhook in self.webhooks.items() if webhook.kind == feed.kind]
                raise wrong(
                    f"collections[{place}].feed.webhook: webhooks has no {feed.kind} sender {feed.webhook!r}",
                    hint=f"{feed.kind} senders: {', '.join(known) or 'none'}",
                )
        return self

    @model_validator(mode="after")
    def _servers_have_ports_of_their_own(self) -> Self:
        if self.vectorstore.mode == "managed" and self.http.port == self.vectorstore.port != 0:
            raise wrong(
                f"http.port: {self.http.port} is vectorstore.port, too",
                hint="both are listened on here: give each its own port",
            )
        return self

    @property
    def stream_path(self) -> Path:
        return self.stream.path or self.state_dir / "stream.sqlite"

    @property
    def ledger_path(self) -> Path:
        return self.ledger.path or self.state_dir / "ledger.sqlite"

    @property
    def journal_path(self) -> Path:
        return self.state_dir / "journal.sqlite"

    @property
    def vectorstore_path(self) -> Path:
        return self.vectorstore.path or self.state_dir / "chroma"

    def collection_specs(self) -> tuple[CollectionSpec, ...]:
        """What the pure half of the house needs to know of each collection."""
        from cdc_agent.config.specs import collection_spec

        return tuple(collection_spec(collection) for collection in self.collections)

    def table_specs(self) -> tuple[CollectionSpec, ...]:
        """Of those that are made of tables of the database."""
        from cdc_agent.config.specs import collection_spec

        return tuple(collection_spec(collection) for collection in self.collections if collection.feed is None)

    def feed_path(self, collection: str) -> Path:
        """Folder of what is kept of a feed."""
        return self.state_dir / "feeds" / collection
