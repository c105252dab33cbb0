"""No token sees another tenant's chunk, whatever it asks for; and nothing of its own is lost for that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc_agent.errors import NotPermitted, UsageError
from cdc_agent.grants import columns_of, narrowed, permits, too_open
from cdc_agent.search import Searcher, condition
from tests.unit.test_search import Index

TENANTS = ["acme", "globex", "acme globex", "", "ACME"]
COLUMNS = ["tenant", "lang", "year"]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """Three hundred documents of five tenants; some say nothing of whose they are."""
    index = Index(tmp_path_factory.mktemp("index") / "ledger.sqlite")
    for number in range(300):
        metadata: dict[str, Any] = {"lang": ["en", "de"][number % 2], "year": 2000 + number % 5}
        if number % 6:
            metadata["tenant"] = TENANTS[number % 6 - 1]
        index.add(f"public.articles:{number}", f"the cat sleeps {number % 7}", **metadata)
    index.searcher = Searcher(index.store, index.ledger, {"articles": index.embedder}, columns={"articles": COLUMNS})
    yield index
    index.ledger.close()


scalars = st.sampled_from([*TENANTS, "en", "$or", '{"$or": []}', 2001, 2001.5, True])
operators = st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$contains", "$not_contains", "$not", "$nor"])
leaves = st.one_of(
    st.dictionaries(st.sampled_from([*COLUMNS, "cdc_table", "cdc_doc", "nothing"]), scalars, max_size=2),
    st.builds(lambda c, o, v: {c: {o: v}}, st.sampled_from(COLUMNS), operators, scalars),
    st.builds(
        lambda c, o, v: {c: {o: v}}, st.sampled_from(COLUMNS), st.sampled_from(["$in", "$nin"]), st.lists(scalars)
    ),
)
#: Whatever a request can hold: conditions that make sense, and many that do not.
wheres = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda o, b: {o: b}, st.sampled_from(["$and", "$or", "$not", "$nor"]), st.lists(inner, max_size=3)),
        st.builds(lambda a, b: {**a, **b}, inner, inner),
        st.builds(lambda c, b: {c: b}, st.sampled_from(COLUMNS), inner),
    ),
    max_leaves=6,
)
withins = st.sampled_from(
    [
        {"tenant": "acme"},
        {"tenant": {"$in": ["acme", "globex"]}},
        {"$and": [{"tenant": "acme"}, {"year": {"$gte": 2003}}]},
        {"$or": [{"tenant": "globex"}, {"year": 2001}]},
    ]
)


@given(where=wheres, within=withins, k=st.integers(1, 100))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_search_leaves_its_tenant(index: Index, where: dict[str, Any], within: dict[str, Any], k: int) -> None:
    # Given what the same request finds for somebody who may see everything
    try:
        everything = index.searcher.search("articles", "the cat sleeps", 100, where)
    except UsageError:
        # What is refused to everybody is refused here, too.
        with pytest.raises(UsageError):
            index.searcher.search("articles", "the cat sleeps", k, where, within=within)
        return

    # When a tenant asks
    found = index.searcher.search("articles", "the cat sleeps", k, where, within=within)

    # Then it sees nothing of others
    assert all(permits(within, hit.metadata) for hit in found)
    # And as many of its own as anybody would: others do not take their places.
    of_its_own = [hit for hit in everything if permits(within, hit.metadata)]
    assert len(found) >= min(k, len(of_its_own))


def test_a_store_that_ignores_the_condition_gives_nothing_away(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a store that answers with everything
    honest = index.store.query
    monkeypatch.setattr(index.store, "query", lambda name, vector, *, k, where=None: honest(name, vector, k=k))  # noqa: ARG005

    found = index.searcher.search("articles", "the cat sleeps", 50, within={"tenant": "acme"})

    assert {hit.metadata.get("tenant") for hit in found} == {"acme"}


def test_others_do_not_starve_a_tenant(tmp_path: Path) -> None:
    # Given a tenant with one document, far from what it asks for, and a thousand nearer ones of others
    index = Index(tmp_path / "ledger.sqlite")
    for number in range(1000):
        index.add(f"public.articles:{number}", "how do refunds work", tenant="globex")
    index.add("public.articles:mine", "an altogether different text", tenant="acme")
    searcher = Searcher(index.store, index.ledger, {"articles": index.embedder}, columns={"articles": ["tenant"]})

    [hit] = searcher.search("articles", "how do refunds work", 5, within={"tenant": "acme"})

    assert hit.document_id == "public.articles:mine"
    index.ledger.close()


def test_a_collection_that_does_not_say_whose_its_documents_are_is_not_searched(index: Index) -> None:
    searcher = Searcher(index.store, index.ledger, {"articles": index.embedder}, columns={"articles": ["lang"]})

    with pytest.raises(NotPermitted, match="cannot be parted") as caught:
        searcher.search("articles", "cat", within={"tenant": "acme"})

    assert "tenant" in caught.value.hint
    # And none whose columns nobody knows.
    with pytest.raises(NotPermitted):
        Searcher(index.store, index.ledger, {"articles": index.embedder}).search(
            "articles", "cat", within={"tenant": "acme"}
        )


def test_what_is_asked_for_is_joined_and_not_pasted() -> None:
    where = condition({"$or": [{"tenant": "globex"}, {"lang": "en"}]})

    assert narrowed(where, {"tenant": "acme"}) == {"$and": [{"tenant": "acme"}, where]}
    assert narrowed(None, {"tenant": "acme"}) == {"tenant": "acme"}


def test_the_columns_and_the_gaps_of_a_condition_are_seen_at_any_depth() -> None:
    where = {"$and": [{"a": 1}, {"$or": [{"b": {"$in": [1]}}, {"c": {"$ne": 2}}]}]}

    assert columns_of(where) == {"a", "b", "c"}
    assert too_open(where) == "$ne"
    assert too_open({"$and": [{"a": 1}, {"b": {"$gte": 1}}]}) == ""
