"""What is asked back already is asked for again, with less time; and GPUs that are taken back whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aqua_daemon.core.errors import ExchangeTooLate
from aqua_daemon.core.events import DrainRequested, ProcessEnded, QuiesceRequested, SentinelEnded
from aqua_daemon.core.instructions import (
    AnswerDrain,
    AnswerReclaim,
    FreeSlab,
    Instruction,
    SendRevoke,
)
from aqua_daemon.core.model import LeaseId, LeaseState, RevokeReason, SessionId
from aqua_daemon.core.sizes import CACHE_REVOKE_SECONDS, MIB, STANDARD_REVOKE_SECONDS
from tests.core.bench import CACHE, GPU_BYTES, NEAR, SLAB, STORE, Bench, use

LEISURE = 30.0


def lent(count: int, *, rate: float = 2.0**40) -> tuple[Bench, SessionId, SessionId, list[LeaseId]]:
    """A bench, an owner of NEAR that is an admin, a borrower, and what it has of NEAR."""
    bench = Bench(host_bytes_per_second=rate)
    owner = bench.open("owner", pid=50, home=NEAR, is_admin=True)
    bench.report(NEAR, {50: MIB})
    borrower = bench.open("borrower", pid=60)
    return bench, owner, borrower, [bench.grant(borrower) for _ in range(count)]


def seconds_left(bench: Bench, lease_id: LeaseId) -> float:
    revocation = bench.lease(lease_id).revocation
    assert revocation is not None
    return revocation.deadline - bench.now


def drain(bench: Bench, owner: SessionId, seconds: float | None) -> tuple[Instruction, ...]:
    return bench.handle(
        DrainRequested(
            session_id=owner,
            request_id=bench.request_id(),
            gpus=(NEAR,),
            deadline_seconds=seconds,
            is_dry_run=False,
        )
    )


def take_back(bench: Bench, owner: SessionId, *, seconds: float = 60.0) -> tuple[Instruction, ...]:
    return bench.handle(
        QuiesceRequested(
            session_id=owner,
            request_id=bench.request_id(),
            gpu=NEAR,
            seconds=seconds,
            takes_back=True,
        )
    )


def test_an_owner_in_need_hastens_what_it_asked_for_at_leisure() -> None:
    """The holder is told again at once, and what does not come is quarantined by then."""
    bench, owner, borrower, _ = lent(3)
    bench.reclaim(owner, SLAB, seconds=LEISURE)
    [first] = bench.the(SendRevoke)
    bench.now += 1.0
    bench.reclaim(owner, SLAB, seconds=0.5)
    [again] = bench.the(SendRevoke)
    assert (again.session_id, again.lease_ids) == (borrower, first.lease_ids)
    assert again.reason is RevokeReason.RECLAIM
    assert again.deadline == bench.now + 0.5
    assert bench.broker.next_deadline() == again.deadline
    bench.tick(0.4)
    assert bench.state(first.lease_ids[0]) is LeaseState.REVOKING
    bench.tick(0.1)
    assert bench.state(first.lease_ids[0]) is LeaseState.QUARANTINED


def test_each_reclaim_is_answered_by_its_own_deadline() -> None:
    """The one in need in part after its time; the one at leisure when all has come."""
    bench, owner, borrower, _ = lent(2)
    bench.reclaim(owner, 2 * SLAB, seconds=LEISURE)
    [order] = bench.the(SendRevoke)
    bench.reclaim(owner, 2 * SLAB, seconds=0.5)
    bench.acknowledge(borrower, order.lease_ids[0])
    bench.freed(order.lease_ids[0])
    bench.tick(2.4)
    assert bench.the(AnswerReclaim) == []
    bench.tick(0.2)
    [in_need] = bench.the(AnswerReclaim)
    assert (in_need.freed_bytes, in_need.quarantined_bytes) == (SLAB, SLAB)
    bench.tick(10.0)
    assert bench.the(AnswerReclaim) == []
    bench.acknowledge(borrower, order.lease_ids[1])
    bench.freed(order.lease_ids[1])
    [at_leisure] = bench.the(AnswerReclaim)
    assert (at_leisure.freed_bytes, at_leisure.quarantined_bytes) == (2 * SLAB, 0)


def test_no_more_is_hastened_than_is_needed_and_what_comes_first_counts_first() -> None:
    """Of three on their way the one that comes first is waited for; the other two keep their time."""
    bench, owner, _, leases = lent(3)
    bench.reclaim(owner, 2 * SLAB, seconds=LEISURE)
    bench.reclaim(owner, 3 * SLAB, seconds=10.0)
    assert [seconds_left(bench, one) for one in leases] == [10.0, 10.0, 10.0]
    bench, owner, _, leases = lent(3)
    bench.reclaim(owner, 3 * SLAB, seconds=LEISURE)
    bench.reclaim(owner, SLAB, seconds=10.0)
    [first] = [order.lease_ids for order in bench.the(SendRevoke)]
    bench.reclaim(owner, SLAB, seconds=5.0)
    [second] = [order.lease_ids for order in bench.the(SendRevoke)]
    assert first == second
    assert sorted(seconds_left(bench, one) for one in leases) == [5.0, LEISURE, LEISURE]


def test_what_is_missing_is_asked_for_beside_what_is_hastened() -> None:
    """One message where all has one deadline."""
    bench, owner, _, leases = lent(3)
    bench.reclaim(owner, SLAB, seconds=LEISURE)
    bench.reclaim(owner, 3 * SLAB, seconds=1.0)
    [order] = bench.the(SendRevoke)
    assert (set(order.lease_ids), order.nbytes) == (set(leases), 3 * SLAB)


@pytest.mark.parametrize("seconds", [None, 0.5, 1.0, LEISURE])
def test_nobody_gains_time(seconds: float | None) -> None:
    """Whoever asks again, with as much time or more, tells nobody anything."""
    for again in (
        lambda bench, owner: bench.reclaim(owner, 2 * SLAB, seconds=seconds),
        lambda bench, owner: drain(bench, owner, seconds),
        take_back,
    ):
        bench, owner, _, leases = lent(2)
        bench.reclaim(owner, 2 * SLAB, seconds=0.5)
        deadline = bench.now + 0.5
        bench.now += 0.1
        again(bench, owner)
        assert all(order.deadline < deadline for order in bench.the(SendRevoke))
        assert all(bench.now + seconds_left(bench, one) <= deadline for one in leases)


def _newcomer(bench: Bench, owner: SessionId) -> None:  # noqa: ARG001 - as the others are called
    bench.report(NEAR, {50: MIB, 51: MIB})


@pytest.mark.parametrize(
    "comes", [take_back, _newcomer, lambda bench, owner: drain(bench, owner, None)]
)
def test_who_wants_all_of_a_gpu_hastens_what_is_under_way(
    comes: Callable[[Bench, SessionId], object],
) -> None:
    """To the standard deadline of each class; the reason stays that of who asked first."""
    bench = Bench(newcomer_seconds=5.0)
    owner = bench.open("owner", pid=50, home=NEAR, is_admin=True)
    bench.report(NEAR, {50: MIB})
    bench.tick(5.1)
    borrower = bench.open("borrower", pid=60)
    store, cached = (bench.grant(borrower, safety_class=one) for one in (STORE, CACHE))
    bench.reclaim(owner, 2 * SLAB, seconds=LEISURE)
    comes(bench, owner)
    orders = {order.lease_ids: order for order in bench.the(SendRevoke)}
    assert orders[store,].deadline == bench.now + STANDARD_REVOKE_SECONDS
    assert orders[cached,].deadline == bench.now + CACHE_REVOKE_SECONDS
    assert {order.reason for order in orders.values()} == {RevokeReason.RECLAIM}


def test_a_drain_says_by_when_what_it_hastens_is_there() -> None:
    """And a second one with less time hastens the first."""
    bench, owner, _, [lease_id] = lent(1)
    drain(bench, owner, LEISURE)
    drain(bench, owner, 3.0)
    assert bench.the(AnswerDrain)[0].deadline_seconds == 3.0
    assert seconds_left(bench, lease_id) == 3.0


def test_who_names_no_time_waits_for_the_link_as_ever() -> None:
    """In a storm the standard deadline is what the link takes for all that is under way, once."""
    bench, owner, _, leases = lent(4, rate=float(16 * MIB))
    bench.reclaim(owner, 4 * SLAB, seconds=LEISURE)
    bench.reclaim(owner, 4 * SLAB)
    assert {seconds_left(bench, one) for one in leases} == {4 * SLAB / (16 * MIB)}
    bench.reclaim(owner, 4 * SLAB, seconds=1.0)  # who names one takes what comes by then
    assert {seconds_left(bench, one) for one in leases} == {1.0}


def test_an_exchange_has_no_more_time_than_what_was_hastened() -> None:
    """The time that has passed counts: what else is offered would have to come in what is left."""
    bench, owner, borrower, _ = lent(2)
    bench.reclaim(owner, SLAB, seconds=2.0)
    [order] = bench.the(SendRevoke)
    [other] = {one.lease_id for one in bench.snapshot.leases} - set(order.lease_ids)
    bench.now += 0.8
    bench.reclaim(owner, SLAB, seconds=0.5)
    with pytest.raises(ExchangeTooLate):
        bench.exchange(borrower, spared=order.lease_ids, offered=(other,))


def test_a_reminder_says_the_earlier_deadline() -> None:
    """What is pushed again with a sign of life is what was said last."""
    bench, owner, borrower, [lease_id] = lent(1)
    bench.reclaim(owner, SLAB, seconds=LEISURE)
    bench.reclaim(owner, SLAB, seconds=1.0)
    [order] = bench.the(SendRevoke)
    bench.keepalive(borrower, use(lease_id))
    assert bench.the(SendRevoke) == [order]


def test_of_the_dead_nobody_is_hurried() -> None:
    """Their sentinel ends when it ends; nobody is there to be told."""
    bench, owner, borrower, [lease_id] = lent(1)
    bench.handle(ProcessEnded(session_id=borrower))
    bench.reclaim(owner, SLAB, seconds=0.1)
    assert bench.the(SendRevoke) == []
    revocation = bench.lease(lease_id).revocation
    assert revocation is not None
    assert revocation.reason is RevokeReason.DEAD


def test_an_owner_that_grows_hastens_what_was_asked_for_at_leisure() -> None:
    """As much as makes the reserve whole; a drain or a reclaim had given it half a minute."""
    bench, owner, _, leases = lent(5)
    bench.reclaim(owner, 3 * SLAB, seconds=LEISURE)
    reserve = bench.gpu(NEAR).reserve_bytes
    bench.report(NEAR, {50: GPU_BYTES - 5 * SLAB - reserve + SLAB})
    [order] = bench.the(SendRevoke)
    assert (order.nbytes, order.reason) == (SLAB, RevokeReason.RECLAIM)
    assert order.deadline == bench.now + STANDARD_REVOKE_SECONDS
    assert [bench.state(one) for one in leases].count(LeaseState.LEASED) == 2
    assert not any(isinstance(one, SendRevoke) for one in bench.tick(1.0))


def test_as_a_storm_abates_nobody_is_told_at_each_tick() -> None:
    """What comes back sooner than the link was thought to carry shortens no other's time by a little."""
    bench, _, borrower, _ = lent(6, rate=float(16 * MIB))
    bench.report(NEAR, {50: GPU_BYTES})
    [order] = bench.the(SendRevoke)
    assert order.deadline == bench.now + 6 * SLAB / (16 * MIB)
    bench.now += 0.1
    bench.acknowledge(borrower, order.lease_ids[0])
    bench.freed(order.lease_ids[0])
    bench.tick()
    assert bench.the(SendRevoke) == []


