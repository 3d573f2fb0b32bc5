"""The oracle's own books of one daemon's life, kept from messages alone.

What a keeper said last, which slabs it must hold by what was ordered and answered, who is present,
who has ended, who has claimed what. Sums are taken anew at each question: slow and plain.
"""

from __future__ import annotations

from aqua_daemon.core.events import (
    DrainRequested,
    Event,
    GpuReported,
    KeeperAttached,
    KeeperDetached,
    KeeperEnded,
    LeasesReleased,
    OfferMade,
    PresenceEnded,
    ProcessEnded,
    RevokeAcknowledged,
    SentinelEnded,
    SessionClosed,
    SessionOpened,
    SessionReattached,
    SlabAllocationFailed,
    SlabFreed,
    Ticked,
)
from aqua_daemon.core.model import (
    BrokerSettings,
    GpuReport,
    GpuUuid,
    Lease,
    LeaseId,
    LeaseState,
    LendingPolicy,
    RequestId,
    SessionId,
    SlabTag,
    TenantName,
)
from aqua_daemon.core.sizes import DEAD_REVOKE_SECONDS, STANDARD_REVOKE_SECONDS
from tests.simulation.quiets import Quiets
from tests.simulation.stage import Stage

_LENT = (LeaseState.ALLOCATING, LeaseState.LEASED, LeaseState.REVOKING)


