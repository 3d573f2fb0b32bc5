"""Revokes: who is chosen, how long there is, and what happens to what does not come back."""

from __future__ import annotations

import pytest

from aqua_daemon.core.events import SlabAllocated
from aqua_daemon.core.instructions import AnswerDenied, AnswerReclaim, FreeSlab, SendRevoke
from aqua_daemon.core.model import LeaseId, LeaseState, RevokeReason
from aqua_daemon.core.sizes import (
    CACHE_REVOKE_SECONDS,
    LONGEST_REVOKE_SECONDS,
    MIB,
    STANDARD_REVOKE_SECONDS,
)
from tests.core.bench import BOB, CACHE, FAR, GPU_BYTES, HOME, NEAR, SLAB, STORE, Bench, use


def revoking(bench: Bench) -> set[LeaseId]:
    return {lease.lease_id for lease in bench.snapshot.leases if lease.state is LeaseState.REVOKING}


def test_an_owner_that_grows_into_the_reserve_gets_it_back() -> None:
    """Revoke while free < reserve, as many slabs as make it whole, and tell their holder."""
    bench = Bench()
    session = bench.open()
    for _ in range(6):
        bench.grant(session)
    reserve = bench.gpu(NEAR).reserve_bytes
    bench.report(NEAR, {7: 64 * MIB - reserve})
    assert bench.the(SendRevoke) == []  # exactly whole
    bench.report(NEAR, {7: 64 * MIB - reserve + 1})
    [order] = bench.the(SendRevoke)
    assert order.session_id == session
    assert order.reason is RevokeReason.RESERVE
    assert order.nbytes == SLAB
    assert set(order.lease_ids) == revoking(bench)
    assert order.deadline == bench.now + 2.0


def test_a_reserve_that_is_on_its_way_is_not_asked_for_twice() -> None:
    """Reports and ticks repeat the question; the answer is already coming."""
    bench = Bench()
    session = bench.open()
    for _ in range(6):
        bench.grant(session)
    bench.report(NEAR, {7: 64 * MIB})
    [lease_id] = revoking(bench)
    for _ in range(3):
        bench.report(NEAR, {7: 64 * MIB})
        bench.tick()
    assert revoking(bench) == {lease_id}
    bench.acknowledge(session, lease_id)
    bench.tick()
    assert revoking(bench) == set()  # returned and freeing are on their way as well


def test_what_is_quarantined_is_not_on_its_way() -> None:
    """It did not come: the reserve is made whole from somebody else."""
    bench = Bench()
    session = bench.open()
    for _ in range(6):
        bench.grant(session)
    bench.report(NEAR, {7: 64 * MIB})
    [first] = revoking(bench)
    bench.keepalive(session, *(use(lease.lease_id) for lease in bench.snapshot.leases))
    bench.tick(2.1)
    assert bench.state(first) is LeaseState.QUARANTINED
    assert len(revoking(bench)) == 1
    assert bench.gpu(NEAR).quarantined_bytes == SLAB


def test_unused_slabs_go_first_then_cache_then_the_coldest_store() -> None:
    """Reserve by reserve, one slab at a time."""
    bench = Bench()
    session = bench.open()
    hot = bench.grant(session)
    cold = bench.grant(session)
    cache = bench.grant(session, safety_class=CACHE)
    unused = bench.grant(session)
    bench.keepalive(
        session,
        use(hot, idle_seconds=1.0),
        use(cold, idle_seconds=50.0),
        use(cache, idle_seconds=0.0),
        use(unused, used_bytes=0),
    )
    order = []
    bench.report(NEAR, {11: 1})
    for _ in range(4):
        before = revoking(bench)
        bench.reclaim(session, SLAB * (len(before) + 1))
        order += list(revoking(bench) - before)
    assert order == [unused, cache, cold, hot]


def test_a_slab_nothing_was_said_of_is_in_use() -> None:
    """Unknown is not unused: the one that is known to be empty goes first."""
    bench = Bench()
    session = bench.open()
    silent, unused = bench.grant(session), bench.grant(session)
    bench.keepalive(session, use(unused, used_bytes=0))
    bench.report(NEAR, {11: 1})
    bench.reclaim(session, 1)
    assert revoking(bench) == {unused}
    assert bench.state(silent) is LeaseState.LEASED


