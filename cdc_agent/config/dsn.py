"""Connection strings: whether libpq can read one, and how to show one. libpq's own messages may quote parts of it."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

__all__ = ["is_conninfo", "redacted_dsn"]

_SECRET_PARAMETERS = frozenset({"password", "sslpassword", "oauth_client_secret"})


def is_conninfo(dsn: str) -> bool:
    try:
        conninfo_to_dict(dsn)
    except psycopg.Error:
        return False
    return True


def redacted_dsn(dsn: str | SecretStr) -> str:
    """The string in keyword form, fit for logs: every secret in it is ``***``."""
    text = dsn.get_secret_value() if isinstance(dsn, SecretStr) else dsn
    if not is_conninfo(text):
        return "***"
    parameters = conninfo_to_dict(text)
    return make_conninfo("", **{key: "***" if key in _SECRET_PARAMETERS else v for key, v in parameters.items()})
