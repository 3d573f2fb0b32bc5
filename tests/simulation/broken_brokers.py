"""Brokers that were broken on purpose, each in one way: the oracle must see every one of them.

Each wraps the real broker and falsifies what goes in or what comes out. What they break is what
other systems got wrong, and what a change to the broker may get wrong again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from aqua_daemon.core.events import (
    Event,
    GpuReported,
    KeepaliveReceived,
    KeeperAttached,
    LeaseRequested,
    LeasesReleased,
    ProcessEnded,
    RevokeAcknowledged,
    SentinelEnded,
    SlabAllocated,
    SlabFreed,
    Ticked,
)
from aqua_daemon.core.instructions import (
    AllocateSlab,
    AnswerGranted,
    AnswerKeepalive,
    AnswerReclaim,
    ForgetSession,
    FreeSlab,
    Instruction,
    NoteMove,
)
from aqua_daemon.core.model import (
    BrokerSettings,
    GpuReport,
    GpuUuid,
    LeaseId,
    LeaseState,
    LeaseUse,
    RequestId,
    SessionId,
    SessionState,
)
from aqua_daemon.core.node_snapshot import GpuSnapshot, NodeSnapshot
from tests.simulation.broken_limits import (
    CountsNoLeases,
    CountsNoSessions,
    ForgetsDrains,
    GrantsWhileRestarting,
    HasNoQuota,
    LeavesWhatIsLentThere,
    OverbooksTheHost,
)
from tests.simulation.broken_quiets import BROKEN_QUIETS
from tests.simulation.wrapped_broker import BrokenBroker


class FreesAtTheDeadline(BrokenBroker):
    """A lease that did not come back in time is freed under its holder."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Order the free of what was only to be quarantined."""
        done = self.inner.handle(event, now=now)
        overdue = [
            FreeSlab(gpu=move.lease.lender, lease_id=move.lease.lease_id)
            for move in done
            if isinstance(move, NoteMove) and move.after is LeaseState.QUARANTINED
        ]
        return (*done, *overdue)


class TakesThePidfdAsProof(BrokenBroker):
    """A dead process counts as proof, whoever inherited its mappings."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Believe that the sentinel has ended too."""
        done = self.inner.handle(event, now=now)
        if isinstance(event, ProcessEnded):
            sentinel = SentinelEnded(session_id=event.session_id)
            done += self.inner.handle(sentinel, now=now)
        return done


class GrantsTwice(BrokenBroker):
    """A repeated request is a new request."""

    def __init__(
        self, settings: BrokerSettings, now: float, drained: Iterable[GpuUuid] = ()
    ) -> None:
        super().__init__(settings, now, drained)
        self._said: dict[RequestId, RequestId] = {}

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Give each request for a lease an id of its own."""
        if isinstance(event, LeaseRequested):
            fresh = RequestId("f" + event.lease_id[1:])
            self._said[fresh] = event.request_id
            event = replace(event, request_id=fresh)
        return tuple(self._as_asked(order) for order in self.inner.handle(event, now=now))

    def _as_asked(self, order: Instruction) -> Instruction:
        if isinstance(order, AllocateSlab):
            asked = self._said[order.tag.request_id]
            return AllocateSlab(tag=replace(order.tag, request_id=asked))
        if isinstance(order, AnswerGranted):
            asked = self._said.get(order.request_id, order.request_id)
            return replace(order, request_id=asked, lease=replace(order.lease, request_id=asked))
        return order


class TakesAFailedProbeForFree(BrokenBroker):
    """What the GPU's own processes use is not counted."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Hear of no owners."""
        if isinstance(event, GpuReported):
            event = GpuReported(report=_without_owners(event.report))
        elif isinstance(event, KeeperAttached):
            event = replace(event, reports=tuple(_without_owners(r) for r in event.reports))
        return self.inner.handle(event, now=now)


class ReportsPinnedBytesAsFree(BrokenBroker):
    """Quarantined bytes count as free."""

    def snapshot(self, now: float) -> NodeSnapshot:
        """Add what nobody can have to what anybody can have."""
        true = self.inner.snapshot(now)
        return replace(true, gpus=tuple(_overstated(gpu) for gpu in true.gpus))


class BelievesAnybodysRelease(BrokenBroker):
    """Whoever names a lease gives it back."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Do as if the holder had said it."""
        if isinstance(event, LeasesReleased | RevokeAcknowledged):
            leases = {lease.lease_id: lease for lease in self.inner.snapshot(now).leases}
            named = [leases[i] for i in event.lease_ids if i in leases]
            if named:
                event = replace(event, session_id=named[0].session_id, host_room=None)
        return self.inner.handle(event, now=now)


