"""The oracle sees: each broker that was broken on purpose is caught, and never the real one for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.broken_brokers import BROKEN
from tests.simulation.run import simulate
from tests.simulation.wrapped_broker import BrokenBroker

_SEEDS = 12
_STEPS = 300


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_broker_is_caught_within_a_few_seeds(broken: type[BrokenBroker]) -> None:
    """Every way to break a promise that we know of fails a run."""
    failures = [simulate(seed, _STEPS, broken).failure for seed in range(_SEEDS)]
    seen = [failure for failure in failures if failure]
    assert seen
    assert all(failure.startswith(("Violation:", "BytesDiffer:")) for failure in seen), seen


def test_the_wrapper_alone_breaks_nothing() -> None:
    """What the broken brokers are caught for is what they break, not that they are wrapped."""
    for seed in range(_SEEDS):
        outcome = simulate(seed, _STEPS, BrokenBroker)
        assert not outcome.failure, outcome.replay


def test_a_run_repeats_exactly_in_another_process() -> None:
    """A seed tells one story, whatever order a process keeps its sets of strings in."""
    program = (
        "from tests.simulation.run import simulate\n"
        "outcome = simulate(7, 400)\n"
        "print(sorted(outcome.counts.items()), outcome.failure)\n"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ".:protos"},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2", "3")
    }
    assert len(told) == 1
