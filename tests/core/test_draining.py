"""A drained GPU: who is hit is said first, all that is lent there goes back, nothing is lent there."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import InsufficientMemory, InvalidRequest, NotPermitted
from aqua_daemon.core.events import (
    DrainRequested,
    KeeperEnded,
    SessionClosed,
    SlabAllocated,
    UndrainRequested,
)
from aqua_daemon.core.instructions import AnswerDrain, AnswerUndrain, FreeSlab, SendRevoke
from aqua_daemon.core.model import (
    GpuUuid,
    LeaseId,
    LeaseState,
    RequestId,
    RevokeReason,
    SessionId,
    TenantName,
)
from aqua_daemon.core.sizes import CACHE_REVOKE_SECONDS, MIB, STANDARD_REVOKE_SECONDS
from tests.core.bench import BOB, CACHE, HOME, NEAR, SLAB, Bench, use

ADMIN = SessionId("admin")


def drained_bench(*gpus: GpuUuid, **settings: object) -> Bench:
    """With an admin; *gpus* are drained."""
    bench = Bench(**settings)  # type: ignore[arg-type]  # tests say which
    bench.open("admin", tenant=TenantName("root"), home=None, pid=1, is_admin=True)
    if gpus:
        drain(bench, *gpus)
    return bench


def drain(
    bench: Bench,
    *gpus: GpuUuid,
    by: SessionId = ADMIN,
    seconds: float | None = None,
    dry_run: bool = False,
    request_id: RequestId | None = None,
) -> AnswerDrain:
    bench.handle(
        DrainRequested(
            session_id=by,
            request_id=request_id or bench.request_id(),
            gpus=gpus,
            deadline_seconds=seconds,
            is_dry_run=dry_run,
        )
    )
    [answer] = bench.the(AnswerDrain)
    return answer


def undrain(bench: Bench, *gpus: GpuUuid, by: SessionId = ADMIN) -> tuple[GpuUuid, ...]:
    """Which were drained."""
    bench.handle(UndrainRequested(session_id=by, request_id=bench.request_id(), gpus=gpus))
    [answer] = bench.the(AnswerUndrain)
    return answer.gpus


def asked_back(bench: Bench) -> set[LeaseId]:
    orders = bench.the(SendRevoke)
    assert {order.reason for order in orders} <= {RevokeReason.DRAIN}
    return {lease_id for order in orders for lease_id in order.lease_ids}


def test_all_that_is_lent_there_is_asked_back_and_nothing_is_granted() -> None:
    """Of every session; the refusal says why, and so do the books; the GPU beside it goes on."""
    bench = drained_bench()
    first, second = bench.open(), bench.open("s2", tenant=BOB, pid=12)
    leases = {bench.grant(first), bench.grant(second, safety_class=CACHE)}
    drain(bench, NEAR)
    assert asked_back(bench) == leases
    assert {bench.state(lease_id) for lease_id in leases} == {LeaseState.REVOKING}
    shown = bench.gpu(NEAR)
    assert (shown.is_drained, shown.lendable_bytes, shown.trouble) == (True, 0, "")
    with pytest.raises(InsufficientMemory, match=r"it is drained: aquactl undrain GPU"):
        bench.ask(first)
    elsewhere = bench.grant(bench.open("s3", home=None, pid=13))
    assert bench.lease(elsewhere).lender == HOME


def test_a_dry_run_says_what_is_done_and_does_nothing() -> None:
    """The answer is, word for word, the one that the drain itself then gives."""
    bench = drained_bench(host_bytes_per_second=float(SLAB))
    session = bench.open()
    kept, cached = bench.grant(session), bench.grant(session, safety_class=CACHE)
    bench.keepalive(session, use(kept, used_bytes=SLAB // 2), use(cached, used_bytes=0))
    planned = drain(bench, NEAR, dry_run=True)
    assert bench.the(SendRevoke) == []
    assert not bench.gpu(NEAR).is_drained
    assert bench.snapshot.drained == ()
    assert {bench.state(kept), bench.state(cached)} == {LeaseState.LEASED}
    done = drain(bench, NEAR)
    assert (done.hits, done.gpus) == (planned.hits, planned.gpus)
    assert done.deadline_seconds == planned.deadline_seconds == STANDARD_REVOKE_SECONDS
    assert done.copy_seconds == planned.copy_seconds == 0.5
    assert (planned.is_dry_run, done.is_dry_run) == (True, False)


def test_who_is_hit_is_said_with_what_they_hold() -> None:
    """Each session once, those who hold most first, with what it says it would have to copy."""
    bench = drained_bench()
    first, second = bench.open(), bench.open("s2", tenant=BOB, pid=12)
    small, large = bench.grant(first), [bench.grant(second) for _ in range(2)]
    bench.keepalive(first, use(small, used_bytes=5 * MIB))
    answer = drain(bench, NEAR, dry_run=True)
    assert [(hit.tenant, hit.pid, hit.leases, hit.nbytes) for hit in answer.hits] == [
        (BOB, 12, len(large), 2 * SLAB),
        ("alice", 11, 1, SLAB),
    ]
    # Who has said nothing of its leases may use all of them.
    assert [hit.copy_bytes for hit in answer.hits] == [2 * SLAB, 5 * MIB]


@pytest.mark.parametrize(("seconds", "lasts"), [(None, STANDARD_REVOKE_SECONDS), (7.5, 7.5)])
def test_a_deadline_is_the_standard_one_or_the_one_given(
    seconds: float | None, lasts: float
) -> None:
    """Of each class its own, unless one is given; after it what is left is quarantined."""
    bench = drained_bench()
    session = bench.open()
    kept, cached = bench.grant(session), bench.grant(session, safety_class=CACHE)
    answer = drain(bench, NEAR, seconds=seconds)
    assert answer.deadline_seconds == pytest.approx(lasts)
    deadlines = {order.lease_ids: order.deadline for order in bench.the(SendRevoke)}
    if seconds is None:
        assert deadlines[kept,] == pytest.approx(bench.now + lasts)
        assert deadlines[cached,] == pytest.approx(bench.now + CACHE_REVOKE_SECONDS)
    else:
        assert set(deadlines.values()) == {bench.now + lasts}
    bench.tick(lasts - 0.05)
    assert bench.state(kept) is LeaseState.REVOKING
    bench.tick(0.1)
    assert bench.state(kept) is LeaseState.QUARANTINED


def test_a_node_that_is_drained_gets_the_time_that_the_way_to_the_host_takes() -> None:
    """All GPUs share it: one deadline for all, not an early one for those that are named first."""
    bench = drained_bench(host_bytes_per_second=SLAB / 4, lend_to_own_gpu=True)
    session = bench.open(home=None)
    lenders = {bench.lease(bench.grant(session)).lender for _ in range(4)}
    assert lenders == {HOME, NEAR}
    answer = drain(bench)
    assert answer.gpus == (HOME, NEAR)
    assert answer.deadline_seconds == answer.copy_seconds == 16.0
    assert {order.deadline for order in bench.the(SendRevoke)} == {bench.now + 16.0}


def test_what_is_promised_is_not_granted() -> None:
    """A slab that its keeper was making goes back unseen, and whoever waits is told."""
    bench = drained_bench()
    lease_id = bench.ask(bench.open())
    assert [hit.leases for hit in drain(bench, NEAR).hits] == [1]
    assert asked_back(bench) == set()
    bench.handle(SlabAllocated(lease_id=lease_id))
    assert [order.lease_id for order in bench.the(FreeSlab)] == [lease_id]


def test_undrained_it_lends_again() -> None:
    """What was asked back stays asked back; draining and undraining twice changes nothing."""
    bench = drained_bench(NEAR)
    session = bench.open()
    drain(bench, NEAR)
    assert undrain(bench, NEAR) == (NEAR,)
    assert undrain(bench, NEAR) == ()
    lease_id = bench.grant(session)
    drain(bench, NEAR)
    assert undrain(bench) == (NEAR,)
    assert bench.state(lease_id) is LeaseState.REVOKING
    assert bench.state(bench.grant(session)) is LeaseState.LEASED


def test_a_second_drain_does_not_ask_again_and_gives_no_more_time() -> None:
    """What is on its way has its deadline; what is late is told as late."""
    bench = drained_bench()
    bench.grant(bench.open())
    drain(bench, NEAR)
    bench.tick(1.5)
    again = drain(bench, NEAR, seconds=60.0)
    assert again.deadline_seconds == pytest.approx(STANDARD_REVOKE_SECONDS - 1.5)
    assert again.copy_seconds == SLAB / bench.settings.host_bytes_per_second
    assert asked_back(bench) == set()
    bench.tick(1.0)
    late = drain(bench, NEAR)
    assert [hit.quarantined_bytes for hit in late.hits] == [SLAB]
    assert late.deadline_seconds == late.copy_seconds == 0.0


def test_it_outlives_whoever_asked_the_keeper_and_the_daemon() -> None:
    """It is an admin's setting, and no session's: only an undrain ends it."""
    bench = drained_bench(NEAR)
    bench.handle(SessionClosed(session_id=ADMIN))
    bench.handle(KeeperEnded(gpus=(NEAR,)))
    bench.attach(NEAR)
    assert bench.gpu(NEAR).is_drained
    bench.restart()
    bench.attach(HOME, NEAR)
    assert bench.gpu(NEAR).waits_for == "it is drained: aquactl undrain GPU"
    with pytest.raises(InsufficientMemory):
        bench.ask(bench.open("later", pid=20))


def test_a_new_daemon_asks_back_what_it_finds_on_a_drained_gpu() -> None:
    """At once, with a term in which its holder can come back to hear of it."""
    bench = drained_bench()
    session = bench.open()
    lease_id = bench.grant(session)
    drain(bench, NEAR)
    bench.restart()
    bench.attach(HOME, NEAR, slabs=tuple(bench.tags.values()))
    assert bench.state(lease_id) is LeaseState.REVOKING
    bench.tick(STANDARD_REVOKE_SECONDS + 1.0)
    assert bench.state(lease_id) is LeaseState.REVOKING
    bench.reattach(session, use(lease_id))
    assert asked_back(bench) == {lease_id}
    bench.acknowledge(session, lease_id)
    assert bench.state(lease_id) is LeaseState.FREEING


def test_a_gpu_that_is_not_here_stays_drained() -> None:
    """One that fell off the bus must not lend when it is back; undraining may name it meanwhile."""
    gone = GpuUuid("SHM-7")
    bench = drained_bench(NEAR)
    bench.broker = type(bench.broker)(bench.settings, now=bench.now, drained=(gone, NEAR))
    assert bench.snapshot.drained == (NEAR, gone)
    assert [gpu.gpu for gpu in bench.snapshot.gpus] == [HOME, NEAR]
    bench.attach(HOME, NEAR, gone)
    assert bench.gpu(gone).is_drained
    bench.open("admin", tenant=TenantName("root"), home=None, pid=1, is_admin=True)
    assert undrain(bench, gone) == (gone,)
    assert set(bench.snapshot.drained) == {NEAR}


def test_a_request_has_one_effect() -> None:
    """A repeat gets the same answer, also after an undrain, and drains nothing again."""
    bench = drained_bench()
    bench.grant(bench.open())
    first = drain(bench, NEAR, request_id=RequestId("r"))
    undrain(bench, NEAR)
    assert drain(bench, NEAR, request_id=RequestId("r")) == first
    assert not bench.gpu(NEAR).is_drained


@pytest.mark.parametrize(
    ("gpu", "seconds", "says"),
    [
        (GpuUuid("SHM-9"), None, "SHM-9 is not on this node"),
        (NEAR, 0.0, "give between 0 and 60 s"),
        (NEAR, 61.0, "give between 0 and 60 s"),
        (NEAR, float("nan"), "give between 0 and 60 s"),
    ],
)
def test_what_can_be_no_drain_is_refused(gpu: GpuUuid, seconds: float | None, says: str) -> None:
    """With what may be asked, and nothing is drained."""
    bench = drained_bench()
    with pytest.raises(InvalidRequest, match=says):
        drain(bench, NEAR, gpu, seconds=seconds)
    assert bench.snapshot.drained == ()


def test_only_an_admin_may_drain_and_undrain() -> None:
    """Anybody else could take everybody's memory, or lend what is to be repaired."""
    bench = drained_bench(NEAR)
    session = bench.open()
    with pytest.raises(NotPermitted, match="only an admin"):
        drain(bench, HOME, by=session)
    with pytest.raises(NotPermitted, match="only an admin"):
        drain(bench, HOME, by=session, dry_run=True)
    with pytest.raises(NotPermitted, match="only an admin"):
        undrain(bench, NEAR, by=session)
    assert bench.snapshot.drained == (NEAR,)
