"""Asks whether a database is set up for us, and says for every answer of no which SQL, command or setting mends it.

Owns the questions and their remedies. Changes nothing on the server: its session is read-only, and the one thing it
makes, a temporary slot that proves a plugin outside Postgres, is gone before ``check`` returns. Whether slot, stream,
ledger and store belong together is not asked here.

A finding that is not ok stops the daemon. A finding that is ok and has a hint is advice.
"""

from __future__ import annotations

import difflib
import re
import secrets
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import class_row

from cdc_agent import queries
from cdc_agent.errors import CdcAgentError, PreflightError
from cdc_agent.source.connection import connect

__all__ = ["Finding", "check", "require"]

_SQL = queries.load("cdc_agent.source", "preflight.sql")
_OLDEST_VERSION = 140000
#: From here on a publication can send stored generated columns.
_SENDS_GENERATED = 180000
_NO_COLUMNS: Mapping[tuple[str, str], Collection[str]] = MappingProxyType({})
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One question and its answer. ``hint`` mends what is not ok; on a finding that is ok it is advice."""

    name: str
    ok: bool
    message: str
    hint: str = ""


def check(
    dsn: str,
    *,
    slot_name: str,
    publication_name: str,
    plugin: str,
    tables: Sequence[tuple[str, str]],
    columns: Mapping[tuple[str, str], Collection[str]] = _NO_COLUMNS,
) -> list[Finding]:
    """Examine the server, the role, the slot, the publication and every table. Never raises for what it finds.

    ``columns`` names the columns that a table must have and send. A question whose answer hangs on one that failed is
    left out, so each failure stands there once.
    """
    wanted = _Wanted(slot_name, publication_name, plugin, tuple(dict.fromkeys(tables)), columns)
    if fault := _dsn_fault(dsn):
        return [fault]
    findings: list[Finding] = []
    try:
        with connect(dsn) as connection:
            connection.execute(_SQL["calm_session"])
            findings.append(_yes("connection", f"connected to {_Address.of(dsn)}"))
            # One by one: later questions look at the answers so far.
            for finding in _examine(connection, dsn, wanted, findings):
                findings.append(finding)
    except (psycopg.Error, CdcAgentError) as exc:
        findings.append(_unreachable(dsn, _text_of(exc)))
    return findings


def require(findings: Iterable[Finding]) -> None:
    """Raise one ``PreflightError`` that says everything that is not ok."""
    failed = [finding for finding in findings if not finding.ok]
    if failed:
        lines = [f"- {f.name}: {f.message}\n  hint: {f.hint}" for f in failed]
        raise PreflightError(
            "the database is not ready for change capture:\n" + "\n".join(lines),
            hint="mend the above, then `cdc-agent check` says whether anything is left",
        )


def _yes(name: str, message: str, advice: str = "") -> Finding:
    return Finding(name=name, ok=True, message=message, hint=advice)


def _no(name: str, message: str, hint: str) -> Finding:
    return Finding(name=name, ok=False, message=message, hint=hint)


# --- what is asked for, and what the catalogs answer


@dataclass(frozen=True, slots=True)
class _Wanted:
    slot_name: str
    publication_name: str
    plugin: str
    tables: tuple[tuple[str, str], ...]
    columns: Mapping[tuple[str, str], Collection[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    version_num: int
    version: str
    in_recovery: bool
    wal_level: str
    raises_wal_level: bool
    max_slots: int
    used_slots: int
    idle_slots: Sequence[str]
    max_senders: int
    used_senders: int
    max_slot_wal_keep_size: str
    plugin_libraries: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Role:
    name: str
    is_superuser: bool
    may_replicate: bool
    on_rds: bool
    has_rds_replication: bool
    database: str
    may_create: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    type: str
    plugin: str | None
    database: str | None
    active_pid: int | None
    wal_status: str | None
    invalidation_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Relation:
    root_oid: int
    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    identity: str
    is_publishable: bool
    owner: str
    is_ours: bool
    may_select: bool
    hides_rows: bool
    ancestor_oids: Sequence[int]
    ancestor_schema_oids: Sequence[int]
    children: Sequence[str]
    parent: str | None
    partition_columns: Sequence[str]

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def quoted(self) -> str:
        return _quote(self.schema, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    relation_oid: int
    name: str
    is_primary: bool
    is_identity: bool
    columns: Sequence[str]
    fault: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    relation_oid: int
    name: str
    generated: str
    expression: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Publication:
    all_tables: bool
    inserts: bool
    updates: bool
    deletes: bool
    truncates: bool
    via_root: bool
    sends_generated: bool
    is_ours: bool
    relation_oids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Published:
    oid: int
    row_filter: str | None
    columns: Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _TableName:
    schema: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Oid:
    oid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    pid: int | None
    gid: str | None
    role: str
    database: str
    application: str
    age: int


def _ask(connection: psycopg.Connection[Any], kind: type[_T], query: str, **params: object) -> list[_T]:
    with connection.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(_SQL[query], params).fetchall()


def _quote(*names: str) -> str:
    return sql.Identifier(*names).as_string()


def _literal(value: str) -> str:
    return sql.Literal(value).as_string()


def _list(names: Iterable[str]) -> str:
    return ", ".join(_quote(name) for name in names)


# --- reaching the server


@dataclass(frozen=True, slots=True)
class _Address:
    """Where a DSN leads, without its password. Defaults and PG* variables are filled in as libpq does."""

    host: str
    port: str
    user: str
    database: str

    @classmethod
    def of(cls, dsn: str) -> _Address:
        given = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value}
        options = pq.Conninfo.get_defaults()
        merged = {option.keyword.decode(): option.val.decode() for option in options if option.val} | given
        user = merged.get("user", "")
        host = merged.get("host") or merged.get("hostaddr") or ""
        return cls(host, merged.get("port", "5432"), user, merged.get("dbname") or user)

    def __str__(self) -> str:
        return f"{self.host or 'the local socket'} port {self.port}, database {self.database}, as {self.user}"


def _dsn_fault(dsn: str) -> Finding | None:
    """Catch a DSN that libpq would take apart wrongly. Its text is never repeated: it may hold the password."""
    try:
        address = _Address.of(dsn)
    except psycopg.Error:
        address = _Address("@", "", "", "")
    if "@" not in address.host and all(port.isdigit() for port in address.port.split(",")):
        return None
    return _no(
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
        "correct sslmode and sslrootcert in source.dsn; the server offers TLS when `show ssl` says on",
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
_LAST_RESORT = ("Postgres answered: {text}", "connect by hand, the same way: psql {at_sh}")


def _unreachable(dsn: str, text: str, name: str = "connection") -> Finding:
    facts = _connection_facts(dsn, text)
    sentence, remedy = next(
        ((sentence, remedy) for pattern, sentence, remedy in _NO_CONNECTION if re.search(pattern, text)), _LAST_RESORT
    )
    return _no(name, sentence.format(**facts), remedy.format(**facts))


def _connection_facts(dsn: str, text: str) -> dict[str, str]:
    address = _Address.of(dsn)
    password = conninfo_to_dict(dsn).get("password")
    shown = text.replace(str(password), "***") if password else text
    return {
        "text": shown.split("failed: ")[-1].split("\n")[0],
        "host": address.host or "the local socket",
        "port": address.port,
        "user": address.user,
        "database": address.database,
        "user_sql": _quote(address.user),
        "database_sql": _quote(address.database),
        "host_sh": shlex.quote(address.host),
        "at_sh": f"-h {shlex.quote(address.host)} -p {address.port}" if address.host else f"-p {address.port}",
        "hba_line": _hba_line(address, text),
    }


def _hba_line(address: _Address, text: str) -> str:
    names = f"{_quote(address.database)} {_quote(address.user)}"
    client = re.search(r'host "([^"]+)"', text)
    if client is None or client[1] == "[local]":
        return f"local {names} scram-sha-256"
    kind = "hostssl" if "SSL encryption" in text else "host"
    return f"{kind} {names} {client[1]}/{128 if ':' in client[1] else 32} scram-sha-256"


def _text_of(exc: BaseException) -> str:
    """The server's own words: our connection errors carry psycopg's as their cause."""
    return str(exc.__cause__ or exc).strip()


# --- the order of the questions


def _examine(
    connection: psycopg.Connection[Any], dsn: str, wanted: _Wanted, so_far: Sequence[Finding]
) -> Iterator[Finding]:
    """Ask from the server inwards. ``so_far`` grows with what we yield and says what need not be asked any more."""
    if connection.info.server_version < _OLDEST_VERSION:
        yield _old_version(connection.info.server_version)
        return
    (server,) = _ask(connection, _Server, "server")
    (role,) = _ask(connection, _Role, "role")
    slot = next(iter(_ask(connection, _Slot, "slot", slot=wanted.slot_name)), None)
    yield _yes("server version", f"Postgres {server.version}")
    yield _primary(server)
    yield _wal_level(server)
    yield _retention(server)
    yield _replication_right(role)
    yield _privileges(role, wanted)
    yield _free_slots(server, slot)
    yield _free_senders(server, slot)
    yield _plugin_allowed(server, wanted.plugin)
    if slot:
        yield _own_slot(slot, wanted, role)
    if all(finding.ok for finding in so_far) and server.used_senders < server.max_senders:
        yield from _try_replication(connection, dsn, wanted, server, has_slot=slot is not None)
    yield from _tables(connection, wanted, server, role, slot)


# --- server


def _old_version(version_num: int) -> Finding:
    return _no(
        "server version",
        f"Postgres {version_num // 10000} is older than 14",
        "upgrade the server to Postgres 14 or later (pg_upgrade --link keeps the data in place)",
    )


def _primary(server: _Server) -> Finding:
    if not server.in_recovery:
        return _yes("primary", "the server takes writes")
    return _no(
        "primary",
        "the server is a standby: no publication, slot or resync mark can be written there",
        "let source.dsn find the primary: name all hosts and add target_session_attrs=read-write "
        "(postgresql://user@host1,host2/database?target_session_attrs=read-write)",
    )


def _wal_level(server: _Server) -> Finding:
    # From Postgres 19 on the first slot raises the level by itself.
    ok = server.wal_level == "logical" or (server.wal_level == "replica" and server.raises_wal_level)
    hint = (
        "run as a superuser: alter system set wal_level = logical; and restart the server "
        "(Amazon RDS: parameter rds.logical_replication = 1; Cloud SQL: flag cloudsql.logical_decoding = on)"
    )
    message = f"wal_level is {server.wal_level}" + ("" if ok else ", changes cannot be decoded from it")
    return Finding(name="wal_level", ok=ok, message=message, hint="" if ok else hint)


def _retention(server: _Server) -> Finding:
    bound = server.max_slot_wal_keep_size
    if bound != "-1":
        return _yes("wal retention", f"slots keep {bound} of WAL at most")
    return _yes(
        "wal retention",
        "a slot that nobody reads keeps WAL until the disk is full",
        "bound it, well above what a day writes: "
        "alter system set max_slot_wal_keep_size = '50GB'; select pg_reload_conf();",
    )


def _free_slots(server: _Server, slot: _Slot | None) -> Finding:
    ok = slot is not None or server.used_slots < server.max_slots
    idle = f" (idle: {', '.join(server.idle_slots)})" if server.idle_slots else ""
    return Finding(
        name="replication slots",
        ok=ok,
        message=f"{server.used_slots} of {server.max_slots} replication slots are used" + ("" if ok else idle),
        hint="" if ok else _more("max_replication_slots", server.used_slots, "or drop a slot that nobody reads"),
    )


def _free_senders(server: _Server, slot: _Slot | None) -> Finding:
    # A daemon that streams from our slot holds one of them for us.
    ours = slot is not None and slot.active_pid is not None
    ok = ours or server.used_senders < server.max_senders
    return Finding(
        name="wal senders",
        ok=ok,
        message=f"{server.used_senders} of {server.max_senders} WAL senders are used",
        hint="" if ok else _more("max_wal_senders", server.used_senders, "or end a sender that nobody needs"),
    )


def _more(setting: str, used: int, otherwise: str) -> str:
    return f"run as a superuser: alter system set {setting} = {used + 10}; and restart the server, {otherwise}"


# --- role


def _replication_right(role: _Role) -> Finding:
    if role.is_superuser or role.may_replicate or role.has_rds_replication:
        return _yes("replication right", f"role {role.name} may replicate")
    change = (
        f"grant rds_replication to {_quote(role.name)};"
        if role.on_rds
        else f"alter role {_quote(role.name)} replication;"
    )
    return _no("replication right", f"role {role.name} may not replicate", f"run as a superuser: {change}")


def _privileges(role: _Role, wanted: _Wanted) -> Finding:
    if not role.is_superuser:
        return _yes("privileges", f"role {role.name} is no superuser")
    grants = "".join(f" grant select on table {_quote(*table)} to cdc_agent;" for table in wanted.tables)
    return _yes(
        "privileges",
        f"role {role.name} is a superuser, far more than reading changes needs",
        "give the daemon a role of its own: create role cdc_agent login replication; "
        f"grant connect on database {_quote(role.database)} to cdc_agent;{grants} and in psql: \\password cdc_agent",
    )


# --- slot and plugin


def _own_slot(slot: _Slot, wanted: _Wanted, role: _Role) -> Finding:
    name = wanted.slot_name
    fault = _slot_fault(slot, wanted, role)
    if fault is None:
        state = f"process {slot.active_pid} streams from it" if slot.active_pid else "nobody streams from it"
        return _yes("slot", f"slot {name} is ours to use, {state}")
    # Active means alive: whoever reads it would lose their place.
    end = f"select pg_terminate_backend({slot.active_pid}); " if slot.active_pid else ""
    return _no(
        "slot",
        f"slot {name} {fault}",
        "choose another source.slot_name; or, if nobody needs this one, drop it and resync: "
        f"{end}select pg_drop_replication_slot({_literal(name)});",
    )


def _slot_fault(slot: _Slot, wanted: _Wanted, role: _Role) -> str | None:
    if slot.type != "logical":
        return "is a physical slot, a standby's"
    if slot.plugin != wanted.plugin:
        return f"speaks {slot.plugin}, source.plugin is {wanted.plugin}"
    if slot.database != role.database:
        return f"belongs to database {slot.database}, source.dsn leads to {role.database}"
    if slot.wal_status == "lost" or slot.invalidation_reason:
        reason = slot.invalidation_reason or "max_slot_wal_keep_size was exceeded"
        return f"is lost, the server has removed WAL that it needs ({reason})"
    return None


def _plugin_allowed(server: _Server, plugin: str) -> Finding:
    if server.plugin_libraries is None or plugin in _setting_list(server.plugin_libraries):
        return _yes("plugin allowed", f"the server lets {plugin} decode")
    # A list, not one string: quoting the whole would name one library with commas in it.
    libraries = ", ".join(_list_item(name) for name in [*_setting_list(server.plugin_libraries), plugin])
    return _no(
        "plugin allowed",
        f"{plugin} is not among the server's output_plugin_libraries, slots that use it fail",
        f"run as a superuser: alter system set output_plugin_libraries = {libraries}; select pg_reload_conf();",
    )


def _setting_list(value: str) -> list[str]:
    quoted_or_bare = re.findall(r'"((?:[^"]|"")*)"|([^,\s"]+)', value)
    return [quoted.replace('""', '"') or bare for quoted, bare in quoted_or_bare]


def _list_item(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else _quote(name)


def _try_replication(
    connection: psycopg.Connection[Any], dsn: str, wanted: _Wanted, server: _Server, *, has_slot: bool
) -> Iterator[Finding]:
    try:
        with connect(dsn, replication=True) as replication:
            replication.execute("IDENTIFY_SYSTEM").fetchone()
            yield _yes("replication connection", "a replication connection opens")
            # pgoutput is part of every server; a slot that exists has proved its plugin.
            if wanted.plugin != "pgoutput" and not has_slot:
                yield _try_plugin(connection, replication, wanted.plugin, server)
    except (psycopg.Error, CdcAgentError) as exc:
        yield _unreachable(dsn, _text_of(exc), "replication connection")


def _try_plugin(
    connection: psycopg.Connection[Any], replication: psycopg.Connection[Any], plugin: str, server: _Server
) -> Finding:
    """Make a temporary slot: the one proof that library, allow-list and privileges work together."""
    name = sql.Identifier(f"cdc_agent_check_{secrets.token_hex(6)}")
    # The old spelling of the option is the one that all versions take.
    create = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL {} NOEXPORT_SNAPSHOT")
    try:
        replication.execute(_SQL["wait_briefly"])
        replication.execute(create.format(name, sql.Identifier(plugin)))
        # Its session's end would drop it too, but a moment after us; the daemon may want the place at once.
        replication.execute(sql.SQL("DROP_REPLICATION_SLOT {}").format(name))
    except psycopg.errors.LockNotAvailable:
        return _blocked(_ask(connection, _Writer, "writers"))
    except psycopg.Error as exc:
        return _no_plugin(plugin, server, exc)
    return _yes("plugin", f"{plugin} decodes (tried with a temporary slot)")


def _blocked(writers: Sequence[_Writer]) -> Finding:
    """Advice, not a failure: the daemon's own slot will wait the same way, and then go on."""
    named = "; ".join(
        f"{f'process {w.pid}' if w.pid else f'prepared transaction {w.gid}'} of {w.role} in {w.database}"
        for w in writers
    )
    ends = [
        f"select pg_terminate_backend({w.pid});" if w.pid else f"rollback prepared {_literal(w.gid or '')};"
        for w in writers
    ]
    return _yes(
        "plugin",
        f"not tried: a new slot waits for every open write transaction ({named or 'they have just ended'})",
        " ".join(["wait for them, or end them:", *ends]) if ends else "check again",
    )


