"""The error tree. Every error knows whether trying again can help and what an operator should do.

CdcAgentError
├── UsageError                 the command line is wrong                          exit 2
├── NotPermitted               a token that may not see or do this                HTTP 403
├── ConfigError                the configuration is wrong                         exit 78
├── PreflightError             the database is not set up for us                  exit 78
├── IdentityMismatch           source, ledger, stream or store are not a set      exit 78, names a state
├── SourceError                Postgres, or what it sent
│   ├── SourceUnavailable      connection refused, lost, shutting down            retryable
│   ├── SlotBusy               another process streams from our slot              retryable
│   ├── SourceAuthError        password, certificate or pg_hba                    retryable, slowly
│   ├── DecodeError            bytes that are not the protocol
│   └── FeedUnavailable        GitHub or Notion: away, refusing, limiting         retryable
├── StreamError                the durable log between capture and agents
│   ├── StreamFull             configured bytes are used up                       retryable
│   └── StreamUnavailable      its server does not answer (JetStream)             retryable
├── LedgerError                the durable state of agents
│   ├── LedgerUnavailable      its server refused, lost, stopping                retryable
│   │   └── LedgerFull         no space on its disk                              retryable
│   └── FlipOutdated           another process works for the same agent          exit 75
├── JournalError               the events that are kept for ever
│   └── JournalFull            no space on its disk                              retryable
├── AgentError                 what a handler asks for cannot be
│   └── LlmError               the model that a handler asks
│       ├── LlmUnavailable     endpoint down, overloaded, rate limited            retryable
│       └── BudgetSpent        its tokens of today are used
├── WebhookError               a delivery that is not taken
│   ├── WebhookRefused         who sent it is not proven: signature, time, secret
│   └── WebhookMalformed       it is signed, and not what its sender documents
├── EmbeddingError             the model
│   ├── EmbedderUnavailable    endpoint down, overloaded, rate limited            retryable
│   └── PoisonText             one text that the model refuses
├── VectorStoreError           the store
│   ├── StoreUnavailable       refused, timed out, 5xx                            retryable
│   └── StoreRejected          a record that it will never take
├── RenderError                one row that cannot become a document
└── DaemonUnavailable          a command needs the daemon and it does not answer  exit 75
"""

from __future__ import annotations

__all__ = [
    "AgentError",
    "BudgetSpent",
    "CdcAgentError",
    "ConfigError",
    "DaemonUnavailable",
    "DecodeError",
    "EmbedderUnavailable",
    "EmbeddingError",
    "FeedUnavailable",
    "FlipOutdated",
    "IdentityMismatch",
    "JournalError",
    "JournalFull",
    "LedgerError",
    "LedgerFull",
    "LedgerUnavailable",
    "LlmError",
    "LlmUnavailable",
    "NotPermitted",
    "PoisonText",
    "PreflightError",
    "RenderError",
    "SlotBusy",
    "SourceAuthError",
    "SourceError",
    "SourceUnavailable",
    "StoreRejected",
    "StoreUnavailable",
    "StreamError",
    "StreamFull",
    "StreamUnavailable",
    "UsageError",
    "VectorStoreError",
    "WebhookError",
    "WebhookMalformed",
    "WebhookRefused",
]

#: sysexits(3): the service is down for now, a supervisor should start us again.
EXIT_TRY_AGAIN = 75
#: sysexits(3): configuration or identity; starting again changes nothing.
EXIT_CONFIG = 78


class CdcAgentError(Exception):
    """Base of every error that this package raises on purpose.

    ``hint`` is one sentence for the operator: the command, setting or SQL that mends it.
    """

    retryable = False
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n  hint: {self.hint}" if self.hint else text

    @property
    def message(self) -> str:
        """The sentence alone, without the hint."""
        return str(self.args[0])


class UsageError(CdcAgentError):
    """The command line asks for something that does not exist."""

    exit_code = 2


class NotPermitted(CdcAgentError):
    """The token of a request is known, and not for this."""

    exit_code = EXIT_CONFIG


class ConfigError(CdcAgentError):
    """The configuration is wrong; nothing was started."""

    exit_code = EXIT_CONFIG


class PreflightError(CdcAgentError):
    """The database is not set up for change capture; the hint carries the SQL or setting."""

    exit_code = EXIT_CONFIG


