"""Producers: offers that bound what is lent, and reclaims that bring it back."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import (
    InsufficientMemory,
    InvalidRequest,
    NotPermitted,
    UnknownSession,
)
from aqua_daemon.core.events import OfferMade, ProcessEnded, ReclaimRequested, SessionClosed
from aqua_daemon.core.instructions import AnswerDenied, AnswerOffer, AnswerReclaim, SendRevoke
from aqua_daemon.core.model import GpuUuid, LeaseId, LeaseState, RequestId, SessionId
from aqua_daemon.core.sizes import MIB
from tests.core.bench import CACHE, HOME, NEAR, SLAB, STORE, Bench


def owner_of(bench: Bench, *, pid: int = 50) -> SessionId:
    """A session whose process uses NEAR, and borrows nothing."""
    session = bench.open(f"owner-{pid}", pid=pid, home=NEAR)
    bench.report(NEAR, {pid: MIB})
    return session


def offer(bench: Bench, session: SessionId, nbytes: int, *, gpu: GpuUuid = NEAR) -> None:
    bench.handle(
        OfferMade(session_id=session, request_id=bench.request_id(), gpu=gpu, nbytes=nbytes)
    )


def lent(bench: Bench, count: int) -> tuple[SessionId, SessionId, list[LeaseId]]:
    """An owner of NEAR, a borrower, and what it has of NEAR."""
    owner = owner_of(bench)
    borrower = bench.open("borrower", pid=60)
    return owner, borrower, [bench.grant(borrower) for _ in range(count)]


def test_a_reclaim_is_answered_when_the_driver_has_the_bytes() -> None:
    """Asked, revoked in whole slabs, acknowledged, freed: then the answer, with all figures."""
    bench = Bench()
    owner, borrower, leases = lent(bench, 3)
    bench.reclaim(owner, SLAB + 1)
    [order] = bench.the(SendRevoke)
    assert order.nbytes == 2 * SLAB
    bench.now += 0.5
    bench.acknowledge(borrower, *order.lease_ids)
    assert bench.the(AnswerReclaim) == []  # returned is not free
    bench.freed(order.lease_ids[0])
    assert bench.the(AnswerReclaim) == []
    bench.now += 0.25
    bench.freed(order.lease_ids[1])
    [answer] = bench.the(AnswerReclaim)
    assert (answer.session_id, answer.asked_bytes) == (owner, SLAB + 1)
    assert (answer.revoked_bytes, answer.freed_bytes) == (2 * SLAB, 2 * SLAB)
    assert answer.quarantined_bytes == 0
    assert answer.seconds == pytest.approx(0.75)
    assert len(bench.snapshot.leases) == len(leases) - 2


def test_a_reclaim_is_answered_partly_when_its_time_is_over() -> None:
    """Two seconds after the deadline, with the bytes that did not come back named."""
    bench = Bench()
    owner, borrower, _ = lent(bench, 2)
    bench.reclaim(owner, 2 * SLAB)
    [order] = bench.the(SendRevoke)
    bench.acknowledge(borrower, order.lease_ids[0])
    bench.freed(order.lease_ids[0])
    bench.tick(3.9)
    assert bench.the(AnswerReclaim) == []
    assert bench.state(order.lease_ids[1]) is LeaseState.QUARANTINED
    bench.tick(0.2)
    [answer] = bench.the(AnswerReclaim)
    assert (answer.freed_bytes, answer.quarantined_bytes) == (SLAB, SLAB)
    assert answer.seconds == pytest.approx(4.0, abs=0.11)


def test_a_slab_that_heals_in_time_counts_as_freed() -> None:
    """Quarantine at the deadline is not the end of a reclaim."""
    bench = Bench()
    owner, borrower, [lease_id] = lent(bench, 1)
    bench.reclaim(owner, 1)
    bench.tick(2.5)
    bench.acknowledge(borrower, lease_id)
    bench.freed(lease_id)
    assert bench.the(AnswerReclaim)[0].freed_bytes == SLAB


def test_asking_twice_buys_the_borrower_no_time_and_takes_nothing_more() -> None:
    """The second reclaim waits for what the first set on its way."""
    bench = Bench()
    owner, borrower, _ = lent(bench, 3)
    bench.reclaim(owner, SLAB)
    [order] = bench.the(SendRevoke)
    bench.now += 1.5
    bench.reclaim(owner, SLAB)
    assert bench.the(SendRevoke) == []
    revocation = bench.lease(order.lease_ids[0]).revocation
    assert revocation is not None
    assert revocation.deadline == order.deadline
    bench.tick(0.6)
    assert bench.state(order.lease_ids[0]) is LeaseState.QUARANTINED
    bench.acknowledge(borrower, *order.lease_ids)
    bench.freed(*order.lease_ids)
    assert [answer.freed_bytes for answer in bench.the(AnswerReclaim)] == [SLAB, SLAB]


def test_what_was_reclaimed_is_not_lent_again() -> None:
    """The limit falls to what stays lent, and goes with the session that set it."""
    bench = Bench()
    owner, borrower, _ = lent(bench, 2)
    bench.reclaim(owner, SLAB)
    [order] = bench.the(SendRevoke)
    bench.acknowledge(borrower, *order.lease_ids)
    bench.freed(*order.lease_ids)
    gpu = bench.gpu(NEAR)
    assert (gpu.lend_limit_bytes, gpu.lendable_bytes) == (SLAB, 0)
    with pytest.raises(InsufficientMemory, match="owners' limits"):
        bench.ask(borrower)
    bench.handle(SessionClosed(session_id=owner))
    assert bench.gpu(NEAR).lend_limit_bytes is None
    assert bench.state(bench.grant(borrower)) is LeaseState.LEASED


def test_a_reclaim_raises_no_offer() -> None:
    """What was offered last, though less than is lent, is still all that may be lent."""
    bench = Bench()
    owner, borrower, _ = lent(bench, 3)
    offer(bench, owner, SLAB)
    bench.reclaim(owner, SLAB)
    [order] = bench.the(SendRevoke)
    bench.acknowledge(borrower, *order.lease_ids)
    bench.freed(*order.lease_ids)
    assert bench.gpu(NEAR).lend_limit_bytes == SLAB


def test_a_reclaim_is_answered_after_the_latest_of_its_deadlines() -> None:
    """Dropping `cache` takes a quarter of a second; what has to be copied is waited for, too."""
    bench = Bench()
    owner = owner_of(bench)
    borrower = bench.open("borrower", pid=60)
    late = [bench.grant(borrower, safety_class=one) for one in (CACHE, STORE)]
    bench.reclaim(owner, 2 * SLAB)
    bench.tick(3.9)
    assert bench.the(AnswerReclaim) == []
    bench.acknowledge(borrower, *late)
    bench.freed(*late)
    assert bench.the(AnswerReclaim)[0].freed_bytes == 2 * SLAB


def test_what_has_come_back_buys_those_who_have_not_no_time() -> None:
    """Only its keeper is waited for, however long its holder might have taken."""
    bench = Bench()
    owner, borrower, _ = lent(bench, 2)
    bench.reclaim(owner, SLAB, seconds=30.0)
    [order] = bench.the(SendRevoke)
    bench.acknowledge(borrower, *order.lease_ids)
    bench.reclaim(owner, 2 * SLAB)
    bench.tick(4.0)
    [answer] = bench.the(AnswerReclaim)
    assert (answer.freed_bytes, answer.quarantined_bytes) == (0, SLAB)


def test_a_reclaim_of_what_nobody_borrows_is_answered_at_once() -> None:
    """There is nothing to wait for; and nothing is lent until an offer says so."""
    bench = Bench()
    owner = owner_of(bench)
    bench.reclaim(owner, SLAB)
    [answer] = bench.the(AnswerReclaim)
    assert (answer.revoked_bytes, answer.freed_bytes, answer.seconds) == (0, 0, 0.0)
    assert bench.gpu(NEAR).lend_limit_bytes == 0


def test_a_repeated_reclaim_has_one_effect_and_one_answer_that_is_said_again() -> None:
    """Pending: nothing; answered: the same answer."""
    bench = Bench()
    owner, borrower, leases = lent(bench, 2)
    event = ReclaimRequested(
        session_id=owner, request_id=RequestId("r"), gpu=NEAR, nbytes=SLAB, deadline_seconds=None
    )
    bench.handle(event)
    [order] = bench.the(SendRevoke)
    assert bench.handle(event) == ()
    bench.acknowledge(borrower, *order.lease_ids)
    bench.freed(*order.lease_ids)
    [answer] = bench.the(AnswerReclaim)
    assert bench.handle(event) == (answer,)
    assert [bench.state(lease_id) for lease_id in leases].count(LeaseState.LEASED) == 1


def test_the_deadline_is_what_the_producer_tells() -> None:
    """Longer only if told."""
    bench = Bench()
    owner, _, [lease_id] = lent(bench, 1)
    bench.reclaim(owner, 1, seconds=5.0)
    bench.tick(4.9)
    assert bench.state(lease_id) is LeaseState.REVOKING
    bench.tick(0.2)
    assert bench.state(lease_id) is LeaseState.QUARANTINED


@pytest.mark.parametrize("seconds", [0.0, -1.0, 61.0, float("inf"), float("nan")])
def test_a_deadline_that_can_not_be_is_invalid(seconds: float) -> None:
    """Nothing is revoked."""
    bench = Bench()
    owner, _, [lease_id] = lent(bench, 1)
    with pytest.raises(InvalidRequest, match="deadline"):
        bench.reclaim(owner, 1, seconds=seconds)
    assert bench.state(lease_id) is LeaseState.LEASED


def test_only_a_process_of_the_gpu_may_offer_or_reclaim_it() -> None:
    """As the keeper's last report says; a borrower may not, nor the owner once it has left."""
    bench = Bench()
    owner, borrower, _ = lent(bench, 1)
    before = bench.snapshot
    with pytest.raises(NotPermitted, match="does not use SHM-1"):
        bench.reclaim(borrower, SLAB)
    with pytest.raises(NotPermitted):
        offer(bench, borrower, SLAB)
    with pytest.raises(NotPermitted):
        bench.reclaim(owner, SLAB, gpu=HOME)
    assert bench.snapshot == before
    bench.report(NEAR, {})
    with pytest.raises(NotPermitted):
        bench.reclaim(owner, SLAB)