def test_what_is_not_made_yet_goes_before_anything_that_is_used() -> None:
    """Nobody has seen it: it is freed when it comes, and its request is denied."""
    bench = Bench()
    session = bench.open()
    made, unmade = bench.grant(session), bench.ask(session)
    bench.report(NEAR, {11: 1})
    bench.reclaim(session, SLAB)
    assert bench.the(SendRevoke) == []
    assert bench.state(unmade) is LeaseState.ALLOCATING
    bench.handle(SlabAllocated(lease_id=unmade))
    assert bench.the(FreeSlab) == [FreeSlab(gpu=NEAR, lease_id=unmade)]
    assert "not lending" in str(bench.the(AnswerDenied)[0].error)
    assert bench.state(made) is LeaseState.LEASED


@pytest.mark.parametrize(("safety_class", "seconds"), [(STORE, 2.0), (CACHE, 0.25)])
def test_the_deadline_is_that_of_the_class(safety_class: object, seconds: float) -> None:
    """Nothing has to be copied out of a cache."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session, safety_class=safety_class)  # type: ignore[arg-type]  # of the table
    bench.report(NEAR, {11: 1})
    bench.reclaim(session, 1)
    revocation = bench.lease(lease_id).revocation
    assert revocation is not None
    assert revocation.deadline == bench.now + seconds
    assert bench.the(SendRevoke)[0].deadline == revocation.deadline


def test_each_holder_is_told_once_for_what_has_one_deadline() -> None:
    """Two sessions, two classes: a message for each pair that there is."""
    bench = Bench()
    first, second = bench.open("s1", pid=11), bench.open("s2", pid=12, tenant=BOB)
    stores = {bench.grant(first), bench.grant(first)}
    cached = bench.grant(first, safety_class=CACHE)
    other = bench.grant(second)
    bench.report(NEAR, {11: 1})
    bench.reclaim(first, 4 * SLAB)
    told = {(order.session_id, frozenset(order.lease_ids)) for order in bench.the(SendRevoke)}
    assert told == {
        (first, frozenset(stores)),
        (first, frozenset({cached})),
        (second, frozenset({other})),
    }


def test_a_revoke_ends_at_its_deadline_in_quarantine_and_heals_late() -> None:
    """REVOKING, QUARANTINED, then RETURNED on the late acknowledgement; never counted as free."""
    bench = Bench()
    session = bench.open()
    empty = bench.gpu(NEAR).free_bytes
    lease_id = bench.grant(session)
    bench.report(NEAR, {11: 0})
    bench.reclaim(session, 1)
    bench.tick(1.9)
    assert bench.state(lease_id) is LeaseState.REVOKING
    bench.tick(0.2)
    assert bench.moves == [(LeaseState.REVOKING, LeaseState.QUARANTINED, "overdue")]
    assert bench.gpu(NEAR).quarantined_bytes == SLAB
    assert bench.gpu(NEAR).free_bytes == empty - SLAB
    assert bench.tenant(bench.snapshot.tenants[0].tenant).leased_bytes == SLAB

    bench.acknowledge(session, lease_id)
    assert bench.moves[0] == (LeaseState.QUARANTINED, LeaseState.RETURNED, "acknowledged")
    bench.freed(lease_id)
    assert bench.gpu(NEAR).free_bytes == empty


def test_an_acknowledgement_between_deadline_and_tick_counts() -> None:
    """Only a tick looks at deadlines."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.report(NEAR, {11: 0})
    bench.reclaim(session, 1)
    bench.now += 2.05
    bench.acknowledge(session, lease_id)
    assert bench.state(lease_id) is LeaseState.FREEING
    bench.tick()
    assert bench.state(lease_id) is LeaseState.FREEING


