"""How many events a second `Broker.handle` takes on one core: `python -m tests.core.measure_handle`.

A mixed workload over 8 GPUs and 40 sessions, with 300 leases and with 3,000: requests and the
keepers' answers, releases and frees, keepalives that name every lease, reports, ticks, a reclaim
now and then. The events are made beforehand as far as they can be, and only `handle` is on the
clock. Then what one grant takes, from its request to its answer, among 10 live leases and among
10,000, in turn. Figures are CPU seconds of one core, printed, never asserted.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import replace

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.errors import RefusedForNow
from aqua_daemon.core.events import (
    Event,
    GpuReported,
    KeepaliveReceived,
    KeeperAttached,
    LeaseRequested,
    LeasesReleased,
    ReclaimRequested,
    RevokeAcknowledged,
    SessionOpened,
    SlabAllocated,
    SlabFreed,
    Ticked,
)
from aqua_daemon.core.instructions import AllocateSlab, AnswerGranted, FreeSlab, SendRevoke
from aqua_daemon.core.model import (
    GpuReport,
    GpuUuid,
    LeaseId,
    RequestId,
    SafetyClass,
    SessionId,
    TenantName,
)
from aqua_daemon.core.sizes import GIB, MIB
from tests.core import measure_rebalance
from tests.core.bench import SETTINGS, process, room, use

GPUS = tuple(GpuUuid(f"SHM-{number}") for number in range(8))
SESSIONS = tuple(SessionId(f"session-{number}") for number in range(40))
LEASES = (300, 3_000)
EVENTS = 60_000
FEW, MANY = 10, 10_000
GRANTS = 400  # of each, in turn
SLAB_BYTES = 32 * MIB
GPU_BYTES = 80 * GIB


class Workload:
    """A node that answers at once, and the time that its broker took."""

    def __init__(self, *, leases: int) -> None:
        self.random = random.Random(7)  # noqa: S311 - a workload, not a secret
        self.wanted = leases
        self.now = 0.0
        self.seconds = 0.0
        self.events = 0
        self.refused = 0
        self.most_leases = 0
        self.held: dict[SessionId, dict[LeaseId, int]] = {name: {} for name in SESSIONS}
        self.slabs: dict[GpuUuid, dict[LeaseId, int]] = {gpu: {} for gpu in GPUS}
        self.answers: list[Event] = []
        settings = replace(
            SETTINGS,
            gpus=GPUS,
            host_pool_bytes=len(GPUS) * GPU_BYTES,
            tenant_host_bytes=len(GPUS) * GPU_BYTES,
            tenant_quota_bytes=len(GPUS) * GPU_BYTES,
        )
        self.broker = Broker(settings, now=self.now)
        self.handle(KeeperAttached(reports=tuple(self.report(gpu) for gpu in GPUS), slabs=()))
        for number, name in enumerate(SESSIONS):
            opened = SessionOpened(
                session_id=name,
                tenant=TenantName(f"tenant-{number % 5}"),
                process=process(number),
                home_gpu=GPUS[number % len(GPUS)],
                is_admin=False,
            )
            self.handle(opened)

    def report(self, gpu: GpuUuid) -> GpuReport:
        owners = dict.fromkeys(range(3), 100 * MIB)
        return GpuReport(
            gpu=gpu, total_bytes=GPU_BYTES, slab_bytes=dict(self.slabs[gpu]), owner_bytes=owners
        )

    def run(self, events: int) -> None:
        """Work until *events* have been handled."""
        while self.events < events:
            if self.answers:
                self.handle(self.answers.pop())
                continue
            self.now += 0.002
            self.handle(self.next_event())

    def next_event(self) -> Event:
        """What a client, a keeper or the clock does next."""
        request_id = RequestId(f"request-{self.events}")
        name = self.random.choice(SESSIONS)
        held = self.held[name]
        count = sum(len(leases) for leases in self.held.values())
        self.most_leases = max(self.most_leases, count)
        chance = self.random.random()
        if chance < 0.02:
            return Ticked()
        if chance < 0.03:
            return GpuReported(report=self.report(self.random.choice(GPUS)))
        if chance < 0.031:
            return ReclaimRequested(
                session_id=SESSIONS[0],
                request_id=request_id,
                gpu=GPUS[1],
                nbytes=64 * MIB,
                deadline_seconds=None,
            )
        if chance < 0.20:
            uses = tuple(use(lease_id) for lease_id in held)
            return KeepaliveReceived(
                session_id=name, request_id=request_id, uses=uses, host_room=room(1, 0)
            )
        if count >= self.wanted and held:
            lease_id = self.random.choice(tuple(held))
            return LeasesReleased(
                session_id=name, request_id=request_id, lease_ids=(lease_id,), host_room=None
            )
        return LeaseRequested(
            session_id=name,
            request_id=request_id,
            lease_id=LeaseId(f"lease-{self.events}"),
            nbytes=SLAB_BYTES,
            safety_class=self.random.choice(tuple(SafetyClass)),
        )

    def handle(self, event: Event) -> None:
        """Time one event, and have the node answer what comes of it."""
        started = time.process_time()
        try:
            instructions = self.broker.handle(event, now=self.now)
        except RefusedForNow:
            instructions = ()
            self.refused += 1
        self.seconds += time.process_time() - started
        self.events += 1
        for instruction in instructions:
            if isinstance(instruction, AllocateSlab):
                tag = instruction.tag
                self.slabs[tag.lender][tag.lease_id] = tag.nbytes
                self.answers.append(SlabAllocated(lease_id=tag.lease_id))
            elif isinstance(instruction, AnswerGranted):
                lease = instruction.lease
                self.held[lease.session_id][lease.lease_id] = lease.nbytes
            elif isinstance(instruction, FreeSlab):
                del self.slabs[instruction.gpu][instruction.lease_id]
                for leases in self.held.values():
                    leases.pop(instruction.lease_id, None)
                self.answers.append(SlabFreed(lease_id=instruction.lease_id))
            elif isinstance(instruction, SendRevoke):
                acknowledged = RevokeAcknowledged(
                    session_id=instruction.session_id,
                    request_id=RequestId(f"acknowledge-{self.events}"),
                    lease_ids=instruction.lease_ids,
                    host_room=None,
                )
                self.answers.append(acknowledged)


class Grants:
    """A broker with so many live leases, of which more can be had and given back."""

    def __init__(self, *, leases: int) -> None:
        self.workload = Workload(leases=leases)
        self.granted = 0
        for _ in range(leases):
            self.grant()

    def grant(self) -> tuple[LeaseId, float]:
        """Grant one more lease; it, and the CPU seconds that it took."""
        self.granted += 1
        lease_id = LeaseId(f"lease-{self.granted}")
        asked = LeaseRequested(
            session_id=SESSIONS[self.granted % len(SESSIONS)],
            request_id=RequestId(f"request-{self.granted}"),
            lease_id=lease_id,
            nbytes=SLAB_BYTES,
            safety_class=SafetyClass.CACHE,
        )
        return lease_id, self._seconds_of(asked, SlabAllocated(lease_id=lease_id))

    def give_back(self, lease_id: LeaseId) -> None:
        """Have it freed, and let a tick pass now and then, as a daemon's do."""
        released = LeasesReleased(
            session_id=SESSIONS[self.granted % len(SESSIONS)],
            request_id=RequestId(f"release-{self.granted}"),
            lease_ids=(lease_id,),
            host_room=None,
        )
        self._seconds_of(released, SlabFreed(lease_id=lease_id))
        if self.granted % 10 == 0:
            self._seconds_of(Ticked())

    def _seconds_of(self, *events: Event) -> float:
        broker, now = self.workload.broker, self.workload.now
        started = time.process_time()
        for event in events:
            broker.handle(event, now=now)
        return time.process_time() - started


def main() -> None:
    """Print the figures."""
    for leases in LEASES:
        workload = Workload(leases=leases)
        workload.run(EVENTS)
        rate = workload.events / workload.seconds
        violations = workload.broker.snapshot(workload.now).invariant_violations
        print(
            f"{rate:,.0f} events/s: {workload.events:,} events in {workload.seconds:.2f} s, "
            f"{workload.most_leases} leases at most, {workload.refused} refused, "
            f"{violations} violations"
        )
    few, many = grant_seconds(Grants(leases=FEW), Grants(leases=MANY))
    print(
        f"a grant among {FEW:,} leases {few * 1e6:.1f} us, among {MANY:,} {many * 1e6:.1f} us: "
        f"{many / few:.2f} times as long"
    )
    measure_rebalance.main()


def grant_seconds(*brokers: Grants) -> list[float]:
    """The median of each broker's grants, taken in turn so that noise meets all alike."""
    seconds: list[list[float]] = [[] for _ in brokers]
    for _ in range(GRANTS):
        for broker, taken in zip(brokers, seconds, strict=True):
            lease_id, one = broker.grant()
            broker.give_back(lease_id)
            taken.append(one)
    return [statistics.median(taken) for taken in seconds]


if __name__ == "__main__":
    main()
