"""The broker: the one place where state changes.

`Broker.handle` takes one event and the time it happened, changes the books, and returns what the
outside world must now do. It never waits, reads a clock, makes an id, or touches a GPU, so any
history can be replayed in a test. The rules are in the modules that it dispatches to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import assert_never

from aqua_daemon.core import (
    draining,
    exchanging,
    faults,
    granting,
    keeping,
    probing,
    quiescing,
    quotas,
    reclaiming,
    returning,
    sessions,
    snapshots,
    terms,
)
from aqua_daemon.core.auditing import Audit, all_violations
from aqua_daemon.core.books import Books
from aqua_daemon.core.errors import IntegrityViolation
from aqua_daemon.core.events import (
    DrainRequested,
    Event,
    ExchangeOffered,
    GpuReported,
    HolderEvent,
    HostRoomRequested,
    KeepaliveReceived,
    KeeperAttached,
    KeeperDetached,
    KeeperEnded,
    KeeperEvent,
    LeaseRequested,
    LeasesReleased,
    LinkProbed,
    LinkProbeRequested,
    LinksUsed,
    LossTold,
    OfferMade,
    PresenceEnded,
    ProcessEnded,
    QuiesceRequested,
    QuotaSet,
    ReclaimRequested,
    RevokeAcknowledged,
    SentinelEnded,
    SessionClosed,
    SessionOpened,
    SessionReattached,
    SlabAllocated,
    SlabAllocationFailed,
    SlabFreed,
    Ticked,
    UndrainRequested,
)
from aqua_daemon.core.instructions import Instruction
from aqua_daemon.core.ledger import Ledger
from aqua_daemon.core.limits import Quota
from aqua_daemon.core.model import BrokerSettings, GpuPair, GpuUuid, LinkRate, TenantName
from aqua_daemon.core.node_snapshot import NodeSnapshot
from aqua_daemon.core.scores import LinkScores
from aqua_daemon.core.sizes import EVENTS_BETWEEN_FULL_CHECKS
from aqua_daemon.core.turn import Turn


class Broker:
    """Decides who gets which bytes, and for how long."""

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        now: float,
        strict: bool = False,
        quotas: Mapping[TenantName, Quota] | None = None,
        drained: Iterable[GpuUuid] = (),
        links: Mapping[GpuPair, LinkRate] | None = None,
    ) -> None:
        """A broker that knows only what admins have set (*quotas*, which GPUs are *drained*) or measured.

        *strict*: broken invariants raise, and all are checked at once, as tests want.
        """
        self._books = Books(
            settings=settings,
            ledger=Ledger(settings.gpus, drained=drained),
            started_at=now,
            quotas=dict(quotas or {}),
            scores=LinkScores(links, gpus=settings.gpus),
        )
        self._audit = Audit(self._books)
        self._is_strict = strict
        self._now = now
        self._events = 0

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Apply *event*, which happened at *now*; return what must be done about it.

        Raises:
            BrokerError: it is refused, and nothing has changed.
        """
        self._now = max(now, self._now)
        self._look_at_restart()  # what the last events brought may have ended it
        turn = Turn(self._books, self._now)
        self._dispatch(turn, event)
        if self._books.reclaims:
            reclaiming.settle(turn)
        self._check(turn, event)
        return tuple(turn.instructions)

    def snapshot(self, now: float) -> NodeSnapshot:
        """The books at *now*, for reading."""
        self._look_at_restart()
        return snapshots.snapshot(self._books, now)

    def next_deadline(self) -> float | None:
        """When the next `Ticked` should come at the latest; it may find nothing to do."""
        books = self._books
        candidates = [
            books.lease_timers.next_at,
            books.session_timers.next_at,
            books.reclaim_timers.next_at,
            books.probe.ends_at if books.probe is not None else None,
            books.grace_ends_at if books.is_restarting else None,
        ]
        return min((at for at in candidates if at is not None), default=None)

    def check_integrity(self) -> None:
        """Check every invariant that the books can see.

        Raises:
            IntegrityViolation: one does not hold; names the lease or GPU and the numbers.
        """
        for violation in all_violations(self._books):
            raise IntegrityViolation(f"{violation.rule}: {violation.message}")

    def _dispatch(self, turn: Turn, event: Event) -> None:
        match event:
            case LeaseRequested():
                granting.request_lease(turn, event)
            case LeasesReleased() | RevokeAcknowledged():
                returning.take_returns(turn, event)
            case ExchangeOffered():
                exchanging.exchange(turn, event)
            case HostRoomRequested():
                sessions.request_host_room(turn, event)
            case OfferMade():
                reclaiming.make_offer(turn, event)
            case ReclaimRequested():
                reclaiming.start_reclaim(turn, event)
            case QuotaSet():
                quotas.set_quota(turn, event)
            case QuiesceRequested():
                quiescing.request_quiet(turn, event)
            case DrainRequested():
                draining.drain(turn, event)
            case UndrainRequested():
                draining.undrain(turn, event)
            case LinkProbeRequested():
                probing.start(turn, event)
            case Ticked():
                terms.tick(turn)
            case (
                SlabAllocated()
                | SlabAllocationFailed()
                | SlabFreed()
                | LinkProbed()
                | GpuReported()
                | KeeperAttached()
                | KeeperDetached()
                | KeeperEnded()
            ):
                _hear_keeper(turn, event)
            case _:
                _hear_holder(turn, event)

    def _look_at_restart(self) -> None:
        books = self._books
        if books.is_restarting:
            is_complete = books.has_heard_all and not books.awaited
            books.is_restarting = not is_complete and self._now < books.grace_ends_at

    def _check(self, turn: Turn, event: Event) -> None:
        if self._is_strict:
            self._check_strictly(turn)
            return
        found = faults.violations_of_touched(turn)
        found += self._audit.go_on(is_tick=isinstance(event, Ticked))
        for violation in found:
            faults.contain(turn, violation)

    def _check_strictly(self, turn: Turn) -> None:
        self._events += 1
        for violation in faults.violations_of_touched(turn):
            raise IntegrityViolation(f"{violation.rule}: {violation.message}")
        if self._events % EVENTS_BETWEEN_FULL_CHECKS == 0:
            self.check_integrity()


def _hear_keeper(turn: Turn, event: KeeperEvent) -> None:
    match event:
        case SlabAllocated():
            granting.slab_allocated(turn, event)
        case SlabAllocationFailed():
            granting.slab_allocation_failed(turn, event)
        case SlabFreed():
            returning.slab_freed(turn, event)
        case LinkProbed():
            probing.probed(turn, event)
        case GpuReported():
            keeping.report(turn, event)
        case KeeperAttached():
            keeping.attach(turn, event)
        case KeeperDetached():
            keeping.detach(turn, event)
        case KeeperEnded():
            keeping.end(turn, event)
        case _:
            assert_never(event)


def _hear_holder(turn: Turn, event: HolderEvent) -> None:
    match event:
        case KeepaliveReceived():
            sessions.keep_alive(turn, event)
        case SessionOpened():
            sessions.open_session(turn, event)
        case SessionReattached():
            sessions.reattach(turn, event)
        case PresenceEnded():
            sessions.end_presence(turn, event)
        case ProcessEnded():
            sessions.end_process(turn, event)
        case SentinelEnded():
            sessions.end_sentinel(turn, event)
        case SessionClosed():
            sessions.close_session(turn, event)
        case LinksUsed():
            probing.take_uses(turn, event)
        case LossTold():
            returning.loss_told(turn, event)
        case _:
            assert_never(event)