def _no_plugin(plugin: str, server: _Server, exc: psycopg.Error) -> Finding:
    text = _text_of(exc).split("\n")[0]
    if exc.sqlstate == "58P01":
        package = f"postgresql-{server.version_num // 10000}-{plugin}"
        message = f"the server has no library {plugin}"
        hint = (
            f"on the server's machine run `apt-get install {package}`, or set source.plugin: pgoutput, which needs none"
        )
    else:
        message = f"{plugin} cannot decode: {text}"
        hint = "set source.plugin: pgoutput, which is part of every server"
    return _no("plugin", message, hint)


# --- tables


@dataclass(frozen=True, slots=True)
class _Catalog:
    """The wanted tables that exist, and what belongs to them, by oid."""

    roots: Mapping[tuple[str, str], _Relation]
    leaves: Mapping[int, Sequence[_Relation]]
    indexes: Mapping[int, Sequence[_Index]]
    columns: Mapping[int, Sequence[_Column]]

    @classmethod
    def read(cls, connection: psycopg.Connection[Any], wanted: _Wanted) -> _Catalog:
        schemas, names = [schema for schema, _ in wanted.tables], [name for _, name in wanted.tables]
        relations = _ask(connection, _Relation, "relations", schemas=schemas, names=names)
        oids = [relation.oid for relation in relations]
        indexes = _ask(connection, _Index, "unique_indexes", oids=oids)
        columns = _ask(connection, _Column, "columns", oids=oids)
        return cls(
            {(r.schema, r.name): r for r in relations if r.oid == r.root_oid},
            {oid: [r for r in relations if r.root_oid == oid and r.oid != oid] for oid in oids},
            {oid: [index for index in indexes if index.relation_oid == oid] for oid in oids},
            {oid: [column for column in columns if column.relation_oid == oid] for oid in oids},
        )


