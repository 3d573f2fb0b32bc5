"""What of a GPU is lent: policies, memory that was let go a moment ago, and new processes."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.events import KeeperDetached, OfferMade, SessionClosed
from aqua_daemon.core.instructions import FreeSlab, SendRevoke
from aqua_daemon.core.model import LeaseId, LeaseState, LendingPolicy, RevokeReason, SessionId
from aqua_daemon.core.sizes import LONGEST_QUIESCE_SECONDS, MIB
from tests.core.bench import FAR, GPU_BYTES, HOME, NEAR, SLAB, Bench

OWNER, NEW = 50, 51


def offer(bench: Bench, session: SessionId, nbytes: int) -> None:
    event = OfferMade(session_id=session, request_id=bench.request_id(), gpu=NEAR, nbytes=nbytes)
    bench.handle(event)


def lent(count: int, **settings: object) -> tuple[Bench, SessionId, list[LeaseId]]:
    """A node where NEAR has an owner and lends so many slabs."""
    bench = Bench(**settings)  # type: ignore[arg-type]  # tests say which
    bench.report(NEAR, {OWNER: 8 * MIB})
    bench.tick(20.0)
    session = bench.open()
    return bench, session, [bench.grant(session) for _ in range(count)]


def test_a_gpu_that_is_never_lent_grants_nothing() -> None:
    """The refusal names the policy; nothing is called trouble."""
    bench = Bench(lending_of={NEAR: LendingPolicy.NEVER})
    session = bench.open()
    with pytest.raises(InsufficientMemory, match=f"{NEAR} lends nothing, its .*policy is `never`"):
        bench.ask(session)
    assert (bench.gpu(NEAR).trouble, bench.gpu(NEAR).lendable_bytes) == ("", 0)
    assert bench.gpu(NEAR).lending is LendingPolicy.NEVER


def test_an_offered_gpu_lends_what_a_producer_offers() -> None:
    """Nothing before the offer, no more than it, nothing more once the producer has left."""
    bench = Bench(lending=LendingPolicy.OFFERED)
    owner = bench.open("owner", pid=OWNER, home=NEAR)
    session = bench.open()
    bench.report(NEAR, {OWNER: MIB})
    with pytest.raises(InsufficientMemory, match="nobody has offered any of it"):
        bench.ask(session)
    offer(bench, owner, SLAB)
    kept = bench.grant(session)
    with pytest.raises(InsufficientMemory):
        bench.ask(session)
    bench.handle(SessionClosed(session_id=owner))
    bench.release(session, kept)
    bench.freed(kept)
    with pytest.raises(InsufficientMemory, match="nobody has offered any of it"):
        bench.ask(session)


def test_what_is_offered_may_be_lent_at_once() -> None:
    """Its owner knows better than a settle time."""
    bench = Bench(lending=LendingPolicy.OFFERED, settle_seconds=30.0)
    owner = bench.open("owner", pid=OWNER, home=NEAR)
    for used_mib in (160, 10):
        bench.report(NEAR, {OWNER: used_mib * MIB})
    offer(bench, owner, GPU_BYTES)
    bench.tick()
    assert bench.gpu(NEAR).lendable_bytes > 160 * MIB


def test_who_takes_memory_back_has_offered_none() -> None:
    """A reclaim sets a limit; once the one who had offered is gone, that limit is no offer."""
    bench = Bench(lending=LendingPolicy.OFFERED)
    owner, other = bench.open("owner", pid=OWNER), bench.open("other", pid=NEW)
    session = bench.open()
    bench.report(NEAR, {OWNER: MIB, NEW: MIB})
    offer(bench, owner, 2 * SLAB)
    kept = bench.grant(session)
    bench.reclaim(other, 1 * MIB)
    bench.handle(SessionClosed(session_id=owner))
    bench.acknowledge(session, kept)
    bench.freed(kept)
    assert bench.gpu(NEAR).waits_for == (
        "its lending policy is `offered`, and nobody has offered any of it"
    )


def test_what_was_let_go_a_moment_ago_is_not_lent() -> None:
    """An owner that breathes gets its memory back without a revoke; what stays free is lent."""
    bench = Bench(settle_seconds=5.0)
    bench.report(NEAR, {OWNER: 160 * MIB})
    assert bench.gpu(NEAR).lendable_bytes > 0  # it was free from the first
    before = bench.gpu(NEAR).lendable_bytes
    bench.tick(10.0)
    bench.report(NEAR, {OWNER: 100 * MIB})
    assert bench.gpu(NEAR).lendable_bytes == before
    bench.tick(3.0)
    bench.report(NEAR, {OWNER: 130 * MIB})
    bench.tick(1.9)
    assert bench.gpu(NEAR).lendable_bytes == before
    bench.tick(0.2)  # the peak of 160 is five seconds old: 130 is the highest use since
    assert bench.gpu(NEAR).lendable_bytes == before + 30 * MIB


def test_what_was_let_go_while_the_link_to_the_keeper_was_broken_is_not_lent_either() -> None:
    """The keeper says it as it attaches again, and the next request may come before its next report."""
    bench = Bench(settle_seconds=5.0)
    bench.report(NEAR, {OWNER: 160 * MIB})
    before = bench.gpu(NEAR).lendable_bytes
    bench.tick(10.0)
    bench.handle(KeeperDetached(gpus=(HOME, NEAR)))
    bench.attach(HOME, NEAR)
    assert bench.gpu(NEAR).lendable_bytes == before
    bench.tick(5.1)
    assert bench.gpu(NEAR).lendable_bytes == before + 160 * MIB


def test_a_higher_use_forgets_lower_peaks_and_lower_ones_wait_in_turn() -> None:
    """Falling in two steps, each step is lent a settle time after it was taken."""
    bench = Bench(settle_seconds=5.0)
    bench.report(NEAR, {OWNER: 100 * MIB})
    bench.tick(1.0)
    bench.report(NEAR, {OWNER: 60 * MIB})
    bench.tick(2.0)
    bench.report(NEAR, {OWNER: 20 * MIB})
    at_peak = bench.gpu(NEAR).lendable_bytes
    bench.tick(3.1)
    assert bench.gpu(NEAR).lendable_bytes == at_peak + 40 * MIB
    bench.tick(2.0)
    assert bench.gpu(NEAR).lendable_bytes == at_peak + 80 * MIB


def test_a_new_process_gets_all_of_its_gpu_back_at_once() -> None:
    """Everything lent there is asked back and freed as it comes; other GPUs are left alone."""
    bench, session, near = lent(5, newcomer_seconds=10.0, gpus=(HOME, NEAR, FAR))
    there = {lease_id for lease_id in near if bench.lease(lease_id).lender == NEAR}
    assert 1 < len(there) < len(near)
    bench.report(NEAR, {OWNER: 8 * MIB, NEW: MIB})
    [order] = bench.the(SendRevoke)
    assert (set(order.lease_ids), order.reason) == (there, RevokeReason.OWNER)
    bench.acknowledge(session, *order.lease_ids)
    assert {free.lease_id for free in bench.the(FreeSlab)} == there
    assert bench.gpu(NEAR).waits_for == "a new process settles there"
    assert bench.gpu(FAR).waits_for == ""


def test_a_slab_that_is_being_made_for_somebody_is_not_granted_any_more() -> None:
    """A process that comes while a slab is made gets that memory, too."""
    bench, session, _ = lent(0, newcomer_seconds=10.0)
    lease_id = bench.ask(session)
    bench.report(NEAR, {OWNER: 8 * MIB, NEW: MIB})
    assert bench.the(SendRevoke) == []  # nobody has it yet
    bench.tick()
    assert bench.lease(lease_id).revocation is not None


def test_it_lends_again_when_use_has_not_changed_for_a_while() -> None:
    """The time counts from the last change, and from when it was alone."""
    bench, session, [lease_id] = lent(1, newcomer_seconds=10.0)
    bench.report(NEAR, {OWNER: 8 * MIB, NEW: MIB})
    bench.acknowledge(session, lease_id)
    bench.tick(1.0)
    bench.freed(lease_id)
    for used_mib in (20, 40):
        bench.tick(6.0)
        bench.report(NEAR, {OWNER: 8 * MIB, NEW: used_mib * MIB})
    bench.keepalive(session)
    bench.tick(9.8)
    assert bench.gpu(NEAR).lendable_bytes == 0
    bench.tick(0.3)
    assert bench.gpu(NEAR).lendable_bytes > 0


def test_it_is_alone_from_when_all_has_come_back() -> None:
    """What is still with others for a while is no part of the time in which nothing changes."""
    bench, session, [lease_id] = lent(1, newcomer_seconds=3.0)
    bench.report(NEAR, {OWNER: 8 * MIB, NEW: MIB})
    bench.tick(1.5)
    bench.acknowledge(session, lease_id)
    bench.freed(lease_id)
    bench.tick(1.6)
    assert bench.gpu(NEAR).lendable_bytes == 0
    bench.tick(1.5)
    assert bench.gpu(NEAR).lendable_bytes > 0


def test_what_does_not_come_back_is_not_waited_for() -> None:
    """A borrower that hangs does not keep a GPU from being lent to others."""
    bench, _, [lease_id] = lent(1, newcomer_seconds=3.0)
    bench.report(NEAR, {OWNER: 8 * MIB, NEW: MIB})
    bench.tick(2.1)
    assert bench.state(lease_id) is LeaseState.QUARANTINED
    bench.tick(2.9)
    assert bench.gpu(NEAR).lendable_bytes == 0
    bench.tick(0.3)
    assert bench.gpu(NEAR).lendable_bytes > 0


def test_what_its_processes_use_may_breathe_by_less_than_a_granule() -> None:
    """A driver's bookkeeping is no change."""
    bench, _, _ = lent(0, newcomer_seconds=10.0)
    bench.report(NEAR, {OWNER: 8 * MIB, NEW: 8 * MIB})
    for step in range(11):
        bench.tick(1.0)
        bench.report(NEAR, {OWNER: 8 * MIB, NEW: 8 * MIB + step % 2})
    assert bench.gpu(NEAR).lendable_bytes > 0


