"""Holders that answer revokes with other leases, under every fault: an owner never has less or later."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.broken_exchanges import BROKEN_EXCHANGES
from tests.simulation.crowded import simulate_crowded
from tests.simulation.wrapped_broker import BrokenBroker

_MUST_HAVE_HAPPENED = (
    "daemons that died during an exchange",
    "exchanges",
    "exchanges refused: exchange_gone",
    "exchanges refused: exchange_late",
    "exchanges refused: exchange_small",
    "exchanges refused: suspect",
    "holders that died during an exchange",
    "keeper losses",
    "replies lost",
    "requests repeated late",
)


def _played(seeds: range) -> Counter[str]:
    """What happened on these nodes, no promise broken."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        outcome = simulate_crowded(seed)
        assert not outcome.failure, (seed, outcome.failure, outcome.where, outcome.story)
        counts += outcome.counts
    return counts


def test_holders_that_offer_other_leases_break_no_promise() -> None:
    """Answers come late, cross or get lost; holders, keepers and daemons die meanwhile."""
    counts = _played(range(12))
    assert not [what for what in _MUST_HAVE_HAPPENED if not counts[what]], counts


@pytest.mark.long
@pytest.mark.limit(600)
def test_three_hundred_such_nodes_break_no_promise() -> None:
    """The same of 300 nodes, for `make check-long`; the rare answers come as well."""
    counts = _played(range(300))
    assert counts["exchanges refused: not_exchangeable"]
    assert counts["exchanges told too late to be heeded"]


@pytest.mark.parametrize("broken", BROKEN_EXCHANGES, ids=lambda broken: broken.__name__)
def test_a_broker_that_exchanges_wrongly_is_caught(broken: type[BrokenBroker]) -> None:
    """Every way to cheat an owner, or a holder, that we know of fails a run."""
    failures = (simulate_crowded(seed, broken).failure for seed in range(12))
    assert next(filter(None, failures), "").startswith("Violation:")


def test_none_is_caught_for_being_wrapped() -> None:
    """The same nodes, with nothing broken."""
    for seed in range(2):
        assert not simulate_crowded(seed, BrokenBroker).failure
