"""Fair shares in force: wants, refusals above a share, what is asked back, and what is left alone."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.events import (
    UNCHANGED,
    PresenceEnded,
    ProcessEnded,
    QuiesceRequested,
    QuotaSet,
)
from aqua_daemon.core.instructions import NoteRebalance, SendRevoke
from aqua_daemon.core.limits import Quota
from aqua_daemon.core.model import (
    LeaseId,
    LeaseState,
    RebalanceBlock,
    RevokeReason,
    SessionId,
    TenantName,
)
from aqua_daemon.core.sizes import (
    GRANT_RESERVE_FACTOR,
    MIB,
    REST_SECONDS,
    WANT_SECONDS,
    reserve_bytes,
)
from tests.core.bench import ALICE, BOB, GPU_BYTES, HOME, NEAR, SLAB, Bench, use

# One GPU lends 217.6 MiB: six slabs of 32 MiB, or 54 of 4.
PERIOD = 5.0
CAROL = TenantName("carol")


def crowded(*, period: float = PERIOD) -> tuple[Bench, SessionId, list[LeaseId], SessionId]:
    """Alice holds all of NEAR for a while; Bob has just come."""
    bench = Bench(rebalance_seconds=period)
    alice = bench.open("alice")
    leases = [bench.grant(alice) for _ in range(6)]
    rest(bench, alice)
    bob = bench.open("bob", tenant=BOB, pid=12)
    return bench, alice, leases, bob


def rest(bench: Bench, *sessions: SessionId, seconds: float = REST_SECONDS) -> None:
    """Time passes, and everybody goes on saying that it is there."""
    for _ in range(int(seconds) + 1):
        for session_id in sessions:
            mine = [one for one in bench.snapshot.leases if one.session_id == session_id]
            bench.keepalive(session_id, *[use(lease.lease_id) for lease in mine])
        bench.tick(1.0)


def lacks(bench: Bench, session_id: SessionId, nbytes: int = SLAB) -> None:
    with pytest.raises(InsufficientMemory):
        bench.ask(session_id, nbytes=nbytes)


def until_rebalanced(bench: Bench) -> list[NoteRebalance]:
    bench.tick(PERIOD + 0.1)
    return bench.the(NoteRebalance)


def test_a_newcomer_reaches_its_share_within_one_period() -> None:
    """Refused once, with all that it wants: what whole slabs allow of a half comes, and is granted."""
    bench, alice, _, bob = crowded()
    with pytest.raises(InsufficientMemory):
        bench.ask(bob, wanted_bytes=1024 * MIB)
    [note] = until_rebalanced(bench)
    assert (note.tenant, note.for_tenant, note.nbytes) == (ALICE, BOB, 2 * SLAB)
    assert "fair share is 10" in note.reason
    [order] = bench.the(SendRevoke)
    assert order.reason is RevokeReason.REBALANCE
    bench.acknowledge(alice, *order.lease_ids)
    bench.freed(*order.lease_ids)
    assert [bench.lease(bench.grant(bob)).tenant for _ in range(2)] == [BOB] * 2
    assert bench.tenant(ALICE).leased_bytes == 4 * SLAB


def test_what_was_asked_back_for_one_is_not_taken_by_who_has_its_share() -> None:
    """Alice may not take again what she has just given; her refusal says why."""
    bench, alice, _, bob = crowded()
    with pytest.raises(InsufficientMemory):
        bench.ask(bob, wanted_bytes=1024 * MIB)
    until_rebalanced(bench)
    [order] = bench.the(SendRevoke)
    bench.acknowledge(alice, *order.lease_ids)
    bench.freed(*order.lease_ids)
    with pytest.raises(InsufficientMemory, match=r"above its fair share of 10\d MiB"):
        bench.ask(alice)
    bench.grant(bob)


def test_when_everybody_has_its_share_what_is_left_goes_to_who_asks() -> None:
    """Shares bind only while somebody lacks something that is its own."""
    bench, alice, leases, bob = crowded()
    lacks(bench, bob)
    bench.release(alice, leases[0])
    bench.freed(leases[0])
    bench.grant(bob)  # all that it wanted
    bench.release(alice, leases[1])
    bench.freed(leases[1])
    assert bench.grant(alice)
    assert until_rebalanced(bench) == []


def test_what_comes_back_already_serves_first() -> None:
    """Carol has just given a slab back: nobody is asked for another because Bob wants one."""
    bench = Bench(rebalance_seconds=PERIOD)
    alice, carol = bench.open("alice"), bench.open("carol", tenant=CAROL, pid=13)
    for _ in range(4):
        bench.grant(alice)
    given, _ = bench.grant(carol), bench.grant(carol)
    bob = bench.open("bob", tenant=BOB, pid=12)
    rest(bench, alice, carol, bob)
    bench.release(carol, given)
    lacks(bench, bob)
    assert until_rebalanced(bench) == []
    bench.freed(given)
    bench.grant(bob)


def test_who_was_not_heard_wants_nothing() -> None:
    """Until it is back nothing could be granted to it: nobody gives anything up for it."""
    bench, alice, _, bob = crowded()
    lacks(bench, bob)
    bench.handle(PresenceEnded(session_id=bob))
    assert until_rebalanced(bench) == []
    assert bench.grant(alice, nbytes=4 * MIB)  # nor does it bar others


def test_a_want_that_is_not_repeated_is_forgotten() -> None:
    """A client that has gone to host memory for good takes nothing from others."""
    period = WANT_SECONDS + 5.0
    bench, alice, _, bob = crowded(period=period)
    rest(bench, alice, bob, seconds=5.0)  # it has just been looked at
    with pytest.raises(InsufficientMemory):
        bench.ask(bob, wanted_bytes=1024 * MIB)
    for _ in range(int(period)):
        rest(bench, alice, bob, seconds=0.0)
        assert bench.the(NoteRebalance) == []


def test_a_want_ends_with_its_process() -> None:
    """The dead lack nothing."""
    bench, _, _, bob = crowded()
    lacks(bench, bob)
    bench.handle(ProcessEnded(session_id=bob))
    assert until_rebalanced(bench) == []


def test_what_was_granted_a_moment_ago_is_left_alone_and_the_books_say_so() -> None:
    """By choice nothing moves twice within ten seconds."""
    bench = Bench(rebalance_seconds=PERIOD)
    alice, bob = bench.open("alice"), bench.open("bob", tenant=BOB, pid=12)
    for _ in range(6):
        bench.grant(alice)
    with pytest.raises(InsufficientMemory):
        bench.ask(bob, wanted_bytes=1024 * MIB)
    note, *_ = until_rebalanced(bench)
    assert (note.nbytes, note.block) == (0, RebalanceBlock.TOO_RECENT)
    assert bench.the(SendRevoke) == []


def test_what_lies_on_the_gpu_of_who_wants_it_is_out_of_reach() -> None:
    """A process can't borrow what is on its own GPU: taking it from another would help nobody."""
    bench, _, _, _ = crowded()
    local = bench.open("local", tenant=CAROL, home=NEAR, pid=13)
    bench.report(HOME, {99: GPU_BYTES - 36 * MIB})  # nothing to lend where it could borrow
    lacks(bench, local)
    note, *_ = until_rebalanced(bench)
    assert (note.tenant, note.for_tenant) == (ALICE, CAROL)
    assert note.block is RebalanceBlock.OUT_OF_REACH


