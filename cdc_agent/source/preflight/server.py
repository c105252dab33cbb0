"""The server: version, role in replication, WAL settings, free slots and senders."""

from __future__ import annotations

from cdc_agent.source.preflight.facts import Server, Slot
from cdc_agent.source.preflight.findings import Finding, failed, passed

OLDEST_VERSION = 140000


def old_version(version_num: int) -> Finding:
    return failed(
        "server version",
        f"Postgres {version_num // 10000} is older than 14",
        "upgrade the server to Postgres 14 or later (pg_upgrade --link keeps the data in place)",
    )


def primary(server: Server) -> Finding:
    if not server.in_recovery:
        return passed("primary", "the server takes writes")
    return failed(
        "primary",
        "the server is a standby: no publication, slot or resync mark can be written there",
        "let source.dsn find the primary: name all hosts and add target_session_attrs=read-write "
        "(postgresql://user@host1,host2/database?target_session_attrs=read-write)",
    )


def wal_level(server: Server) -> Finding:
    # From Postgres 19 on the first slot raises the level by itself.
    ok = server.wal_level == "logical" or (server.wal_level == "replica" and server.raises_wal_level)
    hint = (
        "run as a superuser: alter system set wal_level = logical; and restart the server "
        "(Amazon RDS: parameter rds.logical_replication = 1; Cloud SQL: flag cloudsql.logical_decoding = on)"
    )
    message = f"wal_level is {server.wal_level}" + ("" if ok else ", changes cannot be decoded from it")
    return Finding(name="wal_level", ok=ok, message=message, hint="" if ok else hint)


def retention(server: Server) -> Finding:
    bound = server.max_slot_wal_keep_size
    if bound != "-1":
        return passed("wal retention", f"slots keep {bound} of WAL at most")
    return passed(
        "wal retention",
        "a slot that nobody reads keeps WAL until the disk is full",
        "bound it, well above what a day writes: "
        "alter system set max_slot_wal_keep_size = '50GB'; select pg_reload_conf();",
    )


def free_slots(server: Server, slot: Slot | None) -> Finding:
    ok = slot is not None or server.used_slots < server.max_slots
    idle = f" (idle: {', '.join(server.idle_slots)})" if server.idle_slots else ""
    return Finding(
        name="replication slots",
        ok=ok,
        message=f"{server.used_slots} of {server.max_slots} replication slots are used" + ("" if ok else idle),
        hint="" if ok else _more("max_replication_slots", server.used_slots, "or drop a slot that nobody reads"),
    )


def free_senders(server: Server, slot: Slot | None) -> Finding:
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
