"""The alert rules in deploy/: promtool runs each over a history that must fire and one that must not."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.nodes import REPOSITORY

RULES = REPOSITORY / "deploy" / "aqua-alerts.yml"
NODE = {"instance": "n1", "job": "aqua"}
ON = 'instance="n1",job="aqua"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A history of one minute a step, and what is said of it at its end; None: nothing."""

    alert: str
    series: dict[str, str]
    minutes: int
    summary: str | None = None
    severity: str = "ticket"
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.alert}-{'silent' if self.summary is None else 'fires'}"


POOL = f'aqua_pool_bytes{{{ON},gpu="G",state="%s"}}'
QUARANTINED = f'aqua_quarantined_bytes{{{ON},gpu="G"}}'
REVOKES = f'aqua_revokes_total{{{ON},outcome="%s",reason="%s"}}'
RECLAIMS = f'aqua_reclaim_duration_seconds_bucket{{{ON},le="%s"}}'
FALLBACKS = f'aqua_fallback_total{{{ON},reason="%s"}}'
RESERVED, HOST_POOL = f"aqua_host_reserved_bytes{{{ON}}}", f"aqua_host_pool_bytes{{{ON}}}"
SLOW = f'aqua_link_slow{{{ON},from="A",to="%s"}}'

CASES = (
    Case(
        alert="AquaDown",
        series={f"up{{{ON}}}": "1x2 0x3"},
        minutes=5,
        summary="aqua-daemon on n1 has not answered for 2 minutes",
        severity="page",
    ),
    Case(alert="AquaDown", series={f"up{{{ON}}}": "1 0 1x5"}, minutes=6),
    Case(
        alert="AquaDaemonStuck",
        series={f"aqua_scrape_stale{{{ON}}}": "0 1x3"},
        minutes=3,
        summary="the event loop of aqua-daemon on n1 does not answer",
        severity="page",
    ),
    Case(alert="AquaDaemonStuck", series={f"aqua_scrape_stale{{{ON}}}": "0 1 0x3"}, minutes=3),
    Case(
        alert="AquaGpuSick",
        series={f'aqua_gpu_trouble{{{ON},gpu="G"}}': "0x2 1x6"},
        minutes=8,
        summary="GPU G on n1 is in trouble and lends nothing",
        labels={"gpu": "G"},
    ),
    Case(
        alert="AquaGpuSick",
        series={f'aqua_gpu_trouble{{{ON},gpu="G"}}': "0x2 1x3 0x3"},  # a keeper was replaced
        minutes=8,
    ),
    Case(
        alert="AquaBooksWrong",
        series={f"aqua_invariant_violations_total{{{ON}}}": "0x3 1x3"},
        minutes=6,
        summary="the books on n1 were found wrong",
        severity="page",
    ),
    Case(
        alert="AquaBooksWrong",
        series={f"aqua_invariant_violations_total{{{ON}}}": "0 1x20"},
        minutes=15,  # it is over, and was told
    ),
    Case(
        alert="AquaDaemonFaults",
        series={f"aqua_faults_total{{{ON}}}": "0x3 2x3"},
        minutes=6,
        summary="aqua-daemon on n1 caught errors of its own",
    ),
    Case(alert="AquaDaemonFaults", series={f"aqua_faults_total{{{ON}}}": "7x9"}, minutes=8),
    Case(
        alert="AquaKeeperMissing",
        series={POOL % "unknown": "0 64x5", POOL % "free": "64 0x5"},
        minutes=4,
        summary="GPU G on n1 has no keeper",
        severity="page",
        labels={"gpu": "G"},
    ),
    Case(
        alert="AquaKeeperMissing",
        series={POOL % "unknown": "0x5", POOL % "free": "0x5"},  # never heard
        minutes=4,
        summary="GPU G on n1 has no keeper",
        severity="page",
        labels={"gpu": "G"},
    ),
    Case(
        alert="AquaKeeperMissing",
        series={POOL % "unknown": "0x5", POOL % "lent": "64x5"},
        minutes=4,
    ),
    Case(
        alert="AquaQuarantine",
        series={QUARANTINED: "0 16777216x12"},
        minutes=12,
        summary="16MiB on GPU G of n1 have not come back for 10 minutes",
        labels={"gpu": "G"},
    ),
    Case(alert="AquaQuarantine", series={QUARANTINED: "16777216x8 0x4"}, minutes=12),
    Case(
        alert="AquaRevokesOverdue",
        series={REVOKES % ("quarantined", "reclaim"): "0x2 1x2"},
        minutes=4,
        summary="a client on n1 let a revoke's deadline pass",
    ),
    Case(
        alert="AquaRevokesOverdue",
        series={
            REVOKES % ("returned", "reclaim"): "0+5x4",
            REVOKES % ("quarantined", "dead"): "0x2 1x2",  # a child of a dead process: no refusal
        },
        minutes=4,
    ),
    Case(
        alert="AquaReclaimsSlow",
        series={RECLAIMS % "4": "0x5", RECLAIMS % "8": "0+3x5", RECLAIMS % "+Inf": "0+3x5"},
        minutes=5,
        summary="owners on n1 wait longer than 4 s for their memory",
    ),
    Case(
        alert="AquaReclaimsSlow",
        series={RECLAIMS % "2": "0+3x5", RECLAIMS % "4": "0+3x5", RECLAIMS % "+Inf": "0+3x5"},
        minutes=5,
    ),
    Case(
        alert="AquaClientsFallBack",
        series={FALLBACKS % "breaker": "0+1x25"},
        minutes=22,
        summary="clients on n1 go to host memory: breaker",
        labels={"reason": "breaker"},
    ),
    Case(
        alert="AquaClientsFallBack",
        series={FALLBACKS % "no_room": "0+9x25", FALLBACKS % "breaker": "0 1x24"},
        minutes=22,
    ),
    Case(
        alert="AquaHostRoomNearlyFull",
        series={RESERVED: "97x12", HOST_POOL: "100x12"},
        minutes=12,
        summary="host room on n1 is 95 % reserved",
    ),
    Case(
        alert="AquaHostRoomNearlyFull",
        series={RESERVED: "94x12", HOST_POOL: "100x12"},
        minutes=12,
    ),
    Case(
        alert="AquaLinkSlow",
        series={SLOW % "B": "1x3", SLOW % "C": "0x3", SLOW % "D": "1x3"},
        minutes=3,
        summary="2 links on n1 are slower than the node's median",
    ),
    Case(alert="AquaLinkSlow", series={SLOW % "B": "0x3"}, minutes=3),
)