class Books:
    """What one daemon has been told and has ordered."""

    def __init__(self, settings: BrokerSettings, stage: Stage) -> None:
        self.reports: dict[GpuUuid, GpuReport] = {}
        self.attached: dict[GpuUuid, None] = {}
        self.held: dict[LeaseId, SlabTag] = {}
        self.leases: dict[LeaseId, Lease] = {}  # as the broker's moves say
        self.revoke_deadlines: dict[LeaseId, float] = {}
        self.claims: dict[LeaseId, None] = {}  # heard from the holder
        self.heard_at: dict[SessionId, float] = {}
        self.freed_bytes: dict[GpuUuid, int] = {}  # that came back, ever
        self.opened: dict[SessionId, TenantName] = {}  # let in by this daemon, and not forgotten
        self.quiets = Quiets(stage)
        self._stage = stage
        self._settings = settings
        self.grace_ends_at = stage.now + settings.restart_grace_seconds
        self._present: dict[SessionId, None] = {}
        self._known: dict[SessionId, None] = {}
        self._adopted: dict[SessionId, None] = {}  # holders that a keeper told of
        self._ended: dict[SessionId, None] = {}
        self._sentinel_ended: dict[SessionId, None] = {}
        self._closed: dict[SessionId, None] = {}
        self._limits: dict[GpuUuid, dict[SessionId, int]] = {}
        self._offers: dict[RequestId, OfferMade] = {}
        self._answered_offers: dict[RequestId, None] = {}
        self._heard: Event = Ticked()  # what is being handled
        self._undo: tuple[SessionId, bool, bool] | None = None
        self.newcomer_at: dict[GpuUuid, float] = {}
        self._uses: dict[GpuUuid, list[tuple[float, int]]] = {}  # and until when it was so

    def hear(self, event: Event) -> None:
        """Take down what a daemon is told."""
        self._heard = event
        self.quiets.hear(event)
        session_id: SessionId | None = getattr(event, "session_id", None)
        if session_id is not None:
            self.heard_at[session_id] = self._stage.now
        match event:
            case KeeperAttached(reports=reports, slabs=slabs):
                self._attach(reports, slabs)
            case KeeperDetached(gpus=gpus):
                for gpu in gpus:
                    self.attached.pop(gpu, None)
            case KeeperEnded(gpus=gpus):
                for gpu in gpus:
                    self.attached.pop(gpu, None)
                    self._drop_slabs(gpu, but={})
            case GpuReported(report=report):
                self._see_use(report)
                self.reports[report.gpu] = report
            case SlabAllocationFailed(lease_id=lease_id) | SlabFreed(lease_id=lease_id):
                self._drop_slab(lease_id)
            case LeasesReleased(lease_ids=lease_ids) | RevokeAcknowledged(lease_ids=lease_ids):
                self._claim(event.session_id, lease_ids)
            case _:
                self._hear_of_session(event)

    def unhear(self, event: Event) -> None:
        """The event was refused: it has changed nothing."""
        if isinstance(event, SessionOpened | SessionReattached) and self._undo is not None:
            session_id, was_present, was_known = self._undo
            if not was_present:
                self._present.pop(session_id, None)
            if not was_known:
                self._known.pop(session_id, None)

    def hold(self, tag: SlabTag) -> None:
        """A slab was ordered: it counts from now."""
        self.held[tag.lease_id] = tag

    def move(self, lease: Lease, after: LeaseState | None) -> None:
        """A lease has moved."""
        if after is None:
            self.leases.pop(lease.lease_id, None)
            self.revoke_deadlines.pop(lease.lease_id, None)
            return
        self.leases[lease.lease_id] = lease
        if after is LeaseState.REVOKING and lease.revocation is not None:
            self.revoke_deadlines[lease.lease_id] = lease.revocation.deadline
        elif after is LeaseState.LEASED:
            self.revoke_deadlines.pop(lease.lease_id, None)

    def is_open(self, session_id: SessionId) -> bool:
        """Whether a session has begun and not ended."""
        return session_id in self._known and session_id not in self._ended

    def is_present(self, session_id: SessionId) -> bool:
        """Whether its presence connection is up and its process lives, as far as was told."""
        return session_id in self._present and session_id not in self._ended

    def has_process_ended(self, session_id: SessionId) -> bool:
        """Whether its pidfd has fired."""
        return session_id in self._ended

    def is_proved_gone(self, session_id: SessionId) -> bool:
        """Whether pidfd and sentinel have both ended, or it said goodbye, which claims all."""
        proof = session_id in self._ended and session_id in self._sentinel_ended
        return proof or session_id in self._closed

    def leases_of(self, session_id: SessionId) -> list[LeaseId]:
        """The leases of a session that are not gone."""
        return [i for i, lease in self.leases.items() if lease.session_id == session_id]

    def why_no_grant_on(self, gpu: GpuUuid) -> str:
        """Why a GPU may not lend."""
        if gpu not in self.reports:
            return "which nobody has reported"
        if gpu not in self.attached:
            return "whose keeper is not attached"
        policy = self._settings.lending_of[gpu]
        if policy is LendingPolicy.NEVER:
            return "which is never lent"
        if policy is LendingPolicy.OFFERED and not self._limits.get(gpu):
            return "of which nothing is offered"
        if self.quiets.is_quiet(gpu):
            return "which is quiet"
        came_at = self.newcomer_at.get(gpu, -1e9)
        is_new = self._stage.now < came_at + self._settings.newcomer_seconds
        return f"where a process came at {came_at}" if is_new else ""

    def why_no_grants(self) -> str:
        """Why a new daemon may not grant anything yet."""
        if self._stage.now >= self.grace_ends_at:
            return ""
        unheard = [gpu for gpu in self._settings.gpus if gpu not in self.reports]
        absent = [s for s in self._adopted if s not in self._known and s not in self._ended]
        return f"{unheard} {absent}" if unheard or absent else ""

    def free_bytes(self, gpu: GpuUuid) -> int:
        """By the last report, and by what was ordered and answered since."""
        report = self.reports[gpu]
        held = sum(tag.nbytes for tag in self.held.values() if tag.lender == gpu)
        return report.total_bytes - sum(report.owner_bytes.values()) - held

    def unsettled_bytes(self, gpu: GpuUuid) -> int:
        """What the GPU's processes have let go within a settle time."""
        if self._settings.lending_of[gpu] is not LendingPolicy.AUTO:
            return 0
        since = self._stage.now - self._settings.settle_seconds
        recent = [nbytes for until, nbytes in self._uses.get(gpu, ()) if until > since]
        now = sum(self.reports[gpu].owner_bytes.values())
        return max(0, max(recent, default=now) - now)

    def standard_revoke_seconds(self) -> float:
        """The longest that a revoke may have: what the link takes for all that is lent."""
        all_bytes = sum(lease.nbytes for lease in self.leases.values())
        return max(STANDARD_REVOKE_SECONDS, all_bytes / self._settings.host_bytes_per_second)

    def longest_drain_seconds(self) -> float:
        """The longest that a revoke of a drain may have, by what is being handled."""
        match self._heard:
            case DrainRequested(deadline_seconds=seconds):
                return self.standard_revoke_seconds() if seconds is None else seconds
            case KeeperAttached():  # holders of what it has may yet have to come back
                return max(self.standard_revoke_seconds(), self._settings.term_seconds)
            case _:
                return -1.0  # nobody has asked for any

    def latest_revoke_deadline(self, gpu: GpuUuid) -> float:
        """When the last of the revokes under way there ends."""
        there = [lease.lease_id for lease in self.leases.values() if lease.lender == gpu]
        return max((self.revoke_deadlines.get(one, 0.0) for one in there), default=0.0)

    def tenant_bytes(self, tenant: TenantName) -> int:
        """Every slab of a tenant that a keeper holds or was ordered to make."""
        return sum(tag.nbytes for tag in self.held.values() if tag.tenant == tenant)

    def tenant_leases(self, tenant: TenantName) -> int:
        """How many slabs these are."""
        return sum(tag.tenant == tenant for tag in self.held.values())

    def tenant_sessions(self, tenant: TenantName) -> int:
        """How many sessions of a tenant this daemon has opened and not forgotten."""
        return sum(one == tenant for one in self.opened.values())

    def lent_bytes(self, gpu: GpuUuid) -> int:
        """What is lent on a GPU, by the broker's own moves."""
        leases = self.leases.values()
        return sum(x.nbytes for x in leases if x.lender == gpu and x.state in _LENT)

    def limit(self, gpu: GpuUuid) -> int | None:
        """The lowest offer in force there."""
        limits = self._limits.get(gpu)
        return min(limits.values()) if limits else None

    def offered(self, request_id: RequestId) -> None:
        """An offer was accepted; a repeated answer to it changes nothing."""
        event = self._offers.pop(request_id, None)
        if event is not None and request_id not in self._answered_offers:
            self._answered_offers[request_id] = None
            self._limits.setdefault(event.gpu, {})[event.session_id] = event.nbytes

    def _attach(self, reports: tuple[GpuReport, ...], slabs: tuple[SlabTag, ...]) -> None:
        listed = dict.fromkeys(tag.lease_id for tag in slabs)
        for report in reports:
            self._see_use(report)
            self.reports[report.gpu] = report
            self.attached[report.gpu] = None
            self._drop_slabs(report.gpu, but=listed)
        for tag in slabs:
            self.held[tag.lease_id] = tag
            self._adopted[tag.session_id] = None
            self.heard_at.setdefault(tag.session_id, self._stage.now)

    def _see_use(self, report: GpuReport) -> None:
        before = self.reports.get(report.gpu)
        if before is None:
            return
        uses = self._uses.setdefault(report.gpu, [])
        uses.append((self._stage.now, sum(before.owner_bytes.values())))
        sees = self._settings.newcomer_seconds and not self._settings.lend_to_own_gpu
        sees = sees and not self.quiets.is_quiet(report.gpu)
        if sees and report.owner_bytes.keys() - before.owner_bytes:
            self.newcomer_at[report.gpu] = self._stage.now

    def _drop_slabs(self, gpu: GpuUuid, *, but: dict[LeaseId, None]) -> None:
        for lease_id in [i for i, t in self.held.items() if t.lender == gpu and i not in but]:
            self._drop_slab(lease_id)

    def _drop_slab(self, lease_id: LeaseId) -> None:
        tag = self.held.pop(lease_id, None)
        if tag is not None:
            self.freed_bytes[tag.lender] = self.freed_bytes.get(tag.lender, 0) + tag.nbytes

    def _claim(self, session_id: SessionId, lease_ids: tuple[LeaseId, ...]) -> None:
        for lease_id in lease_ids:
            tag = self.held.get(lease_id)
            if tag is not None and tag.session_id == session_id:
                self.claims[lease_id] = None

    def _hear_of_session(self, event: Event) -> None:
        match event:
            case SessionOpened(session_id=session_id) | SessionReattached(session_id=session_id):
                self._undo = (session_id, session_id in self._present, session_id in self._known)
                self._present[session_id] = None
                self._known[session_id] = None
            case OfferMade(request_id=request_id):
                self._offers[request_id] = event
            case PresenceEnded(session_id=session_id):
                self._present.pop(session_id, None)
            case ProcessEnded(session_id=session_id):
                self._shorten_revokes(session_id)
                self._end(session_id)
            case SentinelEnded(session_id=session_id):
                self._sentinel_ended[session_id] = None
            case SessionClosed(session_id=session_id):
                mine = tuple(i for i, tag in self.held.items() if tag.session_id == session_id)
                self._claim(session_id, mine)
                self._end(session_id)
                self._closed[session_id] = None
            case _:
                pass

    def _shorten_revokes(self, session_id: SessionId) -> None:
        # Of the dead: nobody is told.
        latest = self._stage.now + DEAD_REVOKE_SECONDS
        for lease_id in self.leases_of(session_id):
            if lease_id in self.revoke_deadlines:
                self.revoke_deadlines[lease_id] = min(latest, self.revoke_deadlines[lease_id])

    def _end(self, session_id: SessionId) -> None:
        self._ended[session_id] = None
        self._present.pop(session_id, None)
        for limits in self._limits.values():
            limits.pop(session_id, None)