def _tables(
    connection: psycopg.Connection[Any], wanted: _Wanted, server: _Server, role: _Role, slot: _Slot | None
) -> Iterator[Finding]:
    catalog = _Catalog.read(connection, wanted)
    sound: list[_Relation] = []
    for table in wanted.tables:
        root = catalog.roots.get(table)
        existence = _suitable(root) if root else _missing(connection, table)
        yield existence
        if root and existence.ok:
            sound.append(root)
            yield from _one_table(root, catalog, wanted, role)
    publication = None
    # wal2json reads every table and knows no publications.
    if wanted.plugin == "pgoutput" and sound:
        publication = next(
            iter(_ask(connection, _Publication, "publication", publication=wanted.publication_name)), None
        )
        if publication is None:
            yield _absent_publication(wanted, role, sound, slot)
        else:
            yield from _publication(connection, publication, wanted, server, catalog, sound)
    for root in sound:
        yield from _generated(root, publication, wanted, server, catalog)


def _one_table(root: _Relation, catalog: _Catalog, wanted: _Wanted, role: _Role) -> Iterator[Finding]:
    yield _readable(root, role)
    if root.hides_rows:
        yield _hidden_rows(root, role)
    yield from _identity(root, catalog)
    yield from _columns(root, catalog, wanted)