def test_a_weight_decides_how_much_each_gets() -> None:
    """Two to one: of Alice's six slabs one is above two thirds of the node, and not two."""
    bench, _, _, bob = crowded()
    admin = bench.open("admin", tenant=TenantName("root"), home=None, pid=1, is_admin=True)
    with pytest.raises(InsufficientMemory):
        bench.ask(bob, wanted_bytes=1024 * MIB)
    bench.handle(
        QuotaSet(
            session_id=admin,
            request_id=bench.request_id(),
            tenant=ALICE,
            nbytes=UNCHANGED,
            revision=None,
            weight=2.0,
        )
    )
    [note] = until_rebalanced(bench)
    assert note.nbytes == SLAB


def test_a_weight_divides_a_tenant_among_its_sub_tenants_too() -> None:
    """Two to one between blue and red of one tenant: of blue's six slabs one is above its part."""
    bench = Bench(rebalance_seconds=PERIOD)
    blue = bench.open("blue", tenant=TenantName("alice+blue"))
    for _ in range(6):
        bench.grant(blue)
    red = bench.open("red", tenant=TenantName("alice+red"), pid=12)
    bench.broker._books.quotas[TenantName("alice+blue")] = Quota(
        revision=1, nbytes=None, weight=2.0
    )
    rest(bench, blue, red)
    with pytest.raises(InsufficientMemory):
        bench.ask(red, wanted_bytes=1024 * MIB)
    [note] = until_rebalanced(bench)
    assert note.nbytes == SLAB


