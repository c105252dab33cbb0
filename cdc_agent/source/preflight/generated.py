"""Generated columns: computed by the server, and not always sent."""

from __future__ import annotations

from collections.abc import Iterator

from cdc_agent.source.preflight.facts import Catalog, Column, Publication, Relation, Server, Wanted
from cdc_agent.source.preflight.findings import Finding, failed, quote
from cdc_agent.source.preflight.publication import columns_needed

#: From here on a publication can send stored generated columns.
_SENDS_GENERATED = 180000


def generated_findings(
    root: Relation, publication: Publication | None, wanted: Wanted, server: Server, catalog: Catalog
) -> Iterator[Finding]:
    needed = columns_needed(root, wanted, catalog)
    for column in catalog.columns[root.oid]:
        if not column.generated or column.name not in needed:
            continue
        remedy = _send_generated(column, publication, wanted, server, root)
        if remedy:
            yield failed(
                f"columns of {root}",
                f"{wanted.plugin} does not send generated column {column.name} on Postgres {server.version}",
                f"{remedy} name the columns that it is made of in place of {column.name}: {column.expression}",
            )


def _send_generated(
    column: Column, publication: Publication | None, wanted: Wanted, server: Server, root: Relation
) -> str | None:
    """None when the column is sent; else the beginning of a hint that ends with the columns behind it."""
    if column.generated == "v":
        return "a virtual column is never in the log;"
    if wanted.plugin != "pgoutput" or (publication and publication.sends_generated):
        return None
    if server.version_num < _SENDS_GENERATED:
        return "set source.plugin: wal2json, which sends it; or"
    name = quote(wanted.publication_name)
    if publication:
        return f"run as its owner: alter publication {name} set (publish_generated_columns = stored); or"
    return f"run: create publication {name} for table {root.quoted} with (publish_generated_columns = stored); or"