def _missing(connection: psycopg.Connection[Any], table: tuple[str, str]) -> Finding:
    schema, name = table
    all_names = _ask(connection, _TableName, "table_names")
    near = difflib.get_close_matches(name, [t.name for t in all_names if t.schema == schema], n=1)
    suggestions = [(schema, found) for found in near] or [(t.schema, t.name) for t in all_names if t.name == name]
    hint = f"correct `table:` in the configuration, or create {_quote(schema, name)}"
    if suggestions:
        hint = "write `table: " + " or ".join(".".join(found) for found in suggestions) + "`"
    return _no(f"table {schema}.{name}", "there is no such table", hint)


#: Relations that look like tables and whose changes no log holds, by pg_class.relkind.
_NOT_TABLES = {
    "v": ("a view", "name the tables that it reads (`query:` with `depends_on:`)"),
    "m": ("a materialized view", "name the tables that it reads (`query:` with `depends_on:`)"),
    "f": ("a foreign table", "let source.dsn lead to the server that holds its rows"),
}


def _suitable(relation: _Relation) -> Finding:
    fault, hint = _unsuitable(relation) or ("", "")
    kind = "a partitioned table" if relation.kind == "p" else "an ordinary table"
    return Finding(name=f"table {relation}", ok=not fault, message=fault or f"is {kind}", hint=hint)