def test_a_quiet_gpu_gives_nothing_back_by_choice() -> None:
    """An engine measures its memory there; the books say why it was not done."""
    bench, _, _, bob = crowded()
    admin = bench.open("admin", tenant=TenantName("root"), home=None, pid=1, is_admin=True)
    quiet = QuiesceRequested(
        session_id=admin, request_id=bench.request_id(), gpu=NEAR, seconds=60.0
    )
    bench.handle(quiet)
    lacks(bench, bob)
    [note] = until_rebalanced(bench)
    assert (note.nbytes, note.block) == (0, RebalanceBlock.QUIET)
    assert bench.the(SendRevoke) == []


def test_without_a_period_first_come_is_first_served() -> None:
    """What was so before shares existed, and what an operator may choose."""
    bench, _, _, bob = crowded(period=0.0)
    lacks(bench, bob)
    assert until_rebalanced(bench) == []
    assert bench.broker._books.wants == {}


def test_the_cheapest_go_first() -> None:
    """Unused, then cache, then the coldest store data, as in every revoke."""
    bench, alice, leases, bob = crowded()
    bench.keepalive(
        alice,
        *[use(lease_id, idle_seconds=float(at)) for at, lease_id in enumerate(leases[:-1])],
        use(leases[-1], used_bytes=0),
    )
    with pytest.raises(InsufficientMemory):
        bench.ask(bob, wanted_bytes=1024 * MIB)
    until_rebalanced(bench)
    [order] = bench.the(SendRevoke)
    assert order.lease_ids == (leases[-1], leases[-2])


def test_who_does_not_answer_is_asked_for_no_more_until_it_does() -> None:
    """Its other leases would only come into quarantine too, and nobody would get any of them."""
    bench, alice, leases, bob = crowded()
    with pytest.raises(InsufficientMemory):
        bench.ask(bob, wanted_bytes=1024 * MIB)
    until_rebalanced(bench)
    [order] = bench.the(SendRevoke)
    for _ in range(4):  # the deadline passes, and Bob goes on asking
        rest(bench, alice, bob, seconds=PERIOD)
        with pytest.raises(InsufficientMemory):
            bench.ask(bob, wanted_bytes=1024 * MIB)
    states = [bench.lease(lease_id).state for lease_id in leases]
    assert states.count(LeaseState.QUARANTINED) == len(order.lease_ids) == 2
    assert states.count(LeaseState.LEASED) == 4
    assert until_rebalanced(bench) == []  # what it keeps is the first of its share
    bench.acknowledge(alice, *order.lease_ids)
    bench.freed(*order.lease_ids)
    assert bench.lease(bench.grant(bob)).tenant == BOB