def test_nothing_is_revoked_or_freed_there_while_it_is_alone() -> None:
    """What heals from quarantine meanwhile is freed at the end; the reserve waits as well."""
    bench, session, [lease_id] = lent(1, newcomer_seconds=10.0)
    bench.report(NEAR, {OWNER: 8 * MIB, NEW: MIB})
    bench.keepalive(session)
    bench.tick(2.2)
    assert bench.state(lease_id) is LeaseState.QUARANTINED
    bench.report(NEAR, {OWNER: 8 * MIB, NEW: GPU_BYTES - SLAB - 8 * MIB})
    assert bench.the(SendRevoke) == []
    bench.acknowledge(session, lease_id)
    assert [free.lease_id for free in bench.the(FreeSlab)] == [lease_id]  # owed to the newcomer


def test_what_was_late_for_others_is_freed_when_it_is_alone_no_more() -> None:
    """It heals while a new process measures: free memory changes once that is over, and not before."""
    bench, session, [lease_id] = lent(1, newcomer_seconds=3.0)
    owners = {OWNER: GPU_BYTES - SLAB - 8 * MIB}
    bench.report(NEAR, owners)  # into the reserve
    bench.tick(2.1)
    assert bench.state(lease_id) is LeaseState.QUARANTINED
    bench.report(NEAR, {**owners, NEW: MIB})
    bench.acknowledge(session, lease_id)
    assert bench.the(FreeSlab) == []
    bench.tick(2.8)
    assert bench.the(FreeSlab) == []
    bench.tick(0.3)
    assert bench.the(FreeSlab) == [FreeSlab(gpu=NEAR, lease_id=lease_id)]