def _unsuitable(relation: _Relation) -> tuple[str, str] | None:
    table = relation.quoted
    if relation.kind not in ("r", "p"):
        what, hint = _NOT_TABLES.get(relation.kind, ("no table", "name a table"))
        return f"is {what}, its changes are not in the log", hint
    if relation.persistence == "t":
        return "is a temporary table, it is never in the log", "name an ordinary table"
    if relation.persistence == "u":
        return (
            "is unlogged, its changes are not in the log",
            f"run as {relation.owner}: alter table {table} set logged;",
        )
    if not relation.is_publishable:
        return "is a system table, its changes are not published", "name a table of your own"
    if relation.children:
        cuts = " ".join(f"alter table {child} no inherit {table};" for child in relation.children)
        return (
            f"has tables that inherit from it ({', '.join(relation.children)}); their changes come under other names",
            f"make them partitions, or run as {relation.owner} and name each as a table: {cuts}",
        )
    return None


def _readable(relation: _Relation, role: _Role) -> Finding:
    if relation.may_select:
        return _yes(f"select on {relation}", f"role {role.name} may read it")
    user = _quote(role.name)
    return _no(
        f"select on {relation}",
        f"role {role.name} may not read it; the first copy and every resync would fail",
        f"run as {relation.owner}: grant usage on schema {_quote(relation.schema)} to {user}; "
        f"grant select on table {relation.quoted} to {user};",
    )


