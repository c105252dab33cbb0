"""Log lines on standard error: text for people, one JSON object a line for machines. Never cell values or secrets."""

from __future__ import annotations

import logging
import re
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
    """The message as people read it, and beside it what our messages are made of: ``event`` and its ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "thread": record.threadName,
            "logger": record.name,
            "message": _unicode(record.getMessage()),
        }
        if fields := _fields(record):
            line |= {"event": record.msg.split(f"{next(iter(fields))}=%")[0].strip(), "fields": fields}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


#: A placeholder of a message, and the name before it where it has one.
_PLACEHOLDER = re.compile(r"(?:(\w+)=)?%(?!%)[-#0 +]*\d*(?:\.\d+)?[a-z]")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a message like ``resync done id=%d table=%s`` names; empty where it does not name every value."""
    if not isinstance(record.msg, str) or not isinstance(record.args, tuple):
        return {}
    names = _PLACEHOLDER.findall(record.msg)
    if len(names) != len(record.args) or not names or not names[0]:
        return {}
    return {name: _plain(value) for name, value in zip(names, record.args, strict=True) if name}


def _plain(value: object) -> object:
    is_number = isinstance(value, int | float) and type(value) in (int, float, bool)
    return value if is_number or value is None else _unicode(str(value))


def _unicode(text: str) -> str:
    """JSON carries no half of a surrogate pair, and a path may hold one."""
    return text.encode("utf-8", "backslashreplace").decode()


def configure(config: LogConfig) -> None:
    """Set level and format of our own loggers; libraries speak from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if config.format == "json" else _Text(_LINE))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("cdc_agent").setLevel(config.level.upper())