@pytest.mark.parametrize("nbytes", [0, -1])
def test_a_reclaim_of_nothing_is_invalid(nbytes: int) -> None:
    """At least one byte."""
    bench = Bench()
    with pytest.raises(InvalidRequest, match="at least one"):
        bench.reclaim(owner_of(bench), nbytes)


def test_a_gpu_that_is_not_there_is_invalid() -> None:
    """The message says which are."""
    bench = Bench()
    owner = owner_of(bench)
    with pytest.raises(InvalidRequest, match="SHM-0, SHM-1"):
        bench.reclaim(owner, SLAB, gpu=GpuUuid("SHM-9"))


def test_an_offer_bounds_what_is_lent_and_the_lowest_of_several_counts() -> None:
    """Two processes of one GPU: each may bound it."""
    bench = Bench()
    first = owner_of(bench, pid=50)
    second = bench.open("owner-51", pid=51, home=NEAR)
    bench.report(NEAR, {50: MIB, 51: MIB})
    offer(bench, first, 3 * SLAB)
    [answer] = bench.the(AnswerOffer)
    assert (answer.offered_bytes, answer.lent_bytes) == (3 * SLAB, 0)
    offer(bench, second, SLAB)
    borrower = bench.open("borrower", pid=60)
    bench.grant(borrower)
    with pytest.raises(InsufficientMemory):
        bench.ask(borrower)
    bench.handle(ProcessEnded(session_id=second))
    assert bench.gpu(NEAR).lend_limit_bytes == 3 * SLAB
    bench.grant(borrower)
    bench.grant(borrower)
    with pytest.raises(InsufficientMemory):
        bench.ask(borrower)


