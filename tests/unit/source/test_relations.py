"""What the log says of a table, and that it says otherwise than before."""

from __future__ import annotations

from cdc_agent.events import Column
from cdc_agent.source.catalog import TableInfo
from cdc_agent.source.pgoutput import RelationMessage
from cdc_agent.source.relations import Relations

BODY, KIND = Column(name="body", type_oid=25), Column(name="kind", type_oid=25)
INFO = TableInfo(
    oid=10,
    schema="public",
    name="docs",
    replica_identity="d",
    ancestors=(10,),
    columns=(BODY, KIND),
    numbers=(1, 2),
    key=("body",),
    estimated_rows=0,
    partitioned=False,
)


class Catalog:
    """Knows one table."""

    def by_oid(self, oid: int, *, refresh: bool = False) -> TableInfo:
        assert refresh
        return INFO

    def root_of(self, info: TableInfo) -> int:
        return info.oid

    def base_type(self, oid: int) -> int:
        return oid


def message(*columns: Column, name: str = "docs", identity: str = "d") -> RelationMessage:
    return RelationMessage(10, "public", name, identity, columns, ("body",))


def test_a_table_that_is_described_otherwise_than_before_is_a_sign() -> None:
    signs: list[int] = []
    relations = Relations(Catalog(), lambda: signs.append(1))  # type: ignore[arg-type]

    # When it is described for the first time, and then again the same
    relations.describe(message(BODY, KIND))
    relations.describe(message(BODY, KIND))
    assert signs == []

    # Then every other description is one sign
    for n, changed in enumerate(
        [
            message(BODY),
            message(BODY, Column(name="kind", type_oid=23)),
            message(BODY, Column(name="kind", type_oid=23), name="papers"),
            message(BODY, Column(name="kind", type_oid=23), name="papers", identity="f"),
        ],
        start=1,
    ):
        relations.describe(changed)
        relations.describe(changed)
        assert len(signs) == n
