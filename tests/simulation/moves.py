"""Single moves of slabs: nothing is returned, revoked or quarantined but as it was promised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from aqua_daemon.core.model import (
    GpuUuid,
    Lease,
    LeaseId,
    LeaseState,
    RevokeReason,
    SessionId,
)
from aqua_daemon.core.sizes import REST_SECONDS
from tests.simulation.books import Books
from tests.simulation.judge import require
from tests.simulation.stage import Stage
from tests.simulation.truth import Slab


class Moves:
    """What leases may do, whichever daemon moves them; each verb gets that daemon's books."""

    def __init__(
        self,
        stage: Stage,
        find_slab: Callable[[LeaseId], Slab | None],
    ) -> None:
        self.granted: dict[LeaseId, SessionId] = {}  # whose handle has left a daemon
        self.asked_back: Counter[tuple[GpuUuid, RevokeReason]] = Counter()  # leases
        self.lost_at = -1e9  # when a slab was last lost with its keeper
        self._leased_at: dict[LeaseId, float] = {}
        self._stage = stage
        self._find_slab = find_slab

    def moved(
        self,
        before: LeaseState | None,
        after: LeaseState | None,
        lease: Lease,
        books: Books,
    ) -> None:
        """A lease moves; *books* learn it when it may."""
        known = books.leases.get(lease.lease_id)
        was = known.state if known is not None else None
        require(was is before, "{} moved from {}, it was {}", lease.lease_id, before, was)
        if after is LeaseState.LEASED:
            self._leased_at.setdefault(lease.lease_id, self._stage.now)
        elif after is None:
            self._leased_at.pop(lease.lease_id, None)
        if after is LeaseState.RETURNED:
            self.must_be_returned(lease.lease_id, books, "counted as returned")
        elif after is LeaseState.LEASED and before is not None:
            dead = books.has_process_ended(lease.session_id)
            require(not dead, "{} leased to a dead process", lease.lease_id)
        elif after is LeaseState.REVOKING:
            self._check_deadline(lease, books)
            self._check_rest(lease)
        elif after is LeaseState.QUARANTINED:
            self._stage.count("quarantines")
            self._check_quarantine(lease, books)
        elif after is LeaseState.LOST:
            slab = self._find_slab(lease.lease_id)
            require(slab is None or slab.is_gone, "{} is not lost", lease.lease_id)
            self._stage.count("leases lost")
            self.lost_at = self._stage.now
        if before is LeaseState.QUARANTINED and after is LeaseState.RETURNED:
            self._stage.count("quarantines healed")
        books.move(lease, after)

    def must_be_returned(self, lease_id: LeaseId, books: Books, what: str) -> None:
        """Only a claim of the holder, or proof that it is gone, makes a slab returned."""
        if lease_id not in self.granted:
            return  # its handle never left a daemon: nobody can have it
        tag = books.held.get(lease_id)
        require(
            lease_id in books.claims or (tag is None or books.is_proved_gone(tag.session_id)),
            "{} {} without a claim or proof",
            lease_id,
            what,
        )

    def _check_deadline(self, lease: Lease, books: Books) -> None:
        revocation = lease.revocation
        require(revocation is not None, "{} is revoking without a revocation", lease)
        if revocation is None:
            return
        self._stage.count(f"revokes: {revocation.reason.value}")
        is_drain = revocation.reason is RevokeReason.DRAIN
        longest = books.longest_drain_seconds() if is_drain else books.standard_revoke_seconds()
        if revocation.reason is RevokeReason.OWNER:  # of what a keeper turned out to hold
            longest = max(longest, books.longest_drain_seconds())
        standard = self._stage.now + longest + 1e-6
        by_owner = revocation.reason is RevokeReason.RECLAIM
        require(by_owner or revocation.deadline <= standard, "{}: deadline is too late", lease)

    def _check_rest(self, lease: Lease) -> None:
        """By choice nothing is moved twice within a while."""
        reason = lease.revocation.reason if lease.revocation is not None else RevokeReason.FAULT
        self.asked_back[lease.lender, reason] += 1
        rested = self._stage.now - self._leased_at.get(lease.lease_id, -1e9)
        by_choice = reason is RevokeReason.REBALANCE
        require(not by_choice or rested >= REST_SECONDS, "{} moved after {} s", lease, rested)

    def _check_quarantine(self, lease: Lease, books: Books) -> None:
        deadline = books.revoke_deadlines.get(lease.lease_id)
        dead = books.has_process_ended(lease.session_id)
        require(
            dead or (deadline is not None and self._stage.now >= deadline - 1e-6),
            "{} quarantined before its deadline {}",
            lease.lease_id,
            deadline,
        )