def test_an_offer_below_what_is_lent_revokes_nothing() -> None:
    """Taking back is a reclaim's job."""
    bench = Bench()
    owner, _, [lease_id] = lent(bench, 1)
    offer(bench, owner, 0)
    assert bench.the(AnswerOffer)[0].lent_bytes == SLAB
    bench.tick(1.0)
    assert bench.state(lease_id) is LeaseState.LEASED
    assert bench.gpu(NEAR).lendable_bytes == 0


def test_an_offer_below_zero_is_invalid() -> None:
    """And sets no limit."""
    bench = Bench()
    owner = owner_of(bench)
    with pytest.raises(InvalidRequest, match="below 0"):
        offer(bench, owner, -1)
    assert bench.gpu(NEAR).lend_limit_bytes is None


def test_a_late_repeat_of_an_offer_does_not_undo_a_later_one() -> None:
    """One effect per request id."""
    bench = Bench()
    owner = owner_of(bench)
    first = OfferMade(session_id=owner, request_id=RequestId("r"), gpu=NEAR, nbytes=SLAB)
    bench.handle(first)
    offer(bench, owner, 0)
    bench.handle(first)
    assert bench.gpu(NEAR).lend_limit_bytes == 0


def test_a_producer_that_ends_is_told_nothing_more_and_its_revokes_go_on() -> None:
    """Who waits for the answer hears that its session is over."""
    bench = Bench()
    owner, _, [lease_id] = lent(bench, 1)
    bench.reclaim(owner, SLAB)
    bench.handle(ProcessEnded(session_id=owner))
    [answer] = bench.the(AnswerDenied)
    assert isinstance(answer.error, UnknownSession)
    assert bench.state(lease_id) is LeaseState.REVOKING
    bench.tick(5.0)
    assert bench.the(AnswerReclaim) == []
