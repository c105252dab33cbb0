"""The alerts and the dashboard ask for nothing that the daemon does not export, in queries that Prometheus can read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from cdc_agent import metrics

ROOT = Path(__file__).parents[2]
ALERTS = [
    rule
    for group in yaml.safe_load((ROOT / "config" / "prometheus-alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((ROOT / "config" / "grafana-dashboard.json").read_text())
PAGE = (ROOT / "docs" / "METRICS.md").read_text()
#: Labels that Prometheus itself adds.
ADDED = {"instance", "job", "le"}
DURATION = re.compile(r"(\d+(ms|[smhdwy]))+")


def series(metric: MetricWrapperBase) -> Iterator[str]:
    (family,) = metric.describe()
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
    return (family.name + ending for ending in endings)


EXPORTED = {
    name: {*metric._labelnames, *ADDED}
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
    for name in series(metric)
}


def queries() -> Iterator[tuple[str, str]]:
    """Where a query stands, and the query, with what Grafana fills in."""
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            filled = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            yield f"{panel['title']} {target['refId']}", filled


QUERIES = dict(queries())


def selectors(node: Any) -> Iterator[Any]:
    """Every selector of a parsed query, however deep."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("expr", "lhs", "rhs", "args", "vector_selector", "param"):
        found = getattr(node, name, None)
        for child in found if isinstance(found, list) else [found]:
            if child is not None and not isinstance(child, str | int | float):
                yield from selectors(child)


@pytest.mark.parametrize("place", QUERIES)
def test_a_query_can_be_read_and_asks_for_what_there_is(place: str) -> None:
    asked = list(selectors(promql_parser.parse(QUERIES[place])))

    assert asked
    for selector in asked:
        assert selector.name in EXPORTED, f"nothing exports {selector.name}"
        named = {matcher.name for matcher in selector.matchers.matchers}
        assert named <= EXPORTED[selector.name], f"{selector.name} has no label {named - EXPORTED[selector.name]}"


@pytest.mark.parametrize("place", QUERIES)
def test_a_query_groups_by_labels_that_there_are(place: str) -> None:
    labels = {label for selector in selectors(promql_parser.parse(QUERIES[place])) for label in EXPORTED[selector.name]}

    for names in re.findall(r"\bby \(([^)]*)\)", QUERIES[place]):
        assert {name.strip() for name in names.split(",")} <= labels


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert DURATION.fullmatch(rule.get("for", "1m"))
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    # A summary names the instance; a description is a sentence or more.
    assert "$labels." in rule["annotations"]["summary"]
    assert rule["annotations"]["description"].rstrip().endswith(".")
    for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
        assert label in ADDED or label in rule["expr"]


def test_alerts_have_names_of_their_own_and_the_page_lists_those_that_matter() -> None:
    names = [rule["alert"] for rule in ALERTS]

    assert len(names) == len(set(names))
    assert set(re.findall(r"`(CdcAgent\w+)`", PAGE)) <= set(names)
    assert {"CdcAgentSlotKeepsWal", "CdcAgentStalled", "CdcAgentMismatch"} <= set(re.findall(r"`(CdcAgent\w+)`", PAGE))


def test_the_dashboard_can_be_imported_anywhere() -> None:
    # Given panels that each name their own source and place
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}

    # Then none names somebody's data source, and none lies on another
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel.get("datasource", {}).get("uid", "${datasource}") == "${datasource}"
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("text", ["rate(cdc_agent_x[5m]", "sum by (le (x)"])
def test_the_parser_would_notice(text: str) -> None:
    with pytest.raises(ValueError):
        promql_parser.parse(text)


def test_selectors_are_found_however_deep() -> None:
    parsed = promql_parser.parse("histogram_quantile(0.9, sum by (le) (rate(a[1m]))) > 1 and delta(b[5m]) == 0")

    assert [selector.name for selector in selectors(parsed)] == ["a", "b"]