class NeverLooksAtTheClock(BrokenBroker):
    """Deadlines pass unseen."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Sleep through each tick."""
        return () if isinstance(event, Ticked) else self.inner.handle(event, now=now)


class ForgetsTheFree(BrokenBroker):
    """A slab counts as free as soon as its free was ordered."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Take the order for the answer."""
        done = list(self.inner.handle(event, now=now))
        for order in list(done):
            if isinstance(order, FreeSlab):
                done += self.inner.handle(SlabFreed(lease_id=order.lease_id), now=now)
        return tuple(done)


class RevivesLapsedLeases(BrokenBroker):
    """Silence is taken for a keepalive."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Hear everybody at every tick, and that they know all their leases."""
        done: list[Instruction] = []
        if isinstance(event, Ticked):
            books = self.inner.snapshot(now)
            for session in books.sessions:
                if session.state is SessionState.DEAD:
                    continue
                beat = KeepaliveReceived(
                    session_id=session.session_id,
                    request_id=RequestId("0"),
                    uses=tuple(
                        LeaseUse(lease_id=x.lease_id, used_bytes=1, copy_bytes=1, idle_seconds=0.0)
                        for x in books.leases
                        if x.session_id == session.session_id
                    ),
                    host_room=session.host_room,
                )
                done += _without(self.inner.handle(beat, now=now), AnswerKeepalive)
        return (*done, *self.inner.handle(event, now=now))


class GrantsBeforeTheSlabIsMade(BrokenBroker):
    """The promise is taken for the slab."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Answer before the keeper has."""
        done = list(self.inner.handle(event, now=now))
        for order in list(done):
            if isinstance(order, AllocateSlab):
                done += self.inner.handle(SlabAllocated(lease_id=order.tag.lease_id), now=now)
        return tuple(done)


class NeverForgets(BrokenBroker):
    """Keeps something of every session for ever."""

    def __init__(
        self, settings: BrokerSettings, now: float, drained: Iterable[GpuUuid] = ()
    ) -> None:
        super().__init__(settings, now, drained)
        self.graveyard: list[SessionId] = []

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Remember each session that is forgotten."""
        done = self.inner.handle(event, now=now)
        self.graveyard.extend(x.session_id for x in done if isinstance(x, ForgetSession))
        return done


class NeverAnswersReclaims(BrokenBroker):
    """Producers wait for ever."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Swallow the answers."""
        return tuple(_without(self.inner.handle(event, now=now), AnswerReclaim))


class LeaksEveryTenthSlab(BrokenBroker):
    """Some frees are never ordered."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Lose the order, keep the belief."""
        kept: list[Instruction] = []
        for order in self.inner.handle(event, now=now):
            if isinstance(order, FreeSlab) and _is_unlucky(order.lease_id):
                continue
            kept.append(order)
        return tuple(kept)


BROKEN: tuple[type[BrokenBroker], ...] = (
    FreesAtTheDeadline,
    TakesThePidfdAsProof,
    GrantsTwice,
    TakesAFailedProbeForFree,
    ReportsPinnedBytesAsFree,
    BelievesAnybodysRelease,
    NeverLooksAtTheClock,
    HasNoQuota,
    CountsNoLeases,
    CountsNoSessions,
    OverbooksTheHost,
    GrantsWhileRestarting,
    ForgetsTheFree,
    RevivesLapsedLeases,
    GrantsBeforeTheSlabIsMade,
    NeverForgets,
    NeverAnswersReclaims,
    LeaksEveryTenthSlab,
    LeavesWhatIsLentThere,
    ForgetsDrains,
    *BROKEN_QUIETS,
)


def _without_owners(report: GpuReport) -> GpuReport:
    return replace(report, owner_bytes=dict.fromkeys(report.owner_bytes, 0))


def _overstated(gpu: GpuSnapshot) -> GpuSnapshot:
    free = gpu.free_bytes + gpu.quarantined_bytes
    return replace(gpu, free_bytes=free, quarantined_bytes=0)


def _without(orders: Iterable[Instruction], kind: type) -> Iterable[Instruction]:
    return (order for order in orders if not isinstance(order, kind))


def _is_unlucky(lease_id: LeaseId) -> bool:
    return int(lease_id, 16) % 10 == 0
