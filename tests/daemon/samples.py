"""One sample of each record, for tests of what only looks at records."""

from __future__ import annotations

from dataclasses import replace

from aqua_daemon.core import events, instructions
from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.events import Event
from aqua_daemon.core.instructions import Instruction
from aqua_daemon.core.limits import Quota, QuotaOutcome
from aqua_daemon.core.link_figures import LinkOutcome, LinkSample, LinkUse
from aqua_daemon.core.model import (
    GpuPair,
    GpuReport,
    GpuUuid,
    HostRoom,
    Lease,
    LeaseId,
    LeaseState,
    LeaseUse,
    LinkRate,
    ProcessIdentity,
    RebalanceBlock,
    RequestId,
    Revocation,
    RevokeReason,
    SafetyClass,
    Session,
    SessionId,
    SessionState,
    SlabTag,
    TenantName,
)
from aqua_daemon.core.node_snapshot import GpuSnapshot, LinkSnapshot, NodeSnapshot, TenantSnapshot

MIB = 2**20
GPU = GpuUuid("SHM-1")
LEASE_ID = LeaseId("1a" * 16)
SESSION_ID = SessionId("5e" * 16)
REQUEST_ID = RequestId("4e" * 16)
TENANT = TenantName("uid-1000")
PROCESS = ProcessIdentity(pid=4242, start_ticks=99, uid=1000)
ROOM = HostRoom(revision=3, nbytes=8 * MIB)
USE = LeaseUse(lease_id=LEASE_ID, used_bytes=5, copy_bytes=4, idle_seconds=0.5)
LEASE = Lease(
    lease_id=LEASE_ID,
    session_id=SESSION_ID,
    tenant=TENANT,
    lender=GPU,
    borrower=GpuUuid("SHM-0"),
    nbytes=4 * MIB,
    safety_class=SafetyClass.STORE,
    request_id=REQUEST_ID,
    state=LeaseState.LEASED,
    since=10.0,
)
TAG = SlabTag(
    lease_id=LEASE_ID,
    session_id=SESSION_ID,
    tenant=TENANT,
    safety_class=SafetyClass.STORE,
    lender=GPU,
    borrower=None,
    nbytes=4 * MIB,
    holder=PROCESS,
    request_id=REQUEST_ID,
)
REPORT = GpuReport(
    gpu=GPU, total_bytes=64 * MIB, slab_bytes={LEASE_ID: 4 * MIB}, owner_bytes={7: 8}
)
PAIR = GpuPair(source=GpuUuid("SHM-0"), target=GPU)
OUTCOME = LinkOutcome(pair=PAIR, samples=(LinkSample(nbytes=MIB, seconds=1e-4),))
REQUESTED = events.LeaseRequested(
    session_id=SESSION_ID,
    request_id=REQUEST_ID,
    lease_id=LEASE_ID,
    nbytes=4 * MIB,
    safety_class=SafetyClass.STORE,
)
RECLAIM = events.ReclaimRequested(
    session_id=SESSION_ID, request_id=REQUEST_ID, gpu=GPU, nbytes=MIB, deadline_seconds=None
)
DENIED = instructions.AnswerDenied(
    session_id=SESSION_ID, request_id=REQUEST_ID, error=InsufficientMemory("no room")
)
RECLAIMED = instructions.AnswerReclaim(
    session_id=SESSION_ID,
    request_id=REQUEST_ID,
    asked_bytes=MIB,
    revoked_bytes=4 * MIB,
    freed_bytes=4 * MIB,
    quarantined_bytes=0,
    seconds=0.3,
)


def move(
    before: LeaseState | None,
    after: LeaseState | None,
    *,
    seconds: float = 1.0,
    reason: RevokeReason | None = None,
    lease: Lease = LEASE,
) -> instructions.NoteMove:
    """A move of *lease*, being revoked for *reason* if there is one."""
    revocation = Revocation(reason=reason, started_at=1.0, deadline=3.0) if reason else None
    moved = replace(lease, state=after or before or lease.state, revocation=revocation)
    return instructions.NoteMove(
        before=before, after=after, lease=moved, seconds=seconds, why="a test"
    )


