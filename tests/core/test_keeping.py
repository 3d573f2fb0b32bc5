"""The keepers' word: links that break and come back, keepers that die, reports."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.events import (
    GpuReported,
    KeeperAttached,
    KeeperDetached,
    KeeperEnded,
    LossTold,
    ProcessEnded,
    SentinelEnded,
    SessionClosed,
    SlabAllocated,
    SlabAllocationFailed,
)
from aqua_daemon.core.instructions import (
    AnswerDenied,
    AnswerGranted,
    AnswerKeepalive,
    AnswerReclaim,
    ForgetSession,
    FreeSlab,
    TellLost,
)
from aqua_daemon.core.model import GpuUuid, LeaseState
from aqua_daemon.core.sizes import MIB
from tests.core.bench import FAR, GPU_BYTES, HOME, NEAR, SLAB, Bench, report, use


def detach(bench: Bench) -> None:
    bench.handle(KeeperDetached(gpus=(HOME, NEAR)))


def test_nothing_is_granted_while_a_link_is_broken_and_leases_stay() -> None:
    """The keeper lives, so the slabs do."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    detach(bench)
    assert bench.gpu(NEAR).trouble == "the link to its keeper is broken"
    assert bench.gpu(NEAR).lendable_bytes == 0
    with pytest.raises(InsufficientMemory, match="the link to its keeper is broken"):
        bench.ask(session)
    assert bench.state(lease_id) is LeaseState.LEASED
    bench.attach(HOME, NEAR, slabs=(bench.tags[lease_id],))
    assert bench.gpu(NEAR).trouble == ""
    assert bench.state(lease_id) is LeaseState.LEASED
    bench.grant(session)


def test_a_slab_returned_while_a_link_is_broken_is_held_and_freed_when_it_is_back() -> None:
    """RETURNED is not free; the order goes out with the next attach."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    detach(bench)
    bench.release(session, lease_id)
    assert bench.state(lease_id) is LeaseState.RETURNED
    assert bench.the(FreeSlab) == []
    assert bench.gpu(NEAR).returning_bytes == SLAB
    assert bench.gpu(NEAR).free_bytes == 0
    bench.attach(HOME, NEAR, slabs=(bench.tags[lease_id],))
    assert bench.the(FreeSlab) == [FreeSlab(gpu=NEAR, lease_id=lease_id)]
    bench.freed(lease_id)
    assert bench.state(lease_id) is None


def test_a_free_in_flight_is_sent_again_or_done() -> None:
    """What the keeper still has is freed again; what it has not is gone."""
    bench = Bench()
    session = bench.open()
    still_there, done = bench.grant(session), bench.grant(session)
    bench.release(session, still_there, done)
    detach(bench)
    bench.attach(HOME, NEAR, slabs=(bench.tags[still_there],))
    assert bench.the(FreeSlab) == [FreeSlab(gpu=NEAR, lease_id=still_there)]
    assert bench.state(still_there) is LeaseState.FREEING
    assert bench.state(done) is None


def test_an_allocation_in_flight_is_denied_and_what_was_made_of_it_freed() -> None:
    """Its handle went down with the link: nobody can have it."""
    bench = Bench()
    session = bench.open()
    made, not_made = bench.ask(session), bench.ask(session)
    detach(bench)
    bench.attach(HOME, NEAR, slabs=(bench.tags[made],))
    assert {answer.request_id for answer in bench.the(AnswerDenied)} == {
        bench.tags[made].request_id,
        bench.tags[not_made].request_id,
    }
    assert bench.the(AnswerGranted) == []
    assert bench.state(made) is LeaseState.FREEING
    assert bench.state(not_made) is None
    bench.handle(SlabAllocated(lease_id=not_made))
    assert bench.last == ()


def test_a_slab_whose_allocation_was_called_failed_is_freed_when_it_turns_up() -> None:
    """The link gave up on the answer, the keeper had made it: nobody ever had its handle."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.ask(session)
    detach(bench)
    bench.handle(SlabAllocationFailed(lease_id=lease_id, message="the link broke"))
    assert bench.state(lease_id) is None
    bench.attach(HOME, NEAR, slabs=(bench.tags[lease_id],))
    assert bench.state(lease_id) is LeaseState.FREEING
    assert bench.gpu(NEAR).returning_bytes == SLAB
    bench.freed(lease_id)
    assert bench.gpu(NEAR).free_bytes == GPU_BYTES