def test_scraps_that_no_slab_fits_into_are_not_waited_for() -> None:
    """What is free on several GPUs, on each less than the smallest slab, serves nobody."""
    bench = Bench(rebalance_seconds=PERIOD, lend_to_own_gpu=True)
    smallest = bench.settings.smallest_slab_bytes
    for gpu in (HOME, NEAR):  # six slabs fit, and three quarters of the smallest are over
        reserved = reserve_bytes(GPU_BYTES) * GRANT_RESERVE_FACTOR
        spare = int(GPU_BYTES - reserved) - 6 * SLAB - smallest * 3 // 4
        bench.report(gpu, {1: spare})
    alice, bob = bench.open("alice"), bench.open("bob", tenant=BOB, pid=12)
    for _ in range(11):
        bench.grant(alice)
    for _ in range(8):
        bench.grant(alice, nbytes=smallest)
    rest(bench, alice, bob)
    lacks(bench, bob, nbytes=smallest)
    [note] = until_rebalanced(bench)
    assert (note.tenant, note.nbytes) == (ALICE, smallest)


def test_another_session_of_the_same_tenant_is_asked_in_its_place() -> None:
    """Who is silent keeps the rest of its own, though it were the cheapest; the tenant gives back."""
    bench = Bench(rebalance_seconds=PERIOD)
    silent, other = bench.open("silent"), bench.open("other", pid=13)
    idle = [bench.grant(silent) for _ in range(3)]
    busy = [bench.grant(other) for _ in range(3)]
    bob = bench.open("bob", tenant=BOB, pid=12)
    rest(bench, silent, other, bob)
    bench.keepalive(silent, *[use(lease_id, used_bytes=0) for lease_id in idle])
    with pytest.raises(InsufficientMemory):
        bench.ask(bob, wanted_bytes=1024 * MIB)
    until_rebalanced(bench)
    [order] = bench.the(SendRevoke)
    assert order.session_id == silent
    bench.tick(order.deadline - bench.now + 0.1)  # it does not answer
    bench.keepalive(silent, *[use(lease_id, used_bytes=0) for lease_id in idle])
    bench.keepalive(other, *[use(lease_id) for lease_id in busy])
    bench.keepalive(bob)
    with pytest.raises(InsufficientMemory):
        bench.ask(bob, wanted_bytes=1024 * MIB)
    until_rebalanced(bench)
    [order] = [one for one in bench.the(SendRevoke) if one.reason is RevokeReason.REBALANCE]
    assert order.session_id == other


def test_what_is_silent_is_not_asked_when_the_rest_may_not_be_moved_yet() -> None:
    """The tenant's other session was granted its slab a moment ago: nobody is asked for another."""
    bench = Bench(rebalance_seconds=PERIOD)
    silent, other = bench.open("silent"), bench.open("other", pid=13)
    idle = [bench.grant(silent) for _ in range(5)]
    bench.report(NEAR, {99: 3 * SLAB})  # more than is free: one slab is asked back
    [order] = bench.the(SendRevoke)
    bench.tick(order.deadline - bench.now + 0.1)  # it is not answered
    [stuck] = order.lease_ids
    assert bench.lease(stuck).state is LeaseState.QUARANTINED
    bench.report(NEAR, {})
    bob = bench.open("bob", tenant=BOB, pid=12)
    rest(bench, silent, other, bob)
    recent = bench.grant(other)
    bench.keepalive(silent, *[use(lease_id, used_bytes=0) for lease_id in idle])
    with pytest.raises(InsufficientMemory):
        bench.ask(bob, wanted_bytes=1024 * MIB)
    notes = until_rebalanced(bench)
    assert [(one.nbytes, one.block) for one in notes] == [(0, RebalanceBlock.UNANSWERED)]
    assert bench.the(SendRevoke) == []
    assert bench.lease(recent).state is LeaseState.LEASED
