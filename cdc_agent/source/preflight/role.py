"""The role that we connect as."""

from __future__ import annotations

from cdc_agent.source.preflight.facts import Role, Wanted
from cdc_agent.source.preflight.findings import Finding, failed, passed, quote


def replication_right(role: Role) -> Finding:
    if role.is_superuser or role.may_replicate or role.has_rds_replication:
        return passed("replication right", f"role {role.name} may replicate")
    change = (
        f"grant rds_replication to {quote(role.name)};"
        if role.on_rds
        else f"alter role {quote(role.name)} replication;"
    )
    return failed("replication right", f"role {role.name} may not replicate", f"run as a superuser: {change}")


def privileges(role: Role, wanted: Wanted) -> Finding:
    if not role.is_superuser:
        return _beyond_need(role)
    grants = "".join(f" grant select on table {quote(*table)} to cdc_agent;" for table in wanted.tables)
    return passed(
        "privileges",
        f"role {role.name} is a superuser, far more than reading changes needs",
        "give the daemon a role of its own: create role cdc_agent login replication; "
        f"grant connect on database {quote(role.database)} to cdc_agent;{grants} and in psql: \\password cdc_agent",
    )


def _beyond_need(role: Role) -> Finding:
    """Rights that reading changes does not need, and that somebody who gets at the password would have."""
    rights = {
        "createdb": role.may_create_databases,
        "createrole": role.may_create_roles,
        "bypassrls": role.bypasses_rls,
    }
    extra = [right for right, given in rights.items() if given]
    if not extra:
        return passed("privileges", f"role {role.name} may no more than it needs to")
    taken = " ".join(f"no{right}" for right in extra)
    return passed(
        "privileges",
        f"role {role.name} has {', '.join(extra)}, more than reading changes needs",
        f"run as a superuser: alter role {quote(role.name)} {taken};",
    )