def test_a_slab_that_a_keeper_does_not_have_any_more_is_lost() -> None:
    """Its holder is told; the record goes when it knows."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    detach(bench)
    bench.attach(HOME, NEAR)
    assert bench.state(lease_id) is LeaseState.LOST
    [order] = bench.the(TellLost)
    assert (order.session_id, order.lease_ids) == (session, (lease_id,))
    bench.handle(LossTold(lease_ids=(lease_id,)))
    assert bench.state(lease_id) is None


def test_a_keeper_that_ends_loses_what_is_held_and_frees_the_rest() -> None:
    """LOST is in no sum; what nobody holds is simply gone; a promise is denied."""
    bench = Bench()
    session = bench.open()
    held, returned, promised = bench.grant(session), bench.grant(session), bench.ask(session)
    bench.release(session, returned)

    bench.handle(KeeperEnded(gpus=(HOME, NEAR)))

    assert bench.state(held) is LeaseState.LOST
    assert bench.state(returned) is bench.state(promised) is None
    assert [order.lease_ids for order in bench.the(TellLost)] == [(held,)]
    assert len(bench.the(AnswerDenied)) == 1
    gpu = bench.gpu(NEAR)
    assert (gpu.lent_bytes, gpu.returning_bytes, gpu.trouble) == (0, 0, "its keeper has ended")
    assert bench.tenant(bench.snapshot.tenants[0].tenant).leased_bytes == 0
    assert bench.snapshot.host_reserved_bytes == 0
    with pytest.raises(InsufficientMemory, match="its keeper has ended"):
        bench.ask(session)
    bench.attach(HOME, NEAR)
    bench.grant(session)


@pytest.mark.parametrize("gone", [KeeperEnded(gpus=(NEAR,)), KeeperDetached(gpus=(NEAR,))])
def test_without_its_keeper_a_gpu_shows_nothing_as_free(
    gone: KeeperEnded | KeeperDetached,
) -> None:
    """What was free or in use is unknown until a keeper says more; all parts sum to its capacity."""
    bench = Bench()
    bench.grant(bench.open())
    bench.report(NEAR, {7: 5 * SLAB})
    bench.handle(gone)
    there = bench.gpu(NEAR)
    held = SLAB if isinstance(gone, KeeperDetached) else 0
    assert (there.total_bytes, there.lent_bytes) == (GPU_BYTES, held)
    assert (there.used_by_others_bytes, there.free_bytes, there.lendable_bytes) == (0, 0, 0)
    assert there.unknown_bytes == GPU_BYTES - held
    bench.attach(HOME, NEAR)
    assert bench.gpu(NEAR).unknown_bytes == 0
    assert bench.gpu(NEAR).free_bytes > 0


def test_a_lost_lease_is_told_until_its_holder_knows() -> None:
    """A keepalive that names it is told again; afterwards it is merely ended."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.handle(KeeperEnded(gpus=(NEAR,)))
    bench.keepalive(session, use(lease_id))
    assert bench.the(TellLost)[0].lease_ids == (lease_id,)
    assert bench.the(AnswerKeepalive)[0].ended == ()
    bench.handle(LossTold(lease_ids=(lease_id,)))
    bench.handle(LossTold(lease_ids=(lease_id,)))
    assert bench.last == ()
    bench.keepalive(session, use(lease_id))
    assert bench.the(AnswerKeepalive)[0].ended == (lease_id,)