def alert_names() -> list[str]:
    return re.findall(r"^ +- alert: (\w+)$", RULES.read_text(), re.MULTILINE)


def remedy_of(alert: str) -> str:
    """A remedy is the same for every node: it holds no template."""
    found = re.search(
        rf"- alert: {alert}\n.*?remedy: \"(.*?)\"$", RULES.read_text(), re.DOTALL | re.MULTILINE
    )
    assert found is not None, f"{alert} has no remedy"
    assert "{{" not in found[1]
    return found[1]


def promtool_test(case: Case) -> dict[str, object]:
    fires = {
        "exp_labels": {**NODE, **case.labels, "severity": case.severity},
        "exp_annotations": {"summary": case.summary, "remedy": remedy_of(case.alert)},
    }
    return {
        "rule_files": [str(RULES)],
        "evaluation_interval": "30s",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values} for name, values in case.series.items()
                ],
                "alert_rule_test": [
                    {
                        "eval_time": f"{case.minutes}m",
                        "alertname": case.alert,
                        "exp_alerts": [] if case.summary is None else [fires],
                    }
                ],
            }
        ],
    }


def test_every_alert_has_a_history_that_fires_and_one_that_does_not() -> None:
    """A rule that is added must be shown to work, and to be silent when all is well."""
    names = alert_names()
    assert len(names) == len(set(names)) > 5
    assert {case.alert for case in CASES if case.summary} == set(names)
    assert {case.alert for case in CASES if case.summary is None} == set(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_the_alert_says_what_it_should(case: Case, tmp_path: Path) -> None:
    """Its labels, its severity, and a summary and a remedy as a person reads them; or nothing."""
    promtool = require_tool("promtool")
    described = tmp_path / "case.yml"  # what JSON says, YAML says too
    described.write_text(json.dumps(promtool_test(case)))
    check = subprocess.run(
        [promtool, "test", "rules", str(described)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_promtool_accepts_the_rules() -> None:
    """Syntax, templates and duplicates."""
    promtool = require_tool("promtool")
    check = subprocess.run(
        [promtool, "check", "rules", str(RULES)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr
    assert f"{len(alert_names())} rules found" in check.stdout