def test_a_holder_is_reminded_with_each_sign_of_life() -> None:
    """The push may have been lost with its connection; the deadline stays what it was."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.report(NEAR, {11: 0})
    bench.reclaim(session, 1)
    [order] = bench.the(SendRevoke)
    bench.now += 1.0
    bench.keepalive(session, use(lease_id))
    assert bench.the(SendRevoke) == [order]
    bench.tick(1.5)
    assert bench.state(lease_id) is LeaseState.QUARANTINED
    bench.reattach(session, use(lease_id))
    assert bench.the(SendRevoke) == [order]
    assert bench.state(lease_id) is LeaseState.QUARANTINED


def test_the_next_deadline_is_the_nearest_thing_to_look_at() -> None:
    """So that a tick can come when it is due, and not only every 100 ms."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session, safety_class=CACHE)
    bench.keepalive(session, use(lease_id))
    bench.report(NEAR, {11: 0})
    bench.reclaim(session, 1)
    deadline = bench.broker.next_deadline()
    assert deadline == bench.now + 0.25
    bench.now = deadline
    bench.tick()
    assert bench.state(lease_id) is LeaseState.QUARANTINED


def test_a_storm_gets_the_time_that_the_way_to_host_memory_takes() -> None:
    """All evacuations share one link: more than it carries in two seconds gets later deadlines."""
    bench = Bench(host_bytes_per_second=float(16 * MIB))
    session = bench.open()
    for _ in range(4):
        bench.grant(session)
    cached = bench.grant(session, safety_class=CACHE)
    bench.report(NEAR, {50: GPU_BYTES})  # everything is wanted back
    deadlines = {
        lease.lease_id: lease.revocation.deadline - bench.now
        for lease in bench.snapshot.leases
        if lease.revocation is not None
    }
    assert deadlines.pop(cached) == pytest.approx(CACHE_REVOKE_SECONDS)
    assert set(deadlines.values()) == {8.0}


def test_what_fits_into_two_seconds_has_two_seconds() -> None:
    """The standard deadline is the shortest for what has to be copied."""
    bench = Bench(host_bytes_per_second=float(64 * MIB))
    session = bench.open()
    lease_id = bench.grant(session)
    bench.report(NEAR, {50: GPU_BYTES})
    revocation = bench.lease(lease_id).revocation
    assert revocation is not None
    assert revocation.deadline - bench.now == pytest.approx(STANDARD_REVOKE_SECONDS)


def test_a_reclaim_in_a_storm_is_answered_after_the_later_deadline() -> None:
    """A producer that names no deadline waits for what the link can carry, and no longer."""
    bench = Bench(host_bytes_per_second=float(16 * MIB))
    owner = bench.open("owner", pid=50, home=NEAR)
    bench.report(NEAR, {50: MIB})
    session = bench.open()
    for _ in range(4):
        bench.grant(session)
    bench.reclaim(owner, 4 * SLAB)
    for _ in range(9):
        bench.keepalive(session)
        bench.keepalive(owner)
        bench.tick(1.0)
    assert bench.the(AnswerReclaim) == []
    bench.tick(1.1)
    assert bench.the(AnswerReclaim)[0].quarantined_bytes == 4 * SLAB


def test_a_storm_counts_what_is_under_way_already() -> None:
    """Whoever is asked second shares the way with the first, and is given the time of both."""
    bench = Bench(host_bytes_per_second=float(16 * MIB), gpus=(HOME, NEAR, FAR))
    session = bench.open()
    for _ in range(4):
        bench.grant(session)
    near = sum(lease.lender == NEAR for lease in bench.snapshot.leases)
    assert 0 < near < 4
    owners = {gpu: bench.open(gpu, pid=pid, home=gpu) for gpu, pid in ((NEAR, 50), (FAR, 51))}
    bench.report(NEAR, {50: MIB})
    bench.report(FAR, {51: MIB})
    bench.reclaim(owners[NEAR], 4 * SLAB)
    bench.reclaim(owners[FAR], 4 * SLAB, gpu=FAR)
    [order] = bench.the(SendRevoke)
    assert order.deadline - bench.now == pytest.approx(4 * SLAB / (16 * MIB))


def test_no_storm_lasts_for_ever() -> None:
    """However slow the way is, an owner waits for a minute at most."""
    bench = Bench(host_bytes_per_second=float(MIB))
    owner = bench.open("owner", pid=50, home=NEAR)
    bench.report(NEAR, {50: MIB})
    session = bench.open()
    for _ in range(4):
        bench.grant(session)
    bench.reclaim(owner, 4 * SLAB)
    [order] = bench.the(SendRevoke)
    assert order.deadline - bench.now == LONGEST_REVOKE_SECONDS