def _hidden_rows(relation: _Relation, role: _Role) -> Finding:
    return _no(
        f"rows of {relation}",
        f"row security hides rows from {role.name} that the log shows; a resync would delete their documents",
        f"run as a superuser: alter role {_quote(role.name)} bypassrls;",
    )


def _columns(root: _Relation, catalog: _Catalog, wanted: _Wanted) -> Iterator[Finding]:
    needed = wanted.columns.get((root.schema, root.name), ())
    present = [column.name for column in catalog.columns[root.oid]]
    missing = [name for name in needed if name not in present]
    if needed and not missing:
        yield _yes(f"columns of {root}", f"has {', '.join(needed)}")
    for name in missing:
        near = difflib.get_close_matches(name, present, n=1)
        hint = f"write {near[0]} in place of {name}" if near else f"its columns are {', '.join(present)}"
        yield _no(f"columns of {root}", f"there is no column {name}", hint)


# --- document keys: what tells one row of a table from another, in the log and in a read


def _identity(root: _Relation, catalog: _Catalog) -> Iterator[Finding]:
    """The table must be able to say which row changed; each leaf partition must say it with the same columns."""
    indexes, leaves = catalog.indexes[root.oid], catalog.leaves[root.oid]
    unsuitable = [leaf for leaf in leaves if _unsuitable(leaf)]
    # First, for a partition on another server keeps the table from having a key at all.
    yield from map(_unsuitable_leaf, unsuitable)
    key = _key(root, indexes)
    if key is None:
        yield _no_key(root, indexes)
        return
    yield _yes(f"key of {root}", f"rows are known by {', '.join(key)}")
    for leaf in leaves:
        if leaf not in unsuitable:
            yield _leaf_key(leaf, catalog.indexes[leaf.oid], key)


def _unsuitable_leaf(leaf: _Relation) -> Finding:
    message, hint = _unsuitable(leaf) or ("", "")
    if leaf.kind == "f":
        hint = f"run as {leaf.owner}: alter table {leaf.parent} detach partition {leaf.quoted};"
    return _no(f"partition {leaf}", message, hint)


def _key(relation: _Relation, indexes: Sequence[_Index]) -> tuple[str, ...] | None:
    """The columns that identify a row in every update and delete, or None."""
    if relation.identity == "n":
        return None
    by_index = relation.identity == "i"
    chosen = (index for index in indexes if (index.is_identity if by_index else index.is_primary))
    return next((tuple(index.columns) for index in chosen if index.fault is None), None)


def _no_key(relation: _Relation, indexes: Sequence[_Index]) -> Finding:
    statements = _give_key(relation, indexes)
    return _no(
        f"key of {relation}",
        f"{_why_no_key(relation, indexes)}; the log would not say which row an update or delete means",
        f"run as {relation.owner}: {statements}",
    )


def _why_no_key(relation: _Relation, indexes: Sequence[_Index]) -> str:
    if relation.identity == "n":
        return "its replica identity is nothing"
    if relation.identity == "i":
        return "the index of its replica identity was dropped"
    faulty = "".join(f", unique index {index.name} {index.fault}" for index in indexes if index.fault)
    primary = "its primary key cannot serve" if any(i.is_primary for i in indexes) else "it has no primary key"
    return primary + faulty


