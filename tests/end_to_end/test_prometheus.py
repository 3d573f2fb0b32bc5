"""A real Prometheus scrapes a real node, loads the alert rules and answers the dashboard's queries."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.daemon.test_dashboard import ALERTS, expressions
from tests.end_to_end.borrower import borrowing
from tests.nodes import END_SECONDS, MIB, Node, running_node, wait_until

START_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One series of an answer, as it is now."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """A server on loopback that scrapes one node each second."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> dict[str, object]:
        """The `data` of an answer of its API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}{path}?{query}", timeout=10) as reply:  # noqa: S310 - loopback
            answer = json.load(reply)
        assert answer["status"] == "success", answer
        data: dict[str, object] = answer["data"]
        return data

    def query(self, expression: str) -> list[Sample]:
        result = self.get("/api/v1/query", query=expression)["result"]
        assert isinstance(result, list)
        return [Sample(labels=one["metric"], value=float(one["value"][1])) for one in result]

    def is_ready(self) -> bool:
        url = f"{self._url}/-/ready"
        with suppress(OSError), urllib.request.urlopen(url, timeout=1) as reply:  # noqa: S310 - loopback
            return bool(reply.status == 200)
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def scraping(node: Node, directory: Path) -> Iterator[Prometheus]:
    program = require_tool("prometheus")
    target = urllib.parse.urlsplit(node.metrics_url).netloc
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "aqua", "static_configs": [{"targets": [target]}]}],
    }
    described = directory / "prometheus.yml"
    described.write_text(json.dumps(config))
    port = free_port()
    with (directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={described}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        wait_until(
            lambda: process.poll() is not None or server.is_ready(),
            seconds=START_SECONDS,
            what="Prometheus is ready",
        )
        assert process.poll() is None, (directory / "prometheus.log").read_text()
        yield server
    finally:
        process.terminate()
        process.wait(END_SECONDS)


@pytest.mark.limit(120)
def test_prometheus_scrapes_a_node_and_knows_what_the_daemon_knows(tmp_path: Path) -> None:
    """Lent bytes by GPU arrive there, no alert fires, and every query of the dashboard is answered."""
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        scraping(node, tmp_path) as prometheus,
        borrowing(node) as borrower,
    ):
        borrower.borrow(8 * MIB)
        lent = 'aqua_pool_bytes{job="aqua", state="lent"} > 0'
        wait_until(lambda: prometheus.query(lent), seconds=20, what="a scrape with the lease")
        (found,) = prometheus.query(lent)
        assert (found.labels["gpu"], found.value) == ("SHM-1", 8 * MIB)
        assert [one.value for one in prometheus.query('up{job="aqua"}')] == [1]
        sums = prometheus.query("sum by (gpu) (aqua_pool_bytes)")
        assert [one.value for one in sums] == [64 * MIB, 64 * MIB]
        for expression in expressions():
            prometheus.query(expression.replace("$instance", ".+"))
        groups = prometheus.get("/api/v1/rules")["groups"]
        assert isinstance(groups, list)
        rules = [rule for group in groups for rule in group["rules"]]
        wait_until(lambda: all_evaluated(prometheus), seconds=20, what="the rules were evaluated")
        assert len(rules) > 5
        assert prometheus.get("/api/v1/alerts")["alerts"] == []


def all_evaluated(prometheus: Prometheus) -> bool:
    groups = prometheus.get("/api/v1/rules")["groups"]
    assert isinstance(groups, list)
    health = {rule["health"] for group in groups for rule in group["rules"]}
    assert "err" not in health
    return health == {"ok"}


def test_a_misspelt_query_is_an_error_here(tmp_path: Path) -> None:
    """So the loop over the dashboard's queries does see a wrong one."""
    with (
        running_node(gpus=1, gpu_bytes=64 * MIB) as node,
        scraping(node, tmp_path) as prometheus,
        pytest.raises(urllib.error.HTTPError, match="400"),
    ):
        prometheus.query("sum(aqua_pool_bytes")
