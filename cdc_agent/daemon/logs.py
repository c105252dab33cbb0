"""Log lines on standard error: text for people, one JSON object a line for machines. Never cell values or secrets."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

from cdc_agent.config import LogConfig

__all__ = ["configure"]


_LINE = "%(asctime)s %(levelname)-7s %(threadName)s %(name)s %(message)s"


#: What would end a line or steer a terminal: somebody else's words must not pass for a record of ours.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    code: f"\\u{code:04x}" for code in (0x2028, 0x2029)
}


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).translate(_CONTROLS)

    def formatException(self, ei: Any) -> str:
        # Set in: a message with line breaks in it cannot begin a line.
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"  | {line.translate(_CONTROLS)}" for line in lines)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002 (logging's name)
        moment = datetime.fromtimestamp(record.created, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname.lower(),
            "thread": record.threadName,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def configure(config: LogConfig) -> None:
    """Set level and format of our own loggers; libraries speak from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if config.format == "json" else _Text(_LINE))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("cdc_agent").setLevel(config.level.upper())