def _give_key(relation: _Relation, indexes: Sequence[_Index]) -> str:
    """The mildest SQL that gives the table an identity: use what is there, then add an index, then a column."""
    table = relation.quoted
    primary = next((index for index in indexes if index.is_primary), None)
    if primary and primary.fault is None:
        return f"alter table {table} replica identity default;"
    fit = next((index for index in indexes if index.fault is None), None)
    if fit:
        return _use_index(relation, fit.name)
    if primary:
        # Foreign keys may hang on a deferrable primary key, so it stays and gets a companion.
        name = f"{relation.name[:50]}_cdc_key"
        create = f"create unique index {_quote(name)} on {table} ({_list(primary.columns)});"
        return f"{create} {_use_index(relation, name)}"
    nullable = next((index for index in indexes if index.fault == "has nullable columns"), None)
    if nullable:
        changes = ", ".join(f"alter column {_quote(column)} set not null" for column in nullable.columns)
        return f"alter table {table} {changes}; {_use_index(relation, nullable.name)}"
    return f"add a primary key over the columns that identify a row; if none do: {_add_key(relation)}"


def _add_key(relation: _Relation) -> str:
    table = relation.quoted
    # The key of a partitioned table must contain the columns that it is partitioned by.
    add = "add column cdc_id bigint generated always as identity primary key"
    if relation.kind == "p":
        key = _list(["cdc_id", *relation.partition_columns])
        add = f"add column cdc_id uuid not null default gen_random_uuid(), add primary key ({key})"
    # Nothing, or a dropped index, would stay the identity beside the new key.
    then = f" alter table {table} replica identity default;" if relation.identity in ("n", "i") else ""
    return f"alter table {table} {add};{then}"


def _use_index(relation: _Relation, index: str) -> str:
    return f"alter table {relation.quoted} replica identity using index {_quote(index)};"


def _leaf_key(leaf: _Relation, indexes: Sequence[_Index], key: tuple[str, ...]) -> Finding:
    own = _key(leaf, indexes)
    if own is not None and set(own) == set(key):
        return _yes(f"partition {leaf}", "rows are known by the same columns")
    told = f"identifies rows by {', '.join(own)}" if own else _why_no_key(leaf, indexes)
    return _no(
        f"partition {leaf}",
        f"{told}, the partitioned table by {', '.join(key)}",
        f"run as {leaf.owner}: {_same_key(leaf, indexes, key)}",
    )


def _same_key(leaf: _Relation, indexes: Sequence[_Index], key: tuple[str, ...]) -> str:
    fit = next((index for index in indexes if index.fault is None and set(index.columns) == set(key)), None)
    if fit is None:
        return _give_key(leaf, indexes)
    return f"alter table {leaf.quoted} replica identity default;" if fit.is_primary else _use_index(leaf, fit.name)


# --- publication


def _absent_publication(wanted: _Wanted, role: _Role, sound: Sequence[_Relation], slot: _Slot | None) -> Finding:
    name = wanted.publication_name
    if slot is not None and slot.plugin == wanted.plugin:
        return _publication_lost(name, wanted.slot_name)
    if role.may_create and all(root.is_ours for root in sound):
        return _yes("publication", f"publication {name} will be created")
    tables = ", ".join(root.quoted for root in sound)
    return _no(
        "publication",
        f"there is no publication {name}, and role {role.name} may not create it: that takes the ownership of "
        f"every table and the right to create in database {role.database}",
        f"run as a superuser: create publication {_quote(name)} for table {tables};",
    )


def _publication_lost(name: str, slot_name: str) -> Finding:
    """The log is decoded with the catalog of its time: a publication made now does not mend a slot from before."""
    return _no(
        "publication",
        f"slot {slot_name} exists and its publication {name} does not; the slot can never be read again",
        f"give up the slot, check again, then resync: select pg_drop_replication_slot({_literal(slot_name)});",
    )


def _publication(
    connection: psycopg.Connection[Any],
    publication: _Publication,
    wanted: _Wanted,
    server: _Server,
    catalog: _Catalog,
    sound: Sequence[_Relation],
) -> Iterator[Finding]:
    name = wanted.publication_name
    schemas = _published_schemas(connection, name, server)
    missing = [root for root in sound if not _covers(publication, schemas, root)]
    yield _coverage(name, publication, missing)
    yield from _hidden_parts(connection, wanted, catalog, sound)
    # Last, for Postgres turns publish_via_partition_root off only once no partitioned table has a row filter.
    yield from _options(name, publication)


def _hidden_parts(
    connection: psycopg.Connection[Any], wanted: _Wanted, catalog: _Catalog, sound: Sequence[_Relation]
) -> Iterator[Finding]:
    name, oids = wanted.publication_name, list(catalog.columns)
    published = {p.oid: p for p in _ask(connection, _Published, "published_tables", publication=name, oids=oids)}
    for root in sound:
        for relation in (root, *catalog.leaves[root.oid]):
            # A generated column may be absent without any column list; that is a question of its own.
            generated = {column.name for column in catalog.columns[relation.oid] if column.generated}
            if relation.oid in published:
                needed = _needed(root, wanted, catalog) - generated
                yield from _hidden(name, relation, published[relation.oid], needed)


