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
            findings.append(Finding(name="connection", ok=True, message=f"connected to {_Address.of(dsn)}"))
            findings.extend(_examine(connection, dsn, wanted, findings))
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
    confirmed_flush_lsn: str | None
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
        host = merged.get("host") or merged.get("hostaddr") or "the local socket"
        return cls(host, merged.get("port", "5432"), user, merged.get("dbname") or user)

    def __str__(self) -> str:
        return f"{self.host} port {self.port}, database {self.database}, as {self.user}"


def _dsn_fault(dsn: str) -> Finding | None:
    """Catch a DSN that libpq would take apart wrongly. Its text is never repeated: it may hold the password."""
    try:
        address = _Address.of(dsn)
    except psycopg.Error:
        address = _Address("@", "", "", "")
    if "@" not in address.host and all(port.isdigit() for port in address.port.split(",")):
        return None
    return Finding(
        name="connection",
        ok=False,
        message="source.dsn cannot be read as a Postgres address",
        hint="write postgresql://user:password@host:5432/database and percent-encode special characters of the "
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
        "correct the password in source.dsn (or its file), or set a new one: alter role {user_sql} password '...';",
    ),
    (
        r'role ".*" does not exist',
        "the server has no role {user}",
        "correct the user in source.dsn, or run as a superuser: create role {user_sql} login replication password '...';",
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
        r"too many clients|too many connections|remaining connection slots|requested standby connections",
        "the server has no free connection",
        "end idle sessions, or run as a superuser and restart the server: alter system set max_connections = 200;",
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
        "start the server, or correct host and port in source.dsn, until this succeeds: "
        "pg_isready -h {host_sh} -p {port_sh}",
    ),
    (
        r"timeout expired|timed out|unreachable",
        "{host} port {port} does not answer",
        "open the way (firewall, security group, VPN) until this succeeds: pg_isready -h {host_sh} -p {port_sh}",
    ),
    (
        r"starting up|shutting down|not yet accepting",
        "the server is starting or stopping",
        "try again when this succeeds: pg_isready -h {host_sh} -p {port_sh}",
    ),
)


def _unreachable(dsn: str, text: str) -> Finding:
    for pattern, sentence, remedy in _NO_CONNECTION:
        if re.search(pattern, text):
            break
    else:
        sentence, remedy = "Postgres answered: {text}", "connect by hand, the same way: psql -h {host_sh} -p {port_sh}"
    facts = _connection_facts(dsn, text)
    return Finding(name="connection", ok=False, message=sentence.format(**facts), hint=remedy.format(**facts))


