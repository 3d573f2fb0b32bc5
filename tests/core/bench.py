"""A broker on the bench: short ways to say what happens to it, and to ask how its books are.

Every event is followed by the full integrity check. Nothing answers by itself: what keepers and
clients do is said by the test.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.events import (
    Event,
    ExchangeOffered,
    GpuReported,
    KeepaliveReceived,
    KeeperAttached,
    LeaseRequested,
    LeasesReleased,
    ReclaimRequested,
    RevokeAcknowledged,
    SessionOpened,
    SessionReattached,
    SlabAllocated,
    SlabFreed,
    Ticked,
)
from aqua_daemon.core.instructions import AllocateSlab, Instruction, NoteMove
from aqua_daemon.core.model import (
    BrokerSettings,
    GpuReport,
    GpuUuid,
    HostRoom,
    Lease,
    LeaseId,
    LeaseState,
    LeaseUse,
    ProcessIdentity,
    RequestId,
    SafetyClass,
    Session,
    SessionId,
    SlabTag,
    TenantName,
)
from aqua_daemon.core.node_snapshot import GpuSnapshot, NodeSnapshot, TenantSnapshot
from aqua_daemon.core.sizes import MIB

InstructionKind = TypeVar("InstructionKind", bound=Instruction)
HOME, NEAR, FAR = GpuUuid("SHM-0"), GpuUuid("SHM-1"), GpuUuid("SHM-2")
ALICE, BOB = TenantName("alice"), TenantName("bob")
STORE, CACHE = SafetyClass.STORE, SafetyClass.CACHE
SLAB = 32 * MIB
GPU_BYTES = 256 * MIB  # reserve 25.6 MiB; 1.5 of it 38.4; so 217.6 may be lent: six slabs
SETTINGS = BrokerSettings(
    gpus=(HOME, NEAR),
    smallest_slab_bytes=4 * MIB,
    largest_slab_bytes=SLAB,
    host_pool_bytes=1024 * MIB,
    tenant_host_bytes=1024 * MIB,
    tenant_quota_bytes=1024 * MIB,
)


def process(pid: int) -> ProcessIdentity:
    return ProcessIdentity(pid=pid, start_ticks=pid * 10, uid=1000)


def room(revision: int, nbytes: int) -> HostRoom:
    return HostRoom(revision=revision, nbytes=nbytes)


def use(lease_id: LeaseId, *, used_bytes: int = 1, idle_seconds: float = 0.0) -> LeaseUse:
    return LeaseUse(
        lease_id=lease_id, used_bytes=used_bytes, copy_bytes=used_bytes, idle_seconds=idle_seconds
    )


def report(
    gpu: GpuUuid,
    slabs: dict[LeaseId, int] | None = None,
    owners: dict[int, int] | None = None,
    *,
    total_bytes: int = GPU_BYTES,
) -> GpuReport:
    return GpuReport(
        gpu=gpu, total_bytes=total_bytes, slab_bytes=slabs or {}, owner_bytes=owners or {}
    )


class Bench:
    """A strict broker, the time, and ids that never repeat."""

    def __init__(self, *, attach: bool = True, strict: bool = True, **settings: object) -> None:
        self.settings = replace(SETTINGS, **settings)  # type: ignore[arg-type]  # tests say which
        self.now = 100.0
        self.count = 0
        self.strict = strict
        self.broker = Broker(self.settings, now=self.now, strict=strict)
        self.last: tuple[Instruction, ...] = ()
        self.tags: dict[LeaseId, SlabTag] = {}
        if attach:
            self.attach(*self.settings.gpus)

    # What happens

    def handle(self, event: Event) -> tuple[Instruction, ...]:
        self.last = self.broker.handle(event, now=self.now)
        for order in self.the(AllocateSlab):
            self.tags[order.tag.lease_id] = order.tag
        if self.strict:
            self.broker.check_integrity()
        return self.last

    def restart(self) -> None:
        """A new daemon that knows what admins have drained; what keepers hold is in `tags`."""
        drained = self.snapshot.drained
        self.broker = Broker(self.settings, now=self.now, strict=self.strict, drained=drained)

    def attach(self, *gpus: GpuUuid, slabs: tuple[SlabTag, ...] = (), **more: int) -> None:
        reports = tuple(
            report(gpu, {tag.lease_id: tag.nbytes for tag in slabs if tag.lender == gpu}, **more)  # type: ignore[arg-type]  # total_bytes alone
            for gpu in gpus
        )
        self.handle(KeeperAttached(reports=reports, slabs=slabs))

    def report(self, gpu: GpuUuid, owners: dict[int, int], *, total_bytes: int = GPU_BYTES) -> None:
        """An honest report: the slabs are those that the books say a keeper has made."""
        slabs = {
            lease.lease_id: lease.nbytes
            for lease in self.snapshot.leases
            if lease.lender == gpu and lease.state not in {LeaseState.ALLOCATING, LeaseState.LOST}
        }
        self.handle(GpuReported(report=report(gpu, slabs, owners, total_bytes=total_bytes)))

    def tick(self, seconds: float = 0.0) -> tuple[Instruction, ...]:
        """Let time pass, with a tick each 100 ms; everything that came of it."""
        everything: list[Instruction] = []
        end = self.now + seconds
        while self.now + 0.1 < end:
            self.now += 0.1
            everything += self.handle(Ticked())
        self.now = end
        everything += self.handle(Ticked())
        self.last = tuple(everything)
        return self.last

    def open(
        self,
        name: str = "s1",
        *,
        tenant: TenantName = ALICE,
        home: GpuUuid | None = HOME,
        pid: int = 11,
        is_admin: bool = False,
    ) -> SessionId:
        session_id = SessionId(name)
        self.handle(
            SessionOpened(
                session_id=session_id,
                tenant=tenant,
                process=process(pid),
                home_gpu=home,
                is_admin=is_admin,
            )
        )
        return session_id

    def reattach(
        self,
        session_id: SessionId,
        *uses: LeaseUse,
        tenant: TenantName = ALICE,
        pid: int = 11,
        host_room: HostRoom | None = None,
    ) -> tuple[Instruction, ...]:
        return self.handle(
            SessionReattached(
                session_id=session_id,
                request_id=self.request_id(),
                tenant=tenant,
                process=process(pid),
                home_gpu=HOME,
                is_admin=False,
                uses=uses,
                host_room=host_room or room(0, 0),
            )
        )

    def ask(
        self,
        session_id: SessionId,
        *,
        nbytes: int = SLAB,
        safety_class: SafetyClass = STORE,
        request_id: RequestId | None = None,
        lease_id: LeaseId | None = None,
        wanted_bytes: int = 0,
    ) -> LeaseId:
        lease_id = lease_id or LeaseId(self._new("lease"))
        self.handle(
            LeaseRequested(
                session_id=session_id,
                request_id=request_id or self.request_id(),
                lease_id=lease_id,
                nbytes=nbytes,
                safety_class=safety_class,
                wanted_bytes=wanted_bytes,
            )
        )
        return lease_id

    def grant(
        self, session_id: SessionId, *, nbytes: int = SLAB, safety_class: SafetyClass = STORE
    ) -> LeaseId:
        lease_id = self.ask(session_id, nbytes=nbytes, safety_class=safety_class)
        self.handle(SlabAllocated(lease_id=lease_id))
        return lease_id

    def release(
        self, session_id: SessionId, *lease_ids: LeaseId, host_room: HostRoom | None = None
    ) -> tuple[Instruction, ...]:
        return self.handle(
            LeasesReleased(
                session_id=session_id,
                request_id=self.request_id(),
                lease_ids=lease_ids,
                host_room=host_room,
            )
        )

    def acknowledge(
        self, session_id: SessionId, *lease_ids: LeaseId, host_room: HostRoom | None = None
    ) -> tuple[Instruction, ...]:
        return self.handle(
            RevokeAcknowledged(
                session_id=session_id,
                request_id=self.request_id(),
                lease_ids=lease_ids,
                host_room=host_room,
            )
        )

    def exchange(
        self,
        session_id: SessionId,
        *,
        spared: tuple[LeaseId, ...],
        offered: tuple[LeaseId, ...],
        request_id: RequestId | None = None,
    ) -> tuple[Instruction, ...]:
        return self.handle(
            ExchangeOffered(
                session_id=session_id,
                request_id=request_id or self.request_id(),
                spared=spared,
                offered=offered,
            )
        )

    def freed(self, *lease_ids: LeaseId) -> None:
        for lease_id in lease_ids:
            self.handle(SlabFreed(lease_id=lease_id))

    def keepalive(
        self, session_id: SessionId, *uses: LeaseUse, host_room: HostRoom | None = None
    ) -> tuple[Instruction, ...]:
        return self.handle(
            KeepaliveReceived(
                session_id=session_id,
                request_id=self.request_id(),
                uses=uses,
                host_room=host_room or room(0, 0),
            )
        )

    def reclaim(
        self,
        session_id: SessionId,
        nbytes: int,
        *,
        gpu: GpuUuid = NEAR,
        seconds: float | None = None,
    ) -> tuple[Instruction, ...]:
        return self.handle(
            ReclaimRequested(
                session_id=session_id,
                request_id=self.request_id(),
                gpu=gpu,
                nbytes=nbytes,
                deadline_seconds=seconds,
            )
        )

    # How the books are

    @property
    def snapshot(self) -> NodeSnapshot:
        return self.broker.snapshot(self.now)

    def is_restarting(self) -> bool:
        return self.snapshot.restarting

    def lease(self, lease_id: LeaseId) -> Lease:
        return next(lease for lease in self.snapshot.leases if lease.lease_id == lease_id)

    def state(self, lease_id: LeaseId) -> LeaseState | None:
        """None: it is gone."""
        leases = {lease.lease_id: lease.state for lease in self.snapshot.leases}
        return leases.get(lease_id)

    def session(self, session_id: SessionId) -> Session | None:
        sessions = {session.session_id: session for session in self.snapshot.sessions}
        return sessions.get(session_id)

    def gpu(self, gpu: GpuUuid) -> GpuSnapshot:
        return next(found for found in self.snapshot.gpus if found.gpu == gpu)

    def tenant(self, tenant: TenantName) -> TenantSnapshot:
        return next(found for found in self.snapshot.tenants if found.tenant == tenant)

    def the(self, kind: type[InstructionKind]) -> list[InstructionKind]:
        """The instructions of one kind that the last event gave."""
        return [found for found in self.last if isinstance(found, kind)]

    @property
    def moves(self) -> list[tuple[LeaseState | None, LeaseState | None, str]]:
        return [(note.before, note.after, note.why) for note in self.the(NoteMove)]

    def request_id(self) -> RequestId:
        return RequestId(self._new("request"))

    def _new(self, kind: str) -> str:
        self.count += 1
        return f"{kind}-{self.count}"