def _options(name: str, publication: _Publication) -> Iterator[Finding]:
    sends = {
        "insert": publication.inserts,
        "update": publication.updates,
        "delete": publication.deletes,
        "truncate": publication.truncates,
    }
    lacking = [what for what, is_sent in sends.items() if not is_sent]
    if lacking:
        yield _no(
            "publication",
            f"publication {name} does not send: {', '.join(lacking)}",
            f"run as its owner: alter publication {_quote(name)} set (publish = 'insert, update, delete, truncate');",
        )
    if publication.via_root:
        yield _no(
            "publication",
            f"publication {name} publishes via partition roots, which hides the truncation of one partition",
            f"run as its owner: alter publication {_quote(name)} set (publish_via_partition_root = false);",
        )


def _published_schemas(connection: psycopg.Connection[Any], name: str, server: _Server) -> set[int]:
    if server.version_num < 150000:
        return set()
    return {schema.oid for schema in _ask(connection, _Oid, "published_schemas", publication=name)}


def _covers(publication: _Publication, schemas: set[int], root: _Relation) -> bool:
    """Leaves named one by one do not count: the next partition would be missing."""
    by_name = set(publication.relation_oids) & set(root.ancestor_oids)
    return publication.all_tables or bool(by_name) or bool(schemas & set(root.ancestor_schema_oids))


def _coverage(name: str, publication: _Publication, missing: Sequence[_Relation]) -> Finding:
    names = ", ".join(map(str, missing))
    if not missing:
        return _yes("publication", f"publication {name} holds every table")
    if publication.is_ours and all(root.is_ours for root in missing):
        return _yes("publication", f"{names} will be added to publication {name}")
    tables = ", ".join(root.quoted for root in missing)
    return _no(
        "publication",
        f"publication {name} does not hold {names}, and we may not add what others own",
        f"run as a superuser: alter publication {_quote(name)} add table {tables};",
    )


def _needed(root: _Relation, wanted: _Wanted, catalog: _Catalog) -> set[str]:
    key = _key(root, catalog.indexes[root.oid]) or ()
    return {*wanted.columns.get((root.schema, root.name), ()), *key}


def _hidden(name: str, relation: _Relation, published: _Published, needed: set[str]) -> Iterator[Finding]:
    publication, table = _quote(name), relation.quoted
    # Both in one transaction: a change that commits between them would never be sent.
    anew = " ".join(f"alter publication {publication} {verb} table {table};" for verb in ("drop", "add"))
    if published.row_filter:
        yield _no(
            f"publication of {relation}",
            f"publication {name} sends only rows where {published.row_filter}; use `where:` in the collection",
            f"run as its owner: begin; {anew} commit;",
        )
    unsent = needed - set(published.columns) if published.columns is not None else set()
    if unsent:
        yield _no(
            f"publication of {relation}",
            f"publication {name} has a column list without {', '.join(sorted(unsent))}",
            f"run as its owner: begin; {anew} commit;",
        )


# --- generated columns: computed by the server, and not always sent


def _generated(
    root: _Relation, publication: _Publication | None, wanted: _Wanted, server: _Server, catalog: _Catalog
) -> Iterator[Finding]:
    needed = _needed(root, wanted, catalog)
    for column in catalog.columns[root.oid]:
        if not column.generated or column.name not in needed:
            continue
        remedy = _send_generated(column, publication, wanted, server, root)
        if remedy:
            yield _no(
                f"columns of {root}",
                f"{wanted.plugin} does not send generated column {column.name} on Postgres {server.version}",
                f"{remedy} name the columns that it is made of in place of {column.name}: {column.expression}",
            )


def _send_generated(
    column: _Column, publication: _Publication | None, wanted: _Wanted, server: _Server, root: _Relation
) -> str | None:
    """None when the column is sent; else the beginning of a hint that ends with the columns behind it."""
    if column.generated == "v":
        return "a virtual column is never in the log;"
    if wanted.plugin != "pgoutput" or (publication and publication.sends_generated):
        return None
    if server.version_num < _SENDS_GENERATED:
        return "set source.plugin: wal2json, which sends it; or"
    name = _quote(wanted.publication_name)
    if publication:
        return f"run as its owner: alter publication {name} set (publish_generated_columns = stored); or"
    return f"run: create publication {name} for table {root.quoted} with (publish_generated_columns = stored); or"
