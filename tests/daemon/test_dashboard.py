"""What is shipped for operators names only metrics that exist: dashboard, alerts, and the README."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from aqua_daemon.adapters.client_tally import ClientTally
from aqua_daemon.adapters.metrics import NodeCollector, Reading
from aqua_daemon.adapters.tally import Tally
from tests.daemon.samples import SNAPSHOT
from tests.nodes import REPOSITORY

DASHBOARD = REPOSITORY / "deploy" / "aqua-dashboard.json"
ALERTS = REPOSITORY / "deploy" / "aqua-alerts.yml"
README = REPOSITORY / "README.md"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
COLUMNS = 24  # of Grafana's grid


def metrics() -> list[Metric]:
    counts, clients = Tally().counts(), ClientTally().totals()
    reading = Reading(snapshot=SNAPSHOT, counts=counts, faults=0, clients=clients)
    return list(NodeCollector(lambda: reading).collect())


def sample_names() -> set[str]:
    return {one.name + suffix for one in metrics() for suffix in SUFFIXES[one.type]}


def labels_by_sample() -> dict[str, set[str]]:
    return {
        one.name + suffix: {label for sample in one.samples for label in sample.labels}
        for one in metrics()
        for suffix in SUFFIXES[one.type]
    }


def expressions() -> list[str]:
    """Every query of the dashboard."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def panels() -> list[dict[str, list[dict[str, str]]]]:
    found: list[dict[str, list[dict[str, str]]]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def named_in(text: str) -> set[str]:
    return set(re.findall(r"\baqua_[a-z_]+\b", text))


def selected_labels(text: str) -> Iterator[tuple[str, str]]:
    """Each metric that is named with a selector, with each label of it."""
    for name, selector in re.findall(r"\b(aqua_[a-z_]+)\{([^}]*)\}", text):
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
            yield name, label


def test_the_dashboard_names_only_metrics_that_exist() -> None:
    """With the very suffix, and labels that they have; `instance` and `job` come from the scrape."""
    text = " ".join(expressions())
    named = named_in(text)
    assert len(named) > 10
    assert named <= sample_names()
    labels = labels_by_sample()
    wrong = [
        (name, label)
        for name, label in selected_labels(text)
        if label not in labels[name] | {"instance", "job"}
    ]
    assert wrong == []


def test_the_alerts_name_only_metrics_that_exist() -> None:
    """A rule over a misspelt metric never fires, and nobody sees it."""
    expr = " ".join(re.findall(r"expr: (.*?)(?:for|labels):", ALERTS.read_text(), re.DOTALL))
    named = named_in(expr)
    assert len(named) > 5
    assert named <= sample_names()
    labels = labels_by_sample()
    assert all(label in labels[name] for name, label in selected_labels(expr))


def test_panels_can_be_read_and_do_not_overlap() -> None:
    """A title, what it means, a unit, a place of its own; every query for the chosen node."""
    cells: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        cells |= taken
    for expression in expressions():
        uses = len(re.findall(r"\baqua_[a-z_]+\b", expression))
        assert uses == expression.count('instance=~"$instance"')


def documented() -> dict[str, str]:
    """The README's table of metrics: each name with its labels as written."""
    section = README.read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(aqua_[a-z_]+)(?:\{([a-z, ]+)\})?` \|", section, re.MULTILINE)
    return dict(rows)


def test_the_readme_lists_every_metric_with_its_labels() -> None:
    """Each by the name that is typed in a query, and nothing that there is not."""
    expected = {}
    for one in metrics():
        name = one.name + ("_total" if one.type == "counter" else "")
        labels = {label for sample in one.samples for label in sample.labels} - {"le"}
        expected[name] = labels
    found = {
        name: {label.strip() for label in labels.split(",") if label.strip()}
        for name, labels in documented().items()
    }
    assert found == expected
