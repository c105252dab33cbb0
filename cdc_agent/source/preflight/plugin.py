"""The slot and its output plugin: tried for real with a temporary slot where that is allowed."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import sql

from cdc_agent.errors import CdcAgentError
from cdc_agent.source.connection import connect
from cdc_agent.source.preflight.facts import SQL, Role, Server, Slot, Wanted, Writer, ask
from cdc_agent.source.preflight.findings import Finding, failed, literal, passed, quote
from cdc_agent.source.preflight.reaching import text_of, unreachable

#: The server's default of ``output_plugin_libraries``.
_DEFAULT_LIBRARIES = ("pgoutput", "test_decoding")


def own_slot(slot: Slot, wanted: Wanted, role: Role) -> Finding:
    name = wanted.slot_name
    fault = _slot_fault(slot, wanted, role)
    if fault is None:
        state = f"process {slot.active_pid} streams from it" if slot.active_pid else "nobody streams from it"
        return passed("slot", f"slot {name} is ours to use, {state}")
    # Active means alive: whoever reads it would lose their place.
    end = f"select pg_terminate_backend({slot.active_pid}); " if slot.active_pid else ""
    return failed(
        "slot",
        f"slot {name} {fault}",
        "choose another source.slot_name; or, if nobody needs this one, drop it and resync: "
        f"{end}select pg_drop_replication_slot({literal(name)});",
    )


def _slot_fault(slot: Slot, wanted: Wanted, role: Role) -> str | None:
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


def plugin_allowed(server: Server, plugin: str) -> Finding:
    if server.plugin_libraries is None:
        return passed("plugin allowed", f"no list of allowed plugins that this role can see leaves {plugin} out")
    if plugin in _setting_list(server.plugin_libraries):
        return passed("plugin allowed", f"the server lets {plugin} decode")
    return _not_allowed("plugin allowed", plugin, _setting_list(server.plugin_libraries))


def _not_allowed(name: str, plugin: str, allowed: Sequence[str]) -> Finding:
    # A list, not one string: quoting the whole would name one library with commas in it.
    libraries = ", ".join(_list_item(library) for library in [*allowed, plugin])
    return failed(
        name,
        f"{plugin} is not among the server's output_plugin_libraries, slots that use it fail",
        f"run as a superuser: alter system set output_plugin_libraries = {libraries}; select pg_reload_conf();",
    )


def _setting_list(value: str) -> list[str]:
    quoted_or_bare = re.findall(r'"((?:[^"]|"")*)"|([^,\s"]+)', value)
    return [quoted.replace('""', '"') or bare for quoted, bare in quoted_or_bare]


def _list_item(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else quote(name)


def try_replication(
    connection: psycopg.Connection[Any], dsn: str, wanted: Wanted, server: Server, *, has_slot: bool
) -> Iterator[Finding]:
    try:
        with connect(dsn, replication=True) as replication:
            replication.execute("IDENTIFY_SYSTEM").fetchone()
            yield passed("replication connection", "a replication connection opens")
            # pgoutput is part of every server; a slot that exists has proved its plugin.
            if wanted.plugin != "pgoutput" and not has_slot:
                yield _try_plugin(connection, replication, wanted.plugin, server)
    except (psycopg.Error, CdcAgentError) as exc:
        yield unreachable(dsn, text_of(exc), "replication connection")


def _try_plugin(
    connection: psycopg.Connection[Any], replication: psycopg.Connection[Any], plugin: str, server: Server
) -> Finding:
    """Make a temporary slot: the one proof that library, allow-list and privileges work together."""
    name = sql.Identifier(f"cdc_agent_check_{secrets.token_hex(6)}")
    # The old spelling of the option is the one that all versions take.
    create = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL {} NOEXPORT_SNAPSHOT")
    try:
        replication.execute(SQL["wait_briefly"])
        replication.execute(create.format(name, sql.Identifier(plugin)))
        # Its session's end would drop it too, but a moment after us; the daemon may want the place at once.
        replication.execute(sql.SQL("DROP_REPLICATION_SLOT {}").format(name))
    except psycopg.errors.LockNotAvailable:
        return _blocked(ask(connection, Writer, "writers"))
    except psycopg.Error as exc:
        return _no_plugin(plugin, server, exc)
    return passed("plugin", f"{plugin} decodes (tried with a temporary slot)")


def _blocked(writers: Sequence[Writer]) -> Finding:
    """Advice, not a failure: the daemon's own slot will wait the same way, and then go on."""
    named = "; ".join(
        f"{f'process {w.pid}' if w.pid else f'prepared transaction {w.gid}'} of {w.role} in {w.database}"
        for w in writers
    )
    ends = [
        f"select pg_terminate_backend({w.pid});" if w.pid else f"rollback prepared {literal(w.gid or '')};"
        for w in writers
    ]
    return passed(
        "plugin",
        f"not tried: a new slot waits for every open write transaction ({named or 'they have just ended'})",
        " ".join(["wait for them, or end them:", *ends]) if ends else "check again",
    )


def _no_plugin(plugin: str, server: Server, exc: psycopg.Error) -> Finding:
    if exc.sqlstate == "42501" and "output_plugin_libraries" in (exc.diag.message_hint or ""):
        # We may not see the list; this is what it is unless somebody changed it.
        return _not_allowed("plugin", plugin, _DEFAULT_LIBRARIES)
    text = text_of(exc).split("\n")[0]
    if exc.sqlstate == "58P01":
        package = f"postgresql-{server.version_num // 10000}-{plugin}"
        message = f"the server has no library {plugin}"
        hint = (
            f"on the server's machine run `apt-get install {package}`, or set source.plugin: pgoutput, which needs none"
        )
    else:
        message = f"{plugin} cannot decode: {text}"
        hint = "set source.plugin: pgoutput, which is part of every server"
    return failed("plugin", message, hint)
