"""Requests for leases: what is promised, to whom, and what is refused."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import (
    InsufficientMemory,
    InvalidRequest,
    QuotaExceeded,
    SessionSuspect,
    StaleRequest,
    UnknownSession,
)
from aqua_daemon.core.events import (
    PresenceEnded,
    ProcessEnded,
    SentinelEnded,
    SlabAllocated,
    SlabAllocationFailed,
)
from aqua_daemon.core.instructions import (
    AllocateSlab,
    AnswerDenied,
    AnswerGranted,
    ForgetSession,
    FreeSlab,
)
from aqua_daemon.core.model import LeaseId, LeaseState, RequestId, SessionId, TenantName
from aqua_daemon.core.sizes import MIB
from tests.core.bench import ALICE, BOB, CACHE, HOME, NEAR, SLAB, STORE, Bench, process


def test_a_lease_is_promised_made_and_granted() -> None:
    """The promise counts at once, the keeper is asked, and its answer is the session's."""
    bench = Bench()
    session = bench.open()
    before = bench.gpu(NEAR).free_bytes

    lease_id = bench.ask(session, request_id=RequestId("r"))

    assert bench.moves == [(None, LeaseState.ALLOCATING, "requested")]
    assert bench.gpu(NEAR).free_bytes == before - SLAB
    assert bench.gpu(NEAR).lent_bytes == SLAB
    [order] = bench.the(AllocateSlab)
    assert (order.tag.lease_id, order.tag.session_id) == (lease_id, session)
    assert (order.tag.lender, order.tag.borrower, order.tag.nbytes) == (NEAR, HOME, SLAB)
    assert (order.tag.tenant, order.tag.holder, order.tag.safety_class) == (
        ALICE,
        process(11),
        STORE,
    )
    assert bench.the(AnswerGranted) == []

    bench.now += 0.5
    bench.handle(SlabAllocated(lease_id=lease_id))

    [answer] = bench.the(AnswerGranted)
    assert (answer.session_id, answer.request_id) == (session, "r")
    assert answer.lease == bench.lease(lease_id)
    assert answer.lease.state is LeaseState.LEASED
    assert bench.snapshot.named_at[answer.lease.lease_id] == bench.now
    assert bench.gpu(NEAR).free_bytes == before - SLAB


def test_the_home_gpu_lends_nothing_to_its_own_session() -> None:
    """With NEAR full the request is refused, though HOME is idle."""
    bench = Bench()
    session = bench.open(home=HOME)
    for _ in range(6):
        assert bench.lease(bench.grant(session)).lender == NEAR
    with pytest.raises(InsufficientMemory, match=f"{HOME} is the session's own"):
        bench.ask(session)


def test_a_session_without_a_home_gpu_borrows_from_any() -> None:
    """Two slabs, two GPUs: the one with the most to lend each time."""
    bench = Bench()
    session = bench.open(home=None)
    lenders = {bench.lease(bench.grant(session)).lender for _ in range(2)}
    assert lenders == {HOME, NEAR}


def test_a_grant_leaves_one_and_a_half_reserves_free() -> None:
    """The last slab that would break the rule is refused, with the figures of each GPU."""
    bench = Bench()
    session = bench.open()
    for _ in range(6):
        bench.grant(session)
    gpu = bench.gpu(NEAR)
    assert gpu.free_bytes >= 1.5 * gpu.reserve_bytes
    assert gpu.free_bytes - SLAB < 1.5 * gpu.reserve_bytes
    with pytest.raises(InsufficientMemory, match="64 MiB free"):
        bench.ask(session)
    assert bench.gpu(NEAR) == gpu


def test_memory_that_owners_use_is_not_lent() -> None:
    """Free is the total less what others use."""
    bench = Bench()
    session = bench.open()
    bench.report(NEAR, {7: 200 * MIB})
    assert bench.gpu(NEAR).lendable_bytes < SLAB
    with pytest.raises(InsufficientMemory):
        bench.ask(session)


@pytest.mark.parametrize("nbytes", [0, -SLAB, 1, 2 * MIB, 5 * MIB, SLAB + 2 * MIB, 2**80])
def test_a_size_that_can_never_be_is_invalid(nbytes: int) -> None:
    """Below, above, and between the granules; nothing changes."""
    bench = Bench()
    session = bench.open()
    before = bench.snapshot
    with pytest.raises(InvalidRequest, match="multiple of"):
        bench.ask(session, nbytes=nbytes)
    assert bench.snapshot == before


