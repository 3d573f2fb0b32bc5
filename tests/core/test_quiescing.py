"""A quiet GPU: nothing is granted or freed there, nothing revoked for the reserve, until it ends."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import InsufficientMemory, InvalidRequest, NotPermitted
from aqua_daemon.core.events import (
    PresenceEnded,
    ProcessEnded,
    QuiesceRequested,
    SentinelEnded,
    SessionClosed,
    SessionOpened,
    SlabAllocated,
)
from aqua_daemon.core.instructions import AnswerQuiesce, FreeSlab, Instruction, SendRevoke
from aqua_daemon.core.model import (
    GpuUuid,
    LeaseState,
    RequestId,
    RevokeReason,
    SessionId,
    TenantName,
)
from aqua_daemon.core.sizes import LONGEST_QUIESCE_SECONDS, MIB
from tests.core.bench import CACHE, GPU_BYTES, NEAR, SLAB, Bench, process

ADMIN = SessionId("admin")
OWNER_PID = 77


def admin(bench: Bench, name: str = "admin", pid: int = 1) -> SessionId:
    session_id = SessionId(name)
    bench.handle(
        SessionOpened(
            session_id=session_id,
            tenant=TenantName("root"),
            process=process(pid),
            home_gpu=None,
            is_admin=True,
        )
    )
    return session_id


def quiesce(
    bench: Bench,
    seconds: float,
    *,
    gpu: GpuUuid = NEAR,
    by: SessionId = ADMIN,
    request_id: RequestId | None = None,
) -> float:
    """The seconds that it will last."""
    bench.handle(
        QuiesceRequested(
            session_id=by,
            request_id=request_id or bench.request_id(),
            gpu=gpu,
            seconds=seconds,
        )
    )
    [answer] = bench.the(AnswerQuiesce)
    assert answer.gpu == gpu
    return answer.seconds


def freed(instructions: tuple[Instruction, ...]) -> list[str]:
    return [order.lease_id for order in instructions if isinstance(order, FreeSlab)]


def test_nothing_is_granted_on_a_quiet_gpu() -> None:
    """The refusal says why; the books show for how long; when it is over grants go on."""
    bench = Bench()
    admin(bench)
    session = bench.open()
    assert quiesce(bench, 30.0) == 30.0
    assert (bench.gpu(NEAR).lendable_bytes, bench.gpu(NEAR).quiet_seconds) == (0, 30.0)
    assert bench.gpu(NEAR).trouble == ""
    with pytest.raises(InsufficientMemory, match=f"{NEAR} lends nothing, it is quiesced"):
        bench.ask(session)
    for _ in range(31):
        bench.keepalive(session)
        bench.tick(1.0)
    assert bench.gpu(NEAR).quiet_seconds == 0
    bench.grant(session)


def test_what_comes_back_is_freed_afterwards() -> None:
    """Released slabs wait as returned; each is freed once, when the quiet is over."""
    bench = Bench()
    admin(bench)
    session = bench.open()
    leases = [bench.grant(session, safety_class=CACHE) for _ in range(2)]
    quiesce(bench, 5.0)
    assert freed(bench.release(session, *leases)) == []
    assert [bench.state(lease_id) for lease_id in leases] == [LeaseState.RETURNED] * 2
    assert freed(bench.tick(4.9)) == []
    assert freed(bench.tick(0.2)) == leases
    bench.freed(*leases)
    assert bench.gpu(NEAR).free_bytes == GPU_BYTES


def test_all_that_is_lent_goes_back_first_where_that_is_wished() -> None:
    """At once, freed as it comes, and nothing is lent there meanwhile: an engine finds it all free."""
    bench = Bench()
    admin(bench)
    session = bench.open()
    leases = [bench.grant(session) for _ in range(3)]
    unmade = bench.ask(session)
    quiet = QuiesceRequested(
        session_id=ADMIN, request_id=bench.request_id(), gpu=NEAR, seconds=60.0, takes_back=True
    )
    [order] = [one for one in bench.handle(quiet) if isinstance(one, SendRevoke)]
    assert (set(order.lease_ids), order.reason) == (set(leases), RevokeReason.OWNER)
    bench.handle(SlabAllocated(lease_id=unmade))
    assert freed(bench.last) == [unmade]
    assert freed(bench.acknowledge(session, *leases)) == leases
    assert not any(isinstance(one, SendRevoke) for one in bench.handle(quiet))  # one effect
    with pytest.raises(InsufficientMemory):
        bench.ask(session)


def test_who_comes_while_it_is_quiet_is_no_newcomer() -> None:
    """It measures: nothing is taken back under it, nor when the quiet is over; who comes then is one."""
    bench = Bench(newcomer_seconds=10.0)
    admin(bench)
    bench.report(NEAR, {OWNER_PID: MIB})
    bench.tick(10.2)
    bench.grant(bench.open(), safety_class=CACHE)
    quiesce(bench, 5.0)
    bench.report(NEAR, {OWNER_PID: MIB, OWNER_PID + 1: MIB})
    assert bench.the(SendRevoke) == []
    assert not any(isinstance(one, SendRevoke) for one in bench.tick(5.1))
    assert bench.gpu(NEAR).waits_for == ""
    bench.report(NEAR, {OWNER_PID: MIB, OWNER_PID + 1: MIB, OWNER_PID + 2: MIB})
    assert len(bench.the(SendRevoke)) == 1


def test_a_gpu_beside_it_goes_on() -> None:
    """Only the one that was named is left alone."""
    bench = Bench()
    admin(bench)
    session = bench.open(home=None)
    quiesce(bench, 5.0)
    lease_id = bench.grant(session, safety_class=CACHE)
    assert bench.lease(lease_id).lender != NEAR
    assert freed(bench.release(session, lease_id)) == [lease_id]


def test_the_reserve_waits() -> None:
    """An owner that grows while it measures is not answered by revokes; afterwards it is."""
    bench = Bench()
    admin(bench)
    session = bench.open()
    for _ in range(6):
        bench.grant(session, safety_class=CACHE)
    quiesce(bench, 5.0)
    bench.report(NEAR, {OWNER_PID: 40 * MIB})
    assert bench.the(SendRevoke) == []
    assert not any(isinstance(one, SendRevoke) for one in bench.tick(4.9))
    assert any(isinstance(one, SendRevoke) for one in bench.tick(0.2))


def test_what_is_owed_to_a_reclaim_is_freed_at_once() -> None:
    """Quiet or not, an owner gets its memory back; so it does what had come back before it asked."""
    bench = Bench()
    admin(bench)
    session, owner = bench.open(), bench.open("owner", pid=OWNER_PID)
    leases = [bench.grant(session, safety_class=CACHE) for _ in range(2)]
    bench.report(NEAR, {OWNER_PID: 1 * MIB})
    quiesce(bench, 60.0)
    assert freed(bench.release(session, leases[0])) == []
    assert freed(bench.reclaim(owner, 2 * SLAB)) == [leases[0]]
    assert freed(bench.acknowledge(session, leases[1])) == [leases[1]]


def test_what_a_dead_owner_asked_back_waits_too() -> None:
    """Nobody waits for it any more, where the dead was its borrower as well as the GPU's owner."""
    bench = Bench()
    admin(bench)
    both = bench.open("both", pid=OWNER_PID)
    lease_id = bench.grant(both, safety_class=CACHE)
    bench.report(NEAR, {OWNER_PID: 1 * MIB})
    quiesce(bench, 60.0)
    bench.reclaim(both, SLAB)
    bench.handle(SentinelEnded(session_id=both))
    assert freed(bench.handle(ProcessEnded(session_id=both))) == []
    assert bench.state(lease_id) is LeaseState.RETURNED
    assert freed(bench.tick(60.1)) == [lease_id]