def test_a_process_that_never_rests_ends_the_quiet_after_ten_minutes() -> None:
    """The longest that a GPU is left alone, however it is asked for."""
    bench, session, _ = lent(0, newcomer_seconds=10.0)
    bench.report(NEAR, {OWNER: 8 * MIB, NEW: MIB})
    for step in range(int(LONGEST_QUIESCE_SECONDS / 9)):
        assert bench.gpu(NEAR).lendable_bytes == 0
        bench.tick()
        bench.now += 9.0
        bench.keepalive(session)
        bench.report(NEAR, {OWNER: 8 * MIB, NEW: (4 + 4 * (step % 2)) * MIB})
    bench.now += 9.0
    bench.tick()
    assert bench.gpu(NEAR).lendable_bytes > 0


def test_who_was_there_before_the_daemon_is_no_newcomer() -> None:
    """A daemon's first look at a GPU takes nothing back."""
    bench = Bench(newcomer_seconds=10.0, attach=False)
    bench.attach(HOME, NEAR)
    assert bench.gpu(NEAR).waits_for == ""
    bench.report(NEAR, {OWNER: MIB})
    assert bench.gpu(NEAR).waits_for == "a new process settles there"


def test_an_owner_that_outgrows_the_reserve_is_a_warning() -> None:
    """`auto` can't answer it in time: the status names the policy that can."""
    bench = Bench()
    bench.report(NEAR, {OWNER: 10 * MIB})
    assert bench.gpu(NEAR).warnings == ()
    bench.report(NEAR, {OWNER: 110 * MIB})
    [warning] = bench.gpu(NEAR).warnings
    assert f"its process {OWNER} grew by 100 MiB at once" in warning
    assert "`offered`" in warning
    bench = Bench(lending=LendingPolicy.OFFERED)
    bench.report(NEAR, {OWNER: 10 * MIB})
    bench.report(NEAR, {OWNER: 110 * MIB})
    assert bench.gpu(NEAR).warnings == ()