EVENTS: tuple[Event, ...] = (
    events.KeeperAttached(reports=(REPORT,), slabs=(TAG,)),
    events.KeeperDetached(gpus=(GPU,)),
    events.KeeperEnded(gpus=(GPU,)),
    events.GpuReported(report=REPORT),
    events.SlabAllocated(lease_id=LEASE_ID),
    events.SlabAllocationFailed(lease_id=LEASE_ID, message="full"),
    events.SlabFreed(lease_id=LEASE_ID),
    events.SessionOpened(
        session_id=SESSION_ID, tenant=TENANT, process=PROCESS, home_gpu=None, is_admin=False
    ),
    events.SessionReattached(
        session_id=SESSION_ID,
        request_id=REQUEST_ID,
        tenant=TENANT,
        process=PROCESS,
        home_gpu=GPU,
        is_admin=True,
        uses=(USE,),
        host_room=ROOM,
    ),
    events.PresenceEnded(session_id=SESSION_ID),
    events.ProcessEnded(session_id=SESSION_ID),
    events.SentinelEnded(session_id=SESSION_ID),
    events.SessionClosed(session_id=SESSION_ID),
    events.KeepaliveReceived(
        session_id=SESSION_ID, request_id=REQUEST_ID, uses=(USE,), host_room=ROOM
    ),
    REQUESTED,
    events.LeasesReleased(
        session_id=SESSION_ID, request_id=REQUEST_ID, lease_ids=(LEASE_ID,), host_room=None
    ),
    events.RevokeAcknowledged(
        session_id=SESSION_ID, request_id=REQUEST_ID, lease_ids=(LEASE_ID,), host_room=ROOM
    ),
    events.ExchangeOffered(
        session_id=SESSION_ID,
        request_id=REQUEST_ID,
        spared=(LEASE_ID,),
        offered=(LeaseId("1b" * 16),),
    ),
    events.HostRoomRequested(session_id=SESSION_ID, request_id=REQUEST_ID, host_room=ROOM),
    events.OfferMade(session_id=SESSION_ID, request_id=REQUEST_ID, gpu=GPU, nbytes=MIB),
    RECLAIM,
    events.QuotaSet(
        session_id=SESSION_ID, request_id=REQUEST_ID, tenant=TENANT, nbytes=MIB, revision=None
    ),
    events.QuiesceRequested(session_id=SESSION_ID, request_id=REQUEST_ID, gpu=GPU, seconds=60.0),
    events.DrainRequested(
        session_id=SESSION_ID, request_id=REQUEST_ID, gpus=(GPU,), deadline_seconds=None
    ),
    events.UndrainRequested(session_id=SESSION_ID, request_id=REQUEST_ID, gpus=()),
    events.LinkProbeRequested(session_id=SESSION_ID, request_id=REQUEST_ID, pairs=(PAIR,)),
    events.LinkProbed(request_id=REQUEST_ID, outcome=OUTCOME),
    events.LinksUsed(
        session_id=SESSION_ID,
        uses=(LinkUse(lender=GPU, fetches=2, nbytes=MIB, seconds=0.1),),
    ),
    events.LossTold(lease_ids=(LEASE_ID,)),
    events.Ticked(),
)

