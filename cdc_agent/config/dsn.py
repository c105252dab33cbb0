"""Connection strings: whether libpq can read one, how to show one, and whether it makes sure whose server answers.

libpq's own messages may quote parts of one.
"""

from __future__ import annotations

import ipaddress
import os

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

__all__ = ["is_conninfo", "is_loopback", "redacted_dsn", "unverified", "verified"]

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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. A name other than ``localhost`` counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def unverified(dsn: str) -> str:
    """The sslmode that a DSN (or PGSSLMODE) asks for, if it leads to another machine and is too weak; else ""."""
    mode = _sslmode(dsn)
    return mode if mode not in ("", "verify-full") and _leaves_this_machine(dsn) else ""


def verified(dsn: str) -> str:
    """The same DSN, with ``sslmode=verify-full`` where it leads to another machine and says nothing."""
    return make_conninfo(dsn, sslmode="verify-full") if not _sslmode(dsn) and _leaves_this_machine(dsn) else dsn


def _sslmode(dsn: str) -> str:
    return str(conninfo_to_dict(dsn).get("sslmode") or os.environ.get("PGSSLMODE", ""))


def _leaves_this_machine(dsn: str) -> bool:
    """Whether any of its hosts may be elsewhere. Without a host it is a socket in the file system."""
    given = conninfo_to_dict(dsn)
    named = [str(given.get(key) or os.environ.get(variable, "")) for key, variable in _HOSTS]
    hosts = [host for names in named for host in names.split(",") if host]
    return any(not host.startswith(("/", "@")) and not is_loopback(host) for host in hosts)


_HOSTS = (("host", "PGHOST"), ("hostaddr", "PGHOSTADDR"))