def test_a_tenant_never_gets_more_than_its_quota() -> None:
    """The sum over all of its sessions counts; another tenant is not touched by it."""
    bench = Bench(tenant_quota_bytes=2 * SLAB)
    first, second = bench.open("s1", pid=1), bench.open("s2", pid=2)
    other = bench.open("s3", pid=3, tenant=BOB)
    bench.grant(first)
    bench.ask(second)  # a promise counts
    with pytest.raises(QuotaExceeded, match="64 of its 64 MiB"):
        bench.ask(first)
    assert bench.state(bench.grant(other)) is LeaseState.LEASED
    assert bench.tenant(ALICE).leased_bytes == 2 * SLAB


def test_sub_tenants_divide_the_quota_of_their_tenant_and_never_leave_it() -> None:
    """Naming oneself anew buys nothing: tenant and sub-tenants have one quota together."""
    bench = Bench(tenant_quota_bytes=2 * SLAB, tenant_host_bytes=2 * SLAB)
    plain = bench.open("s1", pid=1)
    blue = bench.open("s2", pid=2, tenant=TenantName("alice+blue"))
    red = bench.open("s3", pid=3, tenant=TenantName("alice+red"))
    bench.grant(blue)
    bench.grant(red)
    for session in (plain, blue, red):
        with pytest.raises(QuotaExceeded, match="alice holds 64 of its 64 MiB"):
            bench.ask(session, safety_class=CACHE)
    assert bench.tenant(TenantName("alice+blue")).leased_bytes == SLAB
    bench.grant(bench.open("s4", pid=4, tenant=BOB))


def test_what_is_on_its_way_back_counts_against_the_quota_until_it_is_free() -> None:
    """Returned is not freed."""
    bench = Bench(tenant_quota_bytes=SLAB)
    session = bench.open()
    lease_id = bench.grant(session)
    bench.release(session, lease_id)
    with pytest.raises(QuotaExceeded):
        bench.ask(session)
    bench.freed(lease_id)
    assert bench.state(bench.grant(session)) is LeaseState.LEASED


def test_an_unknown_or_ended_session_gets_nothing() -> None:
    """It has to open a new one."""
    bench = Bench()
    with pytest.raises(UnknownSession, match="open a new one"):
        bench.ask(SessionId("nobody"))
    session = bench.open()
    bench.handle(ProcessEnded(session_id=session))
    with pytest.raises(UnknownSession):
        bench.ask(session)


def test_a_suspect_session_gets_nothing_until_it_is_back() -> None:
    """Its presence ended: it keeps what it has, and gets nothing new."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.handle(PresenceEnded(session_id=session))
    with pytest.raises(SessionSuspect, match="re-attach"):
        bench.ask(session)
    assert bench.state(lease_id) is LeaseState.LEASED
    bench.reattach(session)
    assert bench.state(bench.grant(session)) is LeaseState.LEASED


def test_a_failed_allocation_gives_its_bytes_back_and_says_why() -> None:
    """The promise is gone, the request is denied with the keeper's words."""
    bench = Bench()
    session = bench.open()
    before = bench.gpu(NEAR)
    lease_id = bench.ask(session)
    bench.handle(SlabAllocationFailed(lease_id=lease_id, message="out of memory"))
    [answer] = bench.the(AnswerDenied)
    assert isinstance(answer.error, InsufficientMemory)
    assert "out of memory" in str(answer.error)
    assert bench.state(lease_id) is None
    assert bench.gpu(NEAR) == before


def test_a_slab_that_comes_for_a_dead_session_is_freed() -> None:
    """Nobody has its handle: no proof is needed, and the session is over when it is free."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.ask(session)
    bench.handle(ProcessEnded(session_id=session))
    bench.handle(SentinelEnded(session_id=session))
    assert bench.state(lease_id) is LeaseState.ALLOCATING
    assert bench.session(session) is not None

    bench.handle(SlabAllocated(lease_id=lease_id))

    assert bench.state(lease_id) is LeaseState.FREEING
    assert bench.the(FreeSlab) == [FreeSlab(gpu=NEAR, lease_id=lease_id)]
    assert bench.the(AnswerGranted) == []
    assert isinstance(bench.the(AnswerDenied)[0].error, UnknownSession)
    bench.freed(lease_id)
    assert bench.the(ForgetSession) == [ForgetSession(session_id=session)]


def test_a_failed_allocation_ends_a_dead_session() -> None:
    """It was the last thing the session waited for."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.ask(session)
    bench.handle(ProcessEnded(session_id=session))
    bench.handle(SlabAllocationFailed(lease_id=lease_id, message="no"))
    assert bench.the(ForgetSession) == [ForgetSession(session_id=session)]
    assert bench.session(session) is None