def test_what_was_promised_is_granted() -> None:
    """A slab that its keeper was making when it became quiet is its holder's."""
    bench = Bench()
    admin(bench)
    session = bench.open()
    lease_id = bench.ask(session, safety_class=CACHE)
    quiesce(bench, 60.0)
    bench.handle(SlabAllocated(lease_id=lease_id))
    assert bench.state(lease_id) is LeaseState.LEASED


@pytest.mark.parametrize(
    "end",
    [
        PresenceEnded(session_id=ADMIN),
        ProcessEnded(session_id=ADMIN),
        SessionClosed(session_id=ADMIN),
        QuiesceRequested(session_id=ADMIN, request_id=RequestId("end"), gpu=NEAR, seconds=0.0),
    ],
    ids=lambda end: type(end).__name__,
)
def test_it_ends_with_its_holder_and_when_it_says_so(
    end: PresenceEnded | ProcessEnded | SessionClosed | QuiesceRequested,
) -> None:
    """Within a tick what waited is freed, and grants go on."""
    bench = Bench()
    admin(bench)
    session = bench.open()
    lease_id = bench.grant(session, safety_class=CACHE)
    quiesce(bench, 60.0)
    bench.release(session, lease_id)
    at_once = freed(bench.handle(end))
    assert [*at_once, *freed(bench.tick(0.1))] == [lease_id]
    assert bench.gpu(NEAR).quiet_seconds == 0
    bench.grant(session, safety_class=CACHE)


def test_it_stays_quiet_as_long_as_anybody_wants_it() -> None:
    """Two holders: the end of one is not the other's."""
    bench = Bench()
    admin(bench)
    other = admin(bench, "other", pid=2)
    quiesce(bench, 60.0)
    quiesce(bench, 5.0, by=other)
    assert quiesce(bench, 0.0) == 0.0
    assert bench.gpu(NEAR).quiet_seconds == 5.0
    assert bench.gpu(NEAR).lendable_bytes == 0


def test_asking_again_lasts_no_longer_than_ten_minutes_in_all() -> None:
    """The longest that one holder gets counts from its first call; a repeat of a call is none."""
    bench = Bench()
    admin(bench)
    assert quiesce(bench, LONGEST_QUIESCE_SECONDS, request_id=RequestId("r")) == 600.0
    bench.now += 400.0
    assert quiesce(bench, LONGEST_QUIESCE_SECONDS) == pytest.approx(200.0)
    assert quiesce(bench, LONGEST_QUIESCE_SECONDS, request_id=RequestId("r")) == 600.0
    assert bench.gpu(NEAR).quiet_seconds == pytest.approx(200.0)
    assert quiesce(bench, 10.0) == 10.0


@pytest.mark.parametrize(
    ("gpu", "seconds", "says"),
    [
        (NEAR, -1.0, "give 0 to 600 s"),
        (NEAR, 601.0, "give 0 to 600 s"),
        (NEAR, float("nan"), "give 0 to 600 s"),
        (GpuUuid("SHM-9"), 5.0, "SHM-9 is not on this node"),
    ],
)
def test_what_can_be_no_quiet_is_refused(gpu: GpuUuid, seconds: float, says: str) -> None:
    """With what may be asked."""
    bench = Bench()
    admin(bench)
    with pytest.raises(InvalidRequest, match=says):
        quiesce(bench, seconds, gpu=gpu)


def test_only_an_admin_may_ask_for_it() -> None:
    """Anybody else could keep a node from lending."""
    bench = Bench()
    with pytest.raises(NotPermitted, match="only an admin"):
        quiesce(bench, 5.0, by=bench.open())
    assert bench.gpu(NEAR).quiet_seconds == 0
