"""Whether the server can be reached at all, and what libpq's words about it mean for an operator."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from cdc_agent.source.preflight.findings import Finding, failed, quote


@dataclass(frozen=True, slots=True)
class Address:
    """Where a DSN leads, without its password. Defaults and PG* variables are filled in as libpq does."""

    host: str
    port: str
    user: str
    database: str

    @classmethod
    def of(cls, dsn: str) -> Address:
        given = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value}
        options = pq.Conninfo.get_defaults()
        merged = {option.keyword.decode(): option.val.decode() for option in options if option.val} | given
        user = merged.get("user", "")
        host = merged.get("host") or merged.get("hostaddr") or ""
        return cls(host, merged.get("port", "5432"), user, merged.get("dbname") or user)

    def __str__(self) -> str:
        return f"{self.host or 'the local socket'} port {self.port}, database {self.database}, as {self.user}"


def dsn_fault(dsn: str) -> Finding | None:
    """Catch a DSN that libpq would take apart wrongly. Its text is never repeated: it may hold the password."""
    try:
        address = Address.of(dsn)
    except psycopg.Error:
        address = Address("@", "", "", "")
    if "@" not in address.host and all(port.isdigit() for port in address.port.split(",")):
        return None
    return failed(
        "connection",
        "source.dsn cannot be read as a Postgres address",
        "write postgresql://user:password@host:5432/database and percent-encode special characters of the "
        "password (@ is %40, : is %3A, / is %2F, # is %23, % is %25)",
    )


#: What libpq and the server say when there is no connection: pattern, our sentence, the remedy.
#: The first match counts. No SQLSTATE reaches us before a connection stands, and server texts may be translated;
#: then the last resort below answers.
_NO_CONNECTION: tuple[tuple[str, str, str], ...] = (
    (
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "the server's pg_hba.conf does not let {user} in to database {database}",
        "put this line first into pg_hba.conf (`show hba_file` names the file): {hba_line} "
        "and then run: select pg_reload_conf();",
    ),
    (
        r"password authentication failed|no password supplied",
        "the server refuses the password of {user}",
        "correct the password in source.dsn (or its file), or set a new one in psql: \\password {user_sql}",
    ),
    (
        r'role ".*" does not exist',
        "the server has no role {user}",
        "correct the user in source.dsn, or run as a superuser: "
        "create role {user_sql} login replication; and in psql: \\password {user_sql}",
    ),
    (
        r"is not permitted to log in",
        "role {user} may not log in",
        "run as a superuser: alter role {user_sql} login;",
    ),
    (
        r'database ".*" does not exist',
        "the server has no database {database}",
        "correct the database in source.dsn, or run: create database {database_sql};",
    ),
    (
        r"permission denied for database",
        "role {user} may not connect to database {database}",
        "run as its owner: grant connect on database {database_sql} to {user_sql};",
    ),
    (
        r"too many connections for role",
        "role {user} has no free connection",
        "run as a superuser: alter role {user_sql} connection limit -1;",
    ),
    (
        r"too many connections for database",
        "database {database} has no free connection",
        "run as its owner: alter database {database_sql} connection limit -1;",
    ),
    (
        r"too many clients|remaining connection slots|requested standby connections",
        "the server has no free connection",
        "end idle sessions, or raise the limit as a superuser and restart the server: "
        "alter system set max_connections = 200;",
    ),
    (
        r"SSL|certificate",
        "no TLS connection to {host}: {text}",
        "set sslrootcert in source.dsn to the certificate of the server's CA (sslrootcert=system for public ones), and "
        "host to a name in the server's certificate; the server offers TLS when `show ssl` says on. To do without on a "
        "network that you trust: source.insecure",
    ),
    (
        r"unsupported startup parameter|replication.*not supported",
        "{host} port {port} is a connection pooler, which passes on no replication",
        "let source.dsn name the Postgres server itself",
    ),
    (
        r"failed to resolve|could not translate host name|[Nn]ame or service not known",
        "the host name {host} is not known",
        "correct the host in source.dsn; getent hosts {host_sh} must find it",
    ),
    (
        r"Connection refused|No such file or directory",
        "nothing listens on {host} port {port}",
        "start the server, or correct host and port in source.dsn, until this succeeds: pg_isready {at_sh}",
    ),
    (
        r"timeout expired|timed out|unreachable",
        "{host} port {port} does not answer",
        "open the way (firewall, security group, VPN) until this succeeds: pg_isready {at_sh}",
    ),
    (
        r"starting up|shutting down|not yet accepting",
        "the server is starting or stopping",
        "try again when this succeeds: pg_isready {at_sh}",
    ),
)


#: What may be over in a minute: the server is away, not refused to us.
_PASSING = r"Connection refused|timeout expired|timed out|unreachable|starting up|shutting down|not yet accepting"
_LAST_RESORT = ("Postgres answered: {text}", "connect by hand, the same way: psql {at_sh}")


def unreachable(dsn: str, text: str, name: str = "connection") -> Finding:
    facts = _connection_facts(dsn, text)
    sentence, remedy = next(
        ((sentence, remedy) for pattern, sentence, remedy in _NO_CONNECTION if re.search(pattern, text)), _LAST_RESORT
    )
    finding = failed(name, sentence.format(**facts), remedy.format(**facts))
    return replace(finding, passing=bool(re.search(_PASSING, text)))


def _connection_facts(dsn: str, text: str) -> dict[str, str]:
    address = Address.of(dsn)
    password = conninfo_to_dict(dsn).get("password")
    shown = text.replace(str(password), "***") if password else text
    return {
        "text": shown.split("failed: ")[-1].split("\n")[0],
        "host": address.host or "the local socket",
        "port": address.port,
        "user": address.user,
        "database": address.database,
        "user_sql": quote(address.user),
        "database_sql": quote(address.database),
        "host_sh": shlex.quote(address.host),
        "at_sh": f"-h {shlex.quote(address.host)} -p {address.port}" if address.host else f"-p {address.port}",
        "hba_line": _hba_line(address, text),
    }


def _hba_line(address: Address, text: str) -> str:
    names = f"{quote(address.database)} {quote(address.user)}"
    client = re.search(r'host "([^"]+)"', text)
    if client is None or client[1] == "[local]":
        return f"local {names} scram-sha-256"
    kind = "hostssl" if "SSL encryption" in text else "host"
    return f"{kind} {names} {client[1]}/{128 if ':' in client[1] else 32} scram-sha-256"


def text_of(exc: BaseException) -> str:
    """The server's own words: our connection errors carry psycopg's as their cause."""
    return str(exc.__cause__ or exc).strip()