def test_answers_that_come_twice_or_for_nothing_have_no_effect() -> None:
    """Late and repeated messages of a keeper."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    before = bench.snapshot
    for event in (
        SlabAllocated(lease_id=lease_id),
        SlabAllocationFailed(lease_id=lease_id, message="late"),
        SlabAllocated(lease_id=LeaseId("never")),
        SlabAllocationFailed(lease_id=LeaseId("never"), message="late"),
    ):
        assert bench.handle(event) == ()
    assert bench.snapshot == before


# Repeats


def test_a_repeated_request_has_one_effect() -> None:
    """While the slab is made the repeat waits with the first; then it gets the same lease."""
    bench = Bench()
    session = bench.open()
    request_id = RequestId("r")
    lease_id = bench.ask(session, request_id=request_id)
    bench.ask(session, request_id=request_id)
    assert bench.last == ()
    bench.handle(SlabAllocated(lease_id=lease_id))
    bench.ask(session, request_id=request_id)
    assert [answer.lease.lease_id for answer in bench.the(AnswerGranted)] == [lease_id]
    assert len(bench.snapshot.leases) == 1


def test_a_repeat_gets_its_lease_while_it_is_revoked_and_not_after() -> None:
    """An ended lease is never granted a second time."""
    bench = Bench()
    session = bench.open()
    request_id = RequestId("r")
    lease_id = bench.ask(session, request_id=request_id)
    bench.handle(SlabAllocated(lease_id=lease_id))
    bench.release(session, lease_id)
    with pytest.raises(StaleRequest, match=lease_id):
        bench.ask(session, request_id=request_id)
    bench.freed(lease_id)
    with pytest.raises(StaleRequest, match="new id"):
        bench.ask(session, request_id=request_id)
    assert bench.snapshot.leases == ()


def test_a_repeat_of_a_denied_request_is_denied_again() -> None:
    """The answer may have been lost; asking again under the same id changes nothing."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.ask(session, request_id=RequestId("r"))
    bench.handle(SlabAllocationFailed(lease_id=lease_id, message="no"))
    denied = bench.the(AnswerDenied)
    bench.ask(session, request_id=RequestId("r"))
    assert bench.the(AnswerDenied) == denied
    assert bench.snapshot.leases == ()


def test_a_refused_request_leaves_its_id_free() -> None:
    """A refusal changes nothing: the same id may be tried again."""
    bench = Bench(tenant_quota_bytes=SLAB)
    session = bench.open()
    lease_id = bench.grant(session)
    with pytest.raises(QuotaExceeded):
        bench.ask(session, request_id=RequestId("r"))
    bench.release(session, lease_id)
    bench.freed(lease_id)
    bench.ask(session, request_id=RequestId("r"))
    assert len(bench.snapshot.leases) == 1


def test_sessions_do_not_share_request_ids() -> None:
    """The same id of another session is another request."""
    bench = Bench()
    first, second = bench.open("s1", pid=1), bench.open("s2", pid=2)
    bench.ask(first, request_id=RequestId("r"))
    bench.ask(second, request_id=RequestId("r"))
    assert {lease.session_id for lease in bench.snapshot.leases} == {first, second}


def test_a_request_id_of_another_call_is_invalid() -> None:
    """One id, one call."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.release(session, lease_id)
    used = RequestId(f"request-{bench.count}")
    with pytest.raises(InvalidRequest, match="another call"):
        bench.ask(session, request_id=used)


def test_a_lease_id_never_comes_back() -> None:
    """Neither while it is in the books nor after."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    with pytest.raises(InvalidRequest, match="used before"):
        bench.ask(session, lease_id=lease_id)
    bench.release(session, lease_id)
    bench.freed(lease_id)
    with pytest.raises(InvalidRequest, match="used before"):
        bench.ask(session, lease_id=lease_id)


def test_a_cache_slab_needs_no_host_room() -> None:
    """It may be dropped at a revoke."""
    bench = Bench(host_pool_bytes=0)
    session = bench.open()
    assert bench.state(bench.grant(session, safety_class=CACHE)) is LeaseState.LEASED
    assert bench.snapshot.host_reserved_bytes == 0