def test_growth_beside_a_producer_is_no_warning() -> None:
    """It takes its memory back first: the reserve has nothing to answer."""
    bench = Bench()
    owner = bench.open("owner", pid=OWNER, home=NEAR)
    bench.report(NEAR, {OWNER: 10 * MIB})
    offer(bench, owner, SLAB)
    bench.report(NEAR, {OWNER: 110 * MIB})
    assert bench.gpu(NEAR).warnings == ()


def test_a_context_that_comes_with_its_process_is_no_growth() -> None:
    """Half a gigabyte at once is what every CUDA process begins with, the keeper's too."""
    bench = Bench()
    bench.report(NEAR, {OWNER: 10 * MIB})
    bench.report(NEAR, {OWNER: 10 * MIB, NEW: 110 * MIB})
    assert bench.gpu(NEAR).warnings == ()


def test_a_gpu_that_lends_to_itself_knows_no_newcomers() -> None:
    """There each borrower's own context would take back what it has just borrowed."""
    bench = Bench(newcomer_seconds=10.0, lend_to_own_gpu=True)
    bench.report(NEAR, {OWNER: MIB})
    bench.report(NEAR, {OWNER: MIB, NEW: MIB})
    assert bench.gpu(NEAR).waits_for == ""


def test_a_process_that_has_ended_is_warned_of_no_more() -> None:
    """Its policy need not suit it any longer."""
    bench = Bench()
    bench.report(NEAR, {OWNER: 10 * MIB})
    bench.report(NEAR, {OWNER: 110 * MIB})
    assert bench.gpu(NEAR).warnings
    bench.report(NEAR, {})
    assert bench.gpu(NEAR).warnings == ()
