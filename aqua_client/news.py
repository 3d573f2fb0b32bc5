"""What the daemon says, turned into work: fences are set at once, the worker does the rest.

Runs on the session's thread, so every step is short.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from aqua_client.records import HostRoom, LeaseUse, RevokeNotice
from aqua_client.slabs import Slab
from aqua_client.tiers import Tiers


class News:
    """The pager's ear: a `SessionListener`."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._detached_at: float | None = None
        # Whether the daemon was there when it was last looked for, or never was. Every offload asks.
        self.is_in_contact = True

    @property
    def silent_seconds(self) -> float:
        """How long there has been no contact."""
        detached_at = self._detached_at
        return 0.0 if detached_at is None else time.monotonic() - detached_at

    def revoked(self, notice: RevokeNotice) -> None:
        """Leases are asked back. What is unknown was given back, or is not granted yet."""
        with self._tiers.lock:
            self._tiers.revokes_heard += 1
            self._tiers.hurry.begin()
            known = self._slabs(notice.lease_ids)
            for slab in known:
                slab.is_revoked = True
                slab.notice = notice
                slab.deadline = min(slab.deadline, notice.deadline)  # more time is never given
                self._tiers.fence(slab, notice.reason)
            unknown = set(notice.lease_ids).difference(slab.lease_id for slab in known)
            self._tiers.unknown_leases.extend(sorted(unknown))
            self._tiers.wake_worker()

    def leases_ended(self, lease_ids: Sequence[str]) -> None:
        """The daemon does not know them: empty and unmap; there is nobody to tell."""
        with self._tiers.lock:
            for slab in self._slabs(lease_ids):
                slab.is_ended = True
                self._tiers.fence(slab, "ended")

    def leases_lost(self, lease_ids: Sequence[str], reason: str) -> None:
        """What they hold is gone; copies that are under way end by themselves."""
        with self._tiers.lock:
            for slab in self._slabs(lease_ids):
                slab.is_ended = True
                self._tiers.fence(slab, reason or "lost")
                self._tiers.counters.leases_lost += 1
                for place in tuple(slab.places):
                    if not place.is_retired:
                        self._tiers.lose_place(place, slab.fence_reason)

    def attached(self) -> None:
        """Leases have a full new term."""
        self._detached_at = None
        self.is_in_contact = True

    def detached(self, reason: str) -> None:  # noqa: ARG002 - the session says it when asked
        """Everything stays readable."""
        self.is_in_contact = False
        self._detached_at = time.monotonic()

    def lease_uses(self) -> Sequence[LeaseUse]:
        """For keepalives."""
        with self._tiers.lock:
            return self._tiers.uses()

    def host_room(self) -> HostRoom:
        """For keepalives."""
        with self._tiers.lock:
            return self._tiers.host.statement()

    def _slabs(self, lease_ids: Sequence[str]) -> list[Slab]:
        slabs = self._tiers.slabs
        return [slabs[lease_id] for lease_id in lease_ids if lease_id in slabs]