INSTRUCTIONS: tuple[Instruction, ...] = (
    instructions.AllocateSlab(tag=TAG),
    instructions.FreeSlab(gpu=GPU, lease_id=LEASE_ID),
    instructions.ProbeLink(request_id=REQUEST_ID, pair=PAIR, sizes=(MIB,), has_company=False),
    instructions.SendRevoke(
        session_id=SESSION_ID,
        gpu=GPU,
        nbytes=4 * MIB,
        reason=RevokeReason.RECLAIM,
        deadline=12.0,
        lease_ids=(LEASE_ID,),
    ),
    instructions.TellLost(session_id=SESSION_ID, lease_ids=(LEASE_ID,), reason="keeper ended"),
    instructions.ForgetSession(session_id=SESSION_ID),
    instructions.NoteBrokenInvariant(rule="sums", message="off by one", gpu=GPU, lease_id=None),
    instructions.AnswerGranted(session_id=SESSION_ID, request_id=REQUEST_ID, lease=LEASE),
    DENIED,
    instructions.AnswerReturned(
        session_id=SESSION_ID, request_id=REQUEST_ID, returned=(LEASE_ID,), unknown=()
    ),
    instructions.AnswerExchange(
        session_id=SESSION_ID,
        request_id=REQUEST_ID,
        gpu=GPU,
        spared=(LEASE_ID,),
        revoked=(LeaseId("1b" * 16),),
    ),
    instructions.AnswerKeepalive(
        session_id=SESSION_ID, request_id=REQUEST_ID, ended=(), unheard=(LEASE_ID,)
    ),
    instructions.AnswerHostRoom(session_id=SESSION_ID, request_id=REQUEST_ID, host_room=ROOM),
    instructions.AnswerOffer(
        session_id=SESSION_ID, request_id=REQUEST_ID, offered_bytes=MIB, lent_bytes=0
    ),
    RECLAIMED,
    instructions.AnswerQuiesce(session_id=SESSION_ID, request_id=REQUEST_ID, gpu=GPU, seconds=60.0),
    instructions.AnswerDrain(
        session_id=SESSION_ID,
        request_id=REQUEST_ID,
        gpus=(GPU,),
        hits=(
            instructions.DrainHit(
                gpu=GPU,
                session_id=SESSION_ID,
                tenant=TENANT,
                pid=11,
                leases=1,
                nbytes=4 * MIB,
                copy_bytes=MIB,
                quarantined_bytes=0,
            ),
        ),
        deadline_seconds=2.0,
        copy_seconds=0.5,
        is_dry_run=False,
    ),
    instructions.AnswerUndrain(session_id=SESSION_ID, request_id=REQUEST_ID, gpus=(GPU,)),
    instructions.AnswerLinkProbe(session_id=SESSION_ID, request_id=REQUEST_ID, outcomes=(OUTCOME,)),
    instructions.AnswerQuota(
        session_id=SESSION_ID,
        request_id=REQUEST_ID,
        tenant=TENANT,
        outcome=QuotaOutcome.APPLIED,
        quota=Quota(revision=1, nbytes=MIB),
    ),
    move(LeaseState.ALLOCATING, LeaseState.LEASED),
    instructions.NoteRebalance(
        tenant=TENANT,
        for_tenant=TenantName("uid-1001"),
        nbytes=0,
        reason="below its share",
        block=RebalanceBlock.QUIET,
    ),
    instructions.NoteTrouble(gpu=GPU, trouble="its keeper has ended"),
)

SNAPSHOT = NodeSnapshot(
    now=11.0,
    gpus=(
        GpuSnapshot(
            gpu=GPU,
            total_bytes=64 * MIB,
            used_by_others_bytes=10 * MIB,
            lent_bytes=4 * MIB,
            quarantined_bytes=8 * MIB,
            returning_bytes=2 * MIB,
            free_bytes=40 * MIB,
            reserve_bytes=6 * MIB,
            lendable_bytes=30 * MIB,
            lend_limit_bytes=None,
            trouble="",
        ),
    ),
    leases=(LEASE,),
    sessions=(
        Session(
            session_id=SESSION_ID,
            tenant=TENANT,
            process=PROCESS,
            home_gpu=None,
            is_admin=False,
            state=SessionState.LIVE,
            heard_at=10.5,
            host_room=ROOM,
        ),
    ),
    tenants=(
        TenantSnapshot(
            tenant=TENANT,
            leased_bytes=4 * MIB,
            quota_bytes=64 * MIB,
            host_reserved_bytes=12 * MIB,
            sessions=1,
        ),
    ),
    host_pool_bytes=100 * MIB,
    host_reserved_bytes=12 * MIB,
    restarting=False,
    invariant_violations=0,
    links=(
        LinkSnapshot(
            pair=PAIR,
            rate=LinkRate(latency_seconds=8e-6, bytes_per_second=3e11),
            slow="1.5 times slower",
        ),
    ),
)
