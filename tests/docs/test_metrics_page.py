"""docs/METRICS.md names every metric with its labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from cdc_agent import metrics

PAGE = (Path(__file__).parents[2] / "docs" / "METRICS.md").read_text()
ALL_METRICS = {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}


def exposed(metric: MetricWrapperBase) -> str:
    """The name that Prometheus sees, with labels."""
    (family,) = metric.describe()
    name = family.name + ("_total" if family.type == "counter" else "")
    labels = ",".join(metric._labelnames)
    return name + (f"{{{labels}}}" if labels else "")


@pytest.mark.parametrize("constant", ALL_METRICS)
def test_the_metric_is_documented_with_its_labels_type_and_sentence(constant: str) -> None:
    metric = ALL_METRICS[constant]
    (family,) = metric.describe()
    start_of_sentence = family.documentation.rstrip(".")

    row = next((line for line in PAGE.splitlines() if line.startswith(f"| `{exposed(metric)}` |")), None)

    assert row is not None, f"docs/METRICS.md lacks {exposed(metric)}"
    assert f"| {family.type} | {start_of_sentence}" in row


def test_the_page_names_no_metric_that_does_not_exist() -> None:
    documented = set(re.findall(r"^\| `(cdc_agent_[^`]+)` \|", PAGE, flags=re.MULTILINE))

    assert documented == {exposed(metric) for metric in ALL_METRICS.values()}


def test_names_start_with_the_prefix_and_carry_a_base_unit_where_they_measure() -> None:
    for metric in ALL_METRICS.values():
        (family,) = metric.describe()
        assert family.name.startswith("cdc_agent_")
        assert not re.search(r"_(ms|milliseconds|kb|mb|minutes)\b", family.name)


def test_the_text_format_carries_them() -> None:
    assert b"cdc_agent_transactions_total" in metrics.render()
