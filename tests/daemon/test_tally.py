"""Counting: which events and instructions move which counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_daemon.adapters.tally import (
    DURATION_BUCKETS_SECONDS,
    Counts,
    Durations,
    RevokeOutcome,
    Tally,
    cumulative,
    denial_reasons,
)
from aqua_daemon.core.errors import BrokerBug, InsufficientMemory, QuotaExceeded
from aqua_daemon.core.events import SlabFreed
from aqua_daemon.core.instructions import ForgetSession, NoteRebalance
from aqua_daemon.core.model import LeaseState, RebalanceBlock, RevokeReason, TenantName
from tests.daemon.samples import (
    DENIED,
    EVENTS,
    INSTRUCTIONS,
    LEASE_ID,
    MIB,
    RECLAIM,
    RECLAIMED,
    REQUESTED,
    SESSION_ID,
    TENANT,
    move,
)

REVOKING, RETURNED = LeaseState.REVOKING, LeaseState.RETURNED


@pytest.fixture
def tally() -> Tally:
    return Tally()


def test_every_record_can_be_counted(tally: Tally) -> None:
    """A journal never raises, whatever happens on the node."""
    for event in EVENTS:
        tally.event(event)
        tally.refused(event, ZeroDivisionError("a fault"))
    for instruction in INSTRUCTIONS:
        tally.instructed(instruction)


def test_all_labels_are_there_from_the_start(tally: Tally) -> None:
    """Nothing has happened, and every reason and outcome is counted as 0."""
    counts = tally.counts()
    assert set(counts.denials) == set(denial_reasons()) >= {"no_room", "quota", "bug", "suspect"}
    assert set(counts.denials.values()) == {0}
    assert len(counts.revokes) == len(RevokeReason) * len(RevokeOutcome)
    assert set(counts.revokes.values()) == {0}
    assert counts == Counts()


def test_a_grant_counts_when_the_slab_is_there(tally: Tally) -> None:
    """Adopting a slab after a restart is no grant, nor is a slab that nobody wanted any more."""
    tally.instructed(move(None, LeaseState.ALLOCATING))
    tally.instructed(move(None, LeaseState.LEASED))
    tally.instructed(move(LeaseState.ALLOCATING, RETURNED))
    assert tally.counts().granted == 0
    tally.instructed(move(LeaseState.ALLOCATING, LeaseState.LEASED))
    assert tally.counts().granted == 1


def test_a_denial_counts_by_its_reason_at_once_or_later(tally: Tally) -> None:
    """Refused by the broker, or denied once a keeper has failed: one denial each."""
    tally.event(REQUESTED)
    tally.refused(REQUESTED, QuotaExceeded("all used"))
    tally.event(REQUESTED)
    tally.instructed(DENIED)
    counts = tally.counts()
    assert (counts.denials["quota"], counts.denials["no_room"], counts.denied) == (1, 1, 2)


def test_a_fault_while_granting_is_a_denial_for_a_bug(tally: Tally) -> None:
    """What is no BrokerError is counted as the broker's own."""
    tally.event(REQUESTED)
    tally.refused(REQUESTED, KeyError("x"))
    assert tally.counts().denials[BrokerBug.reason] == 1


def test_other_refusals_are_no_denials_of_leases(tally: Tally) -> None:
    """A failed reclaim, and a request whose session is forgotten, deny nobody a lease."""
    tally.event(RECLAIM)
    tally.refused(RECLAIM, InsufficientMemory("no"))
    tally.instructed(DENIED)
    tally.event(REQUESTED)
    tally.instructed(ForgetSession(session_id=SESSION_ID))
    tally.instructed(DENIED)
    assert tally.counts().denied == 0


@pytest.mark.parametrize(
    ("after", "outcome"),
    [
        (RETURNED, RevokeOutcome.RETURNED),
        (LeaseState.QUARANTINED, RevokeOutcome.QUARANTINED),
        (LeaseState.LOST, RevokeOutcome.LOST),
    ],
)
def test_a_revoke_counts_once_with_its_reason_outcome_and_time(
    tally: Tally, after: LeaseState, outcome: RevokeOutcome
) -> None:
    """Leaving REVOKING ends the revoke; what comes later does not count again."""
    tally.instructed(move(LeaseState.LEASED, REVOKING, reason=RevokeReason.RECLAIM))
    tally.instructed(move(REVOKING, after, reason=RevokeReason.RECLAIM, seconds=0.3))
    if after is not RETURNED:
        tally.instructed(move(after, RETURNED, reason=RevokeReason.RECLAIM, seconds=9.0))
    counts = tally.counts()
    assert counts.revokes[RevokeReason.RECLAIM, outcome] == 1
    assert sum(counts.revokes.values()) == sum(counts.revoke_durations.counts) == 1
    assert counts.revoke_durations.sum_seconds == pytest.approx(0.3)


def test_a_release_is_no_revoke(tally: Tally) -> None:
    """A client that gives back by itself was not asked."""
    tally.instructed(move(LeaseState.LEASED, RETURNED))
    assert tally.counts() == Counts()


def test_reclaims_and_scrubbed_bytes_add_up(tally: Tally) -> None:
    """Each reclaim's time, and each freed slab's scrubbed bytes; a repeated free scrubs nothing."""
    tally.instructed(RECLAIMED)
    tally.instructed(RECLAIMED)
    tally.event(SlabFreed(lease_id=LEASE_ID, scrubbed_bytes=4 * MIB))
    tally.event(SlabFreed(lease_id=LEASE_ID))
    counts = tally.counts()
    assert sum(counts.reclaim_durations.counts) == 2
    assert counts.reclaim_durations.sum_seconds == pytest.approx(0.6)
    assert counts.scrubbed_bytes == 4 * MIB


def test_each_rebalance_counts_as_done_or_by_what_blocked_it(tally: Tally) -> None:
    """Once each, whatever the bytes."""
    done = NoteRebalance(
        tenant=TENANT, for_tenant=TenantName("other"), nbytes=4 * MIB, reason="above", block=None
    )
    tally.instructed(done, done, replace(done, block=RebalanceBlock.TOO_RECENT))
    counts = tally.counts()
    assert counts.rebalance_moves == 2
    blocks = {block: count for block, count in counts.rebalance_blocks.items() if count}
    assert blocks == {RebalanceBlock.TOO_RECENT: 1}


def test_counts_that_were_read_do_not_change(tally: Tally) -> None:
    """A scrape's copy is of one moment, though the loop goes on counting."""
    before = tally.counts()
    tally.event(REQUESTED)
    tally.refused(REQUESTED, QuotaExceeded("all used"))
    tally.instructed(move(REVOKING, RETURNED, reason=RevokeReason.DEAD))
    assert before == Counts()
    assert tally.counts() != before


def test_a_duration_falls_into_the_first_bucket_that_holds_it() -> None:
    """A bucket's bound belongs to it, and what is over the last goes to +Inf."""
    durations = Durations()
    for seconds in (0.0, DURATION_BUCKETS_SECONDS[0], 0.3, 100.0):
        durations = durations.with_one_more(seconds)
    buckets = cumulative(durations.counts)
    assert (buckets["0.001"], buckets["0.25"], buckets["0.5"]) == (2, 2, 3)
    assert (buckets["8"], buckets["+Inf"]) == (3, 4)
    assert durations.sum_seconds == pytest.approx(100.301)