class IdentityMismatch(CdcAgentError):
    """Source, stream, ledger and store do not belong together; ``state`` names how."""

    exit_code = EXIT_CONFIG

    def __init__(self, state: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{state}: {message}", hint=hint)
        self.state = state


class SourceError(CdcAgentError):
    """Postgres failed, or sent something unexpected."""


class SourceUnavailable(SourceError):
    """The server cannot be reached, went away, or is starting or stopping."""

    retryable = True
    exit_code = EXIT_TRY_AGAIN


class SlotBusy(SourceError):
    """Another connection streams from our slot; we wait as its standby."""

    retryable = True
    exit_code = EXIT_TRY_AGAIN


class SourceAuthError(SourceError):
    """The server refuses who we are; retried slowly so that no account gets locked."""

    retryable = True
    exit_code = EXIT_CONFIG


class DecodeError(SourceError):
    """The bytes do not follow the protocol; reading on would guess."""


class FeedUnavailable(SourceError):
    """Who keeps a feed's documents is away, refuses us, limits us, or answers what cannot be.

    Always tried again, because a token, a branch or a repository comes back without us.
    """

    retryable = True
    exit_code = EXIT_TRY_AGAIN

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class StreamError(CdcAgentError):
    """The durable stream cannot be read or written."""


class StreamFull(StreamError):
    """The stream holds its configured bytes of entries that some agent still needs."""

    retryable = True


class StreamUnavailable(StreamError):
    """The server of the stream does not answer. What was sent may or may not have been taken."""

    retryable = True
    exit_code = EXIT_TRY_AGAIN


class LedgerError(CdcAgentError):
    """The ledger cannot be read or written."""


class LedgerUnavailable(LedgerError):
    """The ledger's server cannot be reached, went away, or refuses us for now.

    What was asked for may have been done or not; to ask for it again does no harm.
    """

    retryable = True
    exit_code = EXIT_TRY_AGAIN


class LedgerFull(LedgerUnavailable):
    """The disk under the ledger is full; nothing was changed."""

    exit_code = 1


class FlipOutdated(LedgerError):
    """Another process wrote for the same agent, and what a flip builds on is no more; nothing was changed."""

    exit_code = EXIT_TRY_AGAIN


class JournalError(CdcAgentError):
    """The journal of events cannot be read or written."""

    exit_code = EXIT_CONFIG


class JournalFull(JournalError):
    """The disk under the journal is full; nothing was changed."""

    retryable = True
    exit_code = EXIT_TRY_AGAIN


class AgentError(CdcAgentError):
    """A handler asked for something that cannot be: it counts as failed."""


class LlmError(AgentError):
    """The model that a handler asks gives no answer that is of use."""


class LlmUnavailable(LlmError):
    """The model cannot answer now; ``retry_after_s`` is what the endpoint asked for, if it did. ``billed``: the request
    may have been carried out, and cost something, all the same."""

    retryable = True

    def __init__(
        self, message: str, *, hint: str = "", retry_after_s: float | None = None, billed: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
        self.billed = billed


class BudgetSpent(LlmError):
    """The tokens that agents may use today are used; the model was not asked."""


class WebhookError(CdcAgentError):
    """A webhook delivery that is not taken; nothing of it is kept."""


class WebhookRefused(WebhookError):
    """Nothing proves who sent the delivery: its signature, its time or our secret is missing or wrong."""


class WebhookMalformed(WebhookError):
    """The delivery is signed, but its body is not what the sender documents."""


class EmbeddingError(CdcAgentError):
    """The model failed."""

    exit_code = EXIT_CONFIG


class EmbedderUnavailable(EmbeddingError):
    """The model cannot answer now; ``retry_after_s`` is what the endpoint asked for, if it did."""

    retryable = True
    exit_code = EXIT_TRY_AGAIN

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class PoisonText(EmbeddingError):
    """One text that the model will never embed; ``index`` is its place in the list that was sent."""

    def __init__(self, message: str, *, index: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.index = index


class VectorStoreError(CdcAgentError):
    """The vector store failed."""


class StoreUnavailable(VectorStoreError):
    """The store cannot be reached or answers 5xx. The write may or may not have been applied."""

    retryable = True
    exit_code = EXIT_TRY_AGAIN


class StoreRejected(VectorStoreError):
    """The store refuses a record for good (dimension, size, type)."""

    exit_code = EXIT_CONFIG


class RenderError(CdcAgentError):
    """A row cannot become a document: a column is missing or its bytes are no text."""


class DaemonUnavailable(CdcAgentError):
    """The command or request needs the running daemon, and it does not answer or is stopping."""

    retryable = True
    exit_code = EXIT_TRY_AGAIN
