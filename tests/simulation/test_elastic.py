"""Elastic nodes: shares are fair once load is steady, and what is steady is not moved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.fairness import max_min
from aqua_daemon.core.model import BrokerSettings, GpuUuid
from tests.simulation.__main__ import main, run_seeds
from tests.simulation.chance import Chance
from tests.simulation.daemon import BrokerLike
from tests.simulation.elastic import run
from tests.simulation.elastic.run import simulate_elastic
from tests.simulation.elastic.scenario import ElasticScenario, elastic_scenario_for
from tests.simulation.elastic.water import Vessel, shares

_MUST_HAPPEN = (
    "borrowers stuck",
    "daemon restarts",
    "deaths",
    "items evacuated",
    "owners breathed",
    "quarantines",
    "quarantines healed",
    "reclaims answered",
    "revokes: lapsed",
    "revokes: owner",
    "revokes: rebalance",
    "revokes: reclaim",
    "revokes: reserve",
    "shares judged",
    "stops",
)


@pytest.mark.limit(300)
def test_a_hundred_thousand_events_of_elastic_nodes() -> None:
    """Everybody comes to its share, nothing oscillates, and every kind of trouble occurred."""
    summary = run_seeds(
        range(1000), steps=2, events=100_000, run=partial(simulate_elastic, steps=2)
    )
    assert summary.failures == ()
    assert summary.counts["events"] >= 100_000
    missing = [what for what in _MUST_HAPPEN if not summary.counts[what]]
    assert not missing, f"these never happened: {missing}"


def test_a_broker_with_other_weights_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge of shares goes by what admins set, and sees a broker that does not."""

    def broker(
        scenario: ElasticScenario, settings: BrokerSettings, now: float, drained: Iterable[GpuUuid]
    ) -> BrokerLike:
        quotas = {name: quota for name, quota in scenario.quotas.items() if quota.weight == 1.0}
        return Broker(settings, now=now, strict=True, quotas=quotas, drained=drained)

    monkeypatch.setattr(run, "_broker", broker)  # weights that admins set are not in force
    unfair = [
        seed
        for seed in range(20)
        if any(quota.weight != 1.0 for quota in elastic_scenario_for(Chance(seed)).quotas.values())
    ]
    failures = [simulate_elastic(seed, 1).failure for seed in unfair[:4]]
    assert any("its share is" in failure for failure in failures), failures


def test_the_command_stops_after_so_many_events_and_repeats_a_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--elastic --events N` runs whole seeds until N events; each has one history."""
    path = tmp_path / "elastic.json"
    assert main(["--elastic", "--events", "2000", "--steps", "1", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert record["events"] >= 2000
    assert record["failures"] == 0
    capsys.readouterr()
    assert main(["--elastic", "--seed", "0", "--steps", "1"]) == 0
    again = simulate_elastic(0, 1)
    assert f"1 seeds x 1 steps: {again.counts['events']:,} events" in capsys.readouterr().out
    assert again.replay == "python -m tests.simulation --elastic --seed 0 --steps 1"


@settings(deadline=None)  # eighty halvings, on a machine that does other things
@given(
    st.floats(0, 2000),
    st.dictionaries(
        st.integers(0, 9),
        st.tuples(st.integers(0, 500), st.integers(0, 500), st.sampled_from((0.5, 1.0, 3.0))),
        min_size=1,
    ),
)
def test_two_ways_to_find_the_level_of_the_water_agree(
    capacity: float, wishes: Mapping[int, tuple[int, int, float]]
) -> None:
    """By halving, as the oracle does, and by filling, as the broker does."""
    vessels = {
        key: Vessel(stuck_bytes=stuck, wanted_bytes=stuck + more, weight=weight)
        for key, (stuck, more, weight) in wishes.items()
    }
    found = max_min(
        capacity,
        {key: one.wanted_bytes for key, one in vessels.items()},
        {key: one.weight for key, one in vessels.items()},
        {key: one.stuck_bytes for key, one in vessels.items()},
    )
    assert found == pytest.approx(shares(capacity, vessels), abs=1e-3)