def test_a_dead_session_that_lost_its_last_slab_is_over_when_that_is_told() -> None:
    """Told, or nobody there to be told."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.handle(ProcessEnded(session_id=session))
    bench.handle(KeeperEnded(gpus=(NEAR,)))
    assert bench.state(lease_id) is LeaseState.LOST
    assert bench.session(session) is not None
    bench.handle(LossTold(lease_ids=(lease_id,)))
    assert bench.the(ForgetSession) == [ForgetSession(session_id=session)]


def test_a_reclaim_is_over_when_the_keeper_ends() -> None:
    """The driver has everything back."""
    bench = Bench()
    session = bench.open()
    bench.grant(session)
    bench.report(NEAR, {11: 1})
    bench.reclaim(session, SLAB)
    bench.handle(KeeperEnded(gpus=(NEAR,)))
    assert bench.the(AnswerReclaim)[0].freed_bytes == SLAB


def test_a_report_changes_what_owners_use_and_the_total() -> None:
    """The books follow the probe."""
    bench = Bench()
    bench.report(NEAR, {7: 10 * MIB, 8: 20 * MIB}, total_bytes=512 * MIB)
    gpu = bench.gpu(NEAR)
    assert gpu.used_by_others_bytes == 30 * MIB
    assert gpu.free_bytes == 482 * MIB
    assert gpu.reserve_bytes == 512 * MIB // 10


def test_an_overdrawn_gpu_has_nothing_free_and_nothing_less() -> None:
    """Owners and leases together hold more than there is: free is 0, and all is revoked."""
    bench = Bench()
    session = bench.open()
    leases = [bench.grant(session) for _ in range(3)]
    bench.report(NEAR, {7: GPU_BYTES})
    assert bench.gpu(NEAR).free_bytes == 0
    assert bench.gpu(NEAR).lendable_bytes == 0
    assert {bench.state(lease_id) for lease_id in leases} == {LeaseState.REVOKING}


def test_a_report_of_a_gpu_that_is_not_attached_says_nothing() -> None:
    """It may have been sent before the link broke."""
    bench = Bench()
    bench.handle(KeeperDetached(gpus=(NEAR,)))
    before = bench.snapshot
    assert bench.handle(GpuReported(report=report(NEAR, owners={7: MIB}))) == ()
    assert bench.handle(GpuReported(report=report(GpuUuid("SHM-9")))) == ()
    assert bench.handle(KeeperDetached(gpus=(GpuUuid("SHM-9"),))) == ()
    assert bench.handle(KeeperEnded(gpus=(GpuUuid("SHM-9"),))) == ()
    assert bench.snapshot == before


def test_a_gpu_that_was_not_expected_may_attach_and_lend() -> None:
    """The settings name those that must be heard, not those that may be."""
    bench = Bench()
    session = bench.open()
    bench.handle(KeeperAttached(reports=(report(FAR, total_bytes=2 * GPU_BYTES),), slabs=()))
    lease_id = bench.grant(session)
    assert bench.lease(lease_id).lender == FAR


def test_a_slab_with_a_proved_dead_holder_that_is_adopted_goes_back_at_once() -> None:
    """Its session is known to be dead from another keeper's slabs."""
    bench = Bench(gpus=(HOME, NEAR, FAR))
    session = bench.open(home=None)
    leases = [bench.grant(session) for _ in range(3)]
    tags = {bench.tags[lease_id].lender: bench.tags[lease_id] for lease_id in leases}
    assert set(tags) == {HOME, NEAR, FAR}
    bench.restart()
    bench.attach(HOME, NEAR, slabs=(tags[HOME], tags[NEAR]))
    bench.handle(ProcessEnded(session_id=session))
    bench.handle(SentinelEnded(session_id=session))
    bench.attach(FAR, slabs=(tags[FAR],))
    assert bench.state(tags[FAR].lease_id) is LeaseState.FREEING


def test_a_slab_of_a_session_that_said_goodbye_is_freed_when_its_keeper_is_heard() -> None:
    """A goodbye covers all that the session held, also what this broker did not know yet."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.restart()
    bench.reattach(session, use(lease_id))
    bench.handle(SessionClosed(session_id=session))
    assert bench.session(session) is None
    bench.attach(HOME, NEAR, slabs=(bench.tags[lease_id],))
    assert [order.lease_id for order in bench.the(FreeSlab)] == [lease_id]
    assert not bench.is_restarting()  # nobody is waited for: its holder has left
    bench.freed(lease_id)
    assert bench.state(lease_id) is None
    assert bench.session(session) is None
    assert [order.session_id for order in bench.the(ForgetSession)] == [session]


def test_a_slab_of_a_session_that_was_proved_gone_is_freed_when_its_keeper_is_heard() -> None:
    """Process and sentinel had ended: whatever turns up of it, nobody can touch."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.restart()
    bench.reattach(session, use(lease_id))
    bench.handle(SentinelEnded(session_id=session))
    bench.handle(ProcessEnded(session_id=session))
    bench.attach(HOME, NEAR, slabs=(bench.tags[lease_id],))
    assert [order.lease_id for order in bench.the(FreeSlab)] == [lease_id]


def test_a_session_is_not_forgotten_while_the_same_attach_brings_a_slab_of_it() -> None:
    """What is forgotten is not watched any more, and its end would never be heard."""
    bench = Bench()
    session = bench.open()
    returned, unmade = bench.grant(session), bench.ask(session)
    detach(bench)
    bench.handle(SlabAllocationFailed(lease_id=unmade, message="the link broke"))
    bench.handle(SessionClosed(session_id=session))
    assert bench.state(returned) is LeaseState.RETURNED
    bench.attach(HOME, NEAR, slabs=(bench.tags[unmade],))
    assert bench.state(returned) is None
    assert not bench.the(ForgetSession)
    bench.freed(unmade)
    assert [order.session_id for order in bench.the(ForgetSession)] == [session]
    assert bench.session(session) is None