def _connection_facts(dsn: str, text: str) -> dict[str, str]:
    address = _Address.of(dsn)
    password = conninfo_to_dict(dsn).get("password")
    shown = text.replace(str(password), "***") if password else text
    return {
        "text": shown.split("failed: ")[-1].split("\n")[0],
        "host": address.host,
        "port": address.port,
        "user": address.user,
        "database": address.database,
        "user_sql": _quote(address.user),
        "database_sql": _quote(address.database),
        "host_sh": shlex.quote(address.host),
        "port_sh": shlex.quote(address.port),
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
    """Ask from the server inwards. ``so_far`` grows while we yield and says what need not be asked any more."""
    if connection.info.server_version < _OLDEST_VERSION:
        yield _old_version(connection.info.server_version)
        return
    (server,) = _ask(connection, _Server, "server")
    (role,) = _ask(connection, _Role, "role")
    slot = next(iter(_ask(connection, _Slot, "slot", slot=wanted.slot_name)), None)
    yield Finding(name="server version", ok=True, message=f"Postgres {server.version}")
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
    yield from _tables(connection, wanted, server, role)


# --- server


def _old_version(version_num: int) -> Finding:
    return Finding(
        name="server version",
        ok=False,
        message=f"Postgres {version_num // 10000} is older than 14",
        hint="upgrade the server to Postgres 14 or later (pg_upgrade --link keeps the data in place)",
    )


def _primary(server: _Server) -> Finding:
    if not server.in_recovery:
        return Finding(name="primary", ok=True, message="the server takes writes")
    return Finding(
        name="primary",
        ok=False,
        message="the server is a standby: no publication, slot or resync mark can be written there",
        hint="let source.dsn find the primary: name all hosts and add target_session_attrs=read-write "
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
        return Finding(name="wal retention", ok=True, message=f"slots keep {bound} of WAL at most")
    return Finding(
        name="wal retention",
        ok=True,
        message="a slot that nobody reads keeps WAL until the disk is full",
        hint="bound it, well above what a day writes: "
        "alter system set max_slot_wal_keep_size = '50GB'; select pg_reload_conf();",
    )


def _free_slots(server: _Server, slot: _Slot | None) -> Finding:
    ok = slot is not None or server.used_slots < server.max_slots
    idle = f" (idle: {', '.join(server.idle_slots)})" if server.idle_slots else ""
    return Finding(
        name="replication slots",
        ok=ok,
        message=f"{server.used_slots} of {server.max_slots} replication slots are used" + ("" if ok else idle),
        hint="" if ok else _more("max_replication_slots", server.used_slots, "or drop a slot that nobody reads any more"),
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
        return Finding(name="replication right", ok=True, message=f"role {role.name} may replicate")
    change = f"grant rds_replication to {_quote(role.name)};" if role.on_rds else f"alter role {_quote(role.name)} replication;"
    return Finding(
        name="replication right",
        ok=False,
        message=f"role {role.name} may not replicate",
        hint=f"run as a superuser: {change}",
    )


def _privileges(role: _Role, wanted: _Wanted) -> Finding:
    if not role.is_superuser:
        return Finding(name="privileges", ok=True, message=f"role {role.name} is no superuser")
    grants = "".join(f" grant select on table {_quote(*table)} to cdc_agent;" for table in wanted.tables)
    return Finding(
        name="privileges",
        ok=True,
        message=f"role {role.name} is a superuser, far more than reading changes needs",
        hint="give the daemon a role of its own: create role cdc_agent login replication password '...'; "
        f"grant connect on database {_quote(role.database)} to cdc_agent;{grants}",
    )


# --- slot and plugin


def _own_slot(slot: _Slot, wanted: _Wanted, role: _Role) -> Finding:
    name = wanted.slot_name
    fault = _slot_fault(slot, wanted, role)
    if fault is None:
        state = f"process {slot.active_pid} streams from it" if slot.active_pid else "nobody streams from it"
        return Finding(name="slot", ok=True, message=f"slot {name} is ours to use, {state}")
    # Active means alive: whoever reads it would lose their place.
    end = f"select pg_terminate_backend({slot.active_pid}); " if slot.active_pid else ""
    return Finding(
        name="slot",
        ok=False,
        message=f"slot {name} {fault}",
        hint="choose another source.slot_name; or, if nobody needs this one, drop it and resync: "
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
    if slot.confirmed_flush_lsn is None and not slot.active_pid:
        return "was never finished, whoever created it was cut off"
    return None


def _plugin_allowed(server: _Server, plugin: str) -> Finding:
    if server.plugin_libraries is None or plugin in _setting_list(server.plugin_libraries):
        return Finding(name="plugin allowed", ok=True, message=f"the server lets {plugin} decode")
    # A list, not one string: quoting the whole would name one library with commas in it.
    libraries = ", ".join(_list_item(name) for name in [*_setting_list(server.plugin_libraries), plugin])
    return Finding(
        name="plugin allowed",
        ok=False,
        message=f"{plugin} is not among the server's output_plugin_libraries, slots that use it fail",
        hint=f"run as a superuser: alter system set output_plugin_libraries = {libraries}; select pg_reload_conf();",
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
            yield Finding(name="replication connection", ok=True, message="a replication connection opens")
            # pgoutput is part of every server; a slot that exists has proved its plugin.
            if wanted.plugin != "pgoutput" and not has_slot:
                yield _try_plugin(connection, replication, wanted.plugin, server)
    except (psycopg.Error, CdcAgentError) as exc:
        refusal = _unreachable(dsn, _text_of(exc))
        yield Finding(name="replication connection", ok=False, message=refusal.message, hint=refusal.hint)


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
    return Finding(name="plugin", ok=True, message=f"{plugin} decodes (tried with a temporary slot)")


def _blocked(writers: Sequence[_Writer]) -> Finding:
    """Advice, not a failure: the daemon's own slot will wait the same way, and then go on."""
    named = "; ".join(
        f"{f'process {w.pid}' if w.pid else f'prepared transaction {w.gid}'} of {w.role} in {w.database}" for w in writers
    )
    ends = [f"select pg_terminate_backend({w.pid});" if w.pid else f"rollback prepared {_literal(w.gid or '')};" for w in writers]
    return Finding(
        name="plugin",
        ok=True,
        message=f"not tried: a new slot waits for every open write transaction ({named or 'they have just ended'})",
        hint=" ".join(["commit or end them:", *ends]) if ends else "check again",
    )


def _no_plugin(plugin: str, server: _Server, exc: psycopg.Error) -> Finding:
    text = _text_of(exc).split("\n")[0]
    if exc.sqlstate == "58P01":
        package = f"postgresql-{server.version_num // 10000}-{plugin}"
        message = f"the server has no library {plugin}"
        hint = f"on the server's machine run `apt-get install {package}`, or set source.plugin: pgoutput, which needs none"
    else:
        message = f"{plugin} cannot decode: {text}"
        hint = "set source.plugin: pgoutput, which is part of every server"
    return Finding(name="plugin", ok=False, message=message, hint=hint)


# --- tables


def _tables(
    connection: psycopg.Connection[Any], wanted: _Wanted, server: _Server, role: _Role
) -> Iterator[Finding]:
    schemas, names = [schema for schema, _ in wanted.tables], [name for _, name in wanted.tables]
    relations = _ask(connection, _Relation, "relations", schemas=schemas, names=names)
    roots = {(r.schema, r.name): r for r in relations if r.oid == r.root_oid}
    yield from _missing_tables(connection, wanted, roots)
    catalog = _Catalog.read(connection, relations)
    sound = []
    for root in (roots[table] for table in wanted.tables if table in roots):
        found = list(_table(root, catalog, wanted, role))
        yield from found
        if found[0].ok:
            sound.append(root)
    # wal2json reads all tables and knows no publications.
    if wanted.plugin == "pgoutput" and sound:
        yield from _publication(connection, wanted, server, role, sound, catalog)
    yield from _generated_by_wal2json(wanted, sound, catalog)


@dataclass(frozen=True, slots=True)
class _Catalog:
    """What belongs to the wanted tables, by oid."""

    leaves: Mapping[int, Sequence[_Relation]]
    indexes: Mapping[int, Sequence[_Index]]
    columns: Mapping[int, Sequence[_Column]]

    @classmethod
    def read(cls, connection: psycopg.Connection[Any], relations: Sequence[_Relation]) -> _Catalog:
        oids = [relation.oid for relation in relations]
        indexes = _ask(connection, _Index, "unique_indexes", oids=oids)
        columns = _ask(connection, _Column, "columns", oids=[r.oid for r in relations if r.oid == r.root_oid])
        return cls(
            {root: [r for r in relations if r.root_oid == root and r.oid != root] for root in oids},
            {oid: [index for index in indexes if index.relation_oid == oid] for oid in oids},
            {oid: [column for column in columns if column.relation_oid == oid] for oid in oids},
        )

    def streamed(self, root: _Relation) -> Sequence[_Relation]:
        """The relations whose changes the log holds: the leaves of a partitioned table, else the table."""
        return self.leaves[root.oid] if root.kind == "p" else [root]