def freed(instructions: tuple[Instruction, ...]) -> list[LeaseId]:
    return [order.lease_id for order in instructions if isinstance(order, FreeSlab)]


def test_a_gpu_that_is_taken_back_gets_at_once_whatever_comes() -> None:
    """Also what was asked for by others, came before, or comes because its holder is gone."""
    bench, owner, borrower, leases = lent(6)
    bench.report(NEAR, {50: GPU_BYTES - 6 * SLAB})
    [order] = bench.the(SendRevoke)
    assert order.reason is RevokeReason.RESERVE
    other = bench.open("other", pid=2, is_admin=True)
    bench.handle(
        QuiesceRequested(session_id=other, request_id=bench.request_id(), gpu=NEAR, seconds=60.0)
    )
    [early] = [one for one in leases if one not in order.lease_ids][:1]
    assert freed(bench.release(borrower, early)) == []
    assert freed(take_back(bench, owner)) == [early]
    assert freed(bench.acknowledge(borrower, *order.lease_ids)) == list(order.lease_ids)
    bench.handle(ProcessEnded(session_id=borrower))
    rest = [one for one in leases if one != early and one not in order.lease_ids]
    assert freed(bench.handle(SentinelEnded(session_id=borrower))) == rest


def test_asking_for_more_quiet_goes_on_taking_back() -> None:
    """What is late then is owed as before."""
    bench, owner, borrower, [lease_id] = lent(1)
    bench.report(NEAR, {50: MIB})
    take_back(bench, owner)
    bench.handle(
        QuiesceRequested(session_id=owner, request_id=bench.request_id(), gpu=NEAR, seconds=9.0)
    )
    bench.handle(ProcessEnded(session_id=borrower))
    assert freed(bench.handle(SentinelEnded(session_id=borrower))) == [lease_id]


def test_what_a_keeper_turns_out_to_hold_is_taken_back_too() -> None:
    """A new daemon is asked before it has heard the keeper: the holder gets a term to come back."""
    bench, _, _, [lease_id] = lent(1)
    bench.restart()
    admin = bench.open("admin", pid=1, is_admin=True)
    take_back(bench, admin)
    bench.attach(*bench.settings.gpus, slabs=tuple(bench.tags.values()))
    assert bench.state(lease_id) is LeaseState.REVOKING
    assert seconds_left(bench, lease_id) == bench.settings.term_seconds
