"""Whose leases are asked back first: by what they cost, then by share, priority and last use."""

from __future__ import annotations

from aqua_daemon.core.events import SlabAllocated
from aqua_daemon.core.instructions import FreeSlab, SendRevoke
from aqua_daemon.core.limits import Quota
from aqua_daemon.core.model import LeaseId, LeaseState, SessionId, TenantName
from aqua_daemon.core.sizes import MIB
from tests.core.bench import ALICE, BOB, GPU_BYTES, NEAR, SLAB, Bench, use


def revoking(bench: Bench) -> set[LeaseId]:
    return {one.lease_id for one in bench.snapshot.leases if one.state is LeaseState.REVOKING}


def set_by_hand(
    bench: Bench, tenant: TenantName, *, priority: int | None = None, weight: float | None = None
) -> None:
    quota = Quota(revision=1, nbytes=None, priority=priority, weight=weight)
    bench.broker._books.quotas[tenant] = quota


def two(bench: Bench) -> tuple[SessionId, SessionId]:
    return bench.open("alice"), bench.open("bob", tenant=BOB, pid=12)


def first_asked(bench: Bench, slabs: int) -> LeaseId:
    """What is asked for when an owner takes a slab more than the reserve can bear."""
    bench.report(NEAR, {50: GPU_BYTES - slabs * SLAB - 8 * MIB})
    [order] = bench.the(SendRevoke)
    [lease_id] = order.lease_ids
    return lease_id


def test_who_holds_more_than_its_part_is_asked_first_then_who_has_less_priority() -> None:
    """Bob's one slab stays while Alice has three, though hers are warmer; priority breaks a tie."""
    bench = Bench()
    alice, bob = bench.open("alice"), bench.open("bob", tenant=BOB, pid=12)
    his = bench.grant(bob)
    hers = [bench.grant(alice) for _ in range(3)]
    bench.keepalive(bob, use(his, idle_seconds=50.0))
    bench.keepalive(alice, *[use(one, idle_seconds=1.0) for one in hers])
    bench.report(NEAR, {50: GPU_BYTES - 4 * SLAB - 8 * MIB})  # 17.6 MiB short of the reserve
    [order] = bench.the(SendRevoke)
    assert order.session_id == alice
    bench = Bench()
    bench.broker._books.quotas[BOB] = Quota(revision=1, nbytes=None, priority=-1)
    alice, bob = bench.open("alice"), bench.open("bob", tenant=BOB, pid=12)
    bench.grant(alice)
    bench.grant(bob)
    bench.report(NEAR, {50: GPU_BYTES - 2 * SLAB - 8 * MIB})
    [order] = bench.the(SendRevoke)
    assert order.session_id == bob


def test_a_part_is_by_weight() -> None:
    """Alice, who may have three times as much, is not above hers with three of five slabs."""
    bench = Bench()
    set_by_hand(bench, ALICE, weight=3.0)
    alice, bob = two(bench)
    hers, his = [bench.grant(alice) for _ in range(3)], [bench.grant(bob) for _ in range(2)]
    bench.keepalive(alice, *[use(one, idle_seconds=50.0) for one in hers])
    bench.keepalive(bob, *map(use, his))
    assert first_asked(bench, 5) in his


def test_who_is_above_its_part_is_asked_before_who_has_less_priority() -> None:
    """A high priority is no leave to keep more than others."""
    bench = Bench()
    set_by_hand(bench, ALICE, priority=5)
    alice, bob = two(bench)
    hers, his = [bench.grant(alice) for _ in range(3)], bench.grant(bob)
    bench.keepalive(alice, *map(use, hers))
    bench.keepalive(bob, use(his))
    assert first_asked(bench, 4) in hers


def test_what_costs_nothing_goes_before_anything_that_is_used() -> None:
    """Whoever holds it, however little, and whatever its priority: nobody has to copy a byte."""
    bench = Bench()
    set_by_hand(bench, BOB, priority=5)
    alice, bob = two(bench)
    hers, his = [bench.grant(alice) for _ in range(3)], bench.grant(bob)
    bench.keepalive(alice, *map(use, hers))
    bench.keepalive(bob, use(his, used_bytes=0))
    assert first_asked(bench, 4) == his


def test_a_session_that_let_a_deadline_pass_is_asked_after_all_others() -> None:
    """The reserve is not made whole by asking who is stuck, though what he holds is the cheapest."""
    bench = Bench()
    stuck, busy = bench.open("stuck"), bench.open("busy", tenant=BOB, pid=12)
    kept, other = bench.grant(stuck), bench.grant(stuck)
    used = [bench.grant(busy) for _ in range(2)]
    bench.report(NEAR, {11: 0})
    bench.reclaim(stuck, 1)
    [first] = revoking(bench)
    unused = other if first == kept else kept
    bench.tick(2.1)
    assert bench.state(first) is LeaseState.QUARANTINED
    bench.keepalive(stuck, use(unused, used_bytes=0))
    bench.keepalive(busy, *map(use, used))
    bench.reclaim(stuck, 2 * SLAB)
    assert revoking(bench) == set(used)
    bench.reclaim(stuck, 3 * SLAB)
    assert revoking(bench) == {*used, unused}  # nobody else has any


def test_a_session_that_answered_late_is_asked_as_any_other() -> None:
    """What it holds is the cheapest again."""
    bench = Bench()
    late, busy = bench.open("late"), bench.open("busy", tenant=BOB, pid=12)
    pair, used = [bench.grant(late), bench.grant(late)], bench.grant(busy)
    bench.report(NEAR, {11: 0})
    bench.reclaim(late, 1)
    [first] = revoking(bench)
    bench.tick(2.1)
    bench.acknowledge(late, first)
    bench.freed(first)
    [unused] = set(pair) - {first}
    bench.keepalive(late, use(unused, used_bytes=0))
    bench.keepalive(busy, use(used))
    bench.reclaim(late, SLAB)
    assert revoking(bench) == {unused}


def test_what_was_never_made_for_a_silent_session_still_goes_first() -> None:
    """Nobody has to be asked for it."""
    bench = Bench()
    stuck, busy = bench.open("stuck"), bench.open("busy", tenant=BOB, pid=12)
    bench.grant(stuck)
    bench.report(NEAR, {50: GPU_BYTES - SLAB - 16 * MIB})  # an owner grows into the reserve
    bench.tick(2.1)
    assert bench.gpu(NEAR).quarantined_bytes == SLAB
    bench.report(NEAR, {})
    bench.grant(busy)
    unmade = bench.ask(stuck)
    bench.report(NEAR, {50: GPU_BYTES - 3 * SLAB - 16 * MIB})
    assert revoking(bench) == set()
    bench.handle(SlabAllocated(lease_id=unmade))
    assert bench.the(FreeSlab) == [FreeSlab(gpu=NEAR, lease_id=unmade)]
