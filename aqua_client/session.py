"""The client's link to the daemon: attach and stay attached, borrow and give back.

Covers who may call what and when; `presence` holds the connection that keeps the session alive,
`calls` the unary calls. Does not cover what is in the leases: that is the pager's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aqua_client.counters import Counters
from aqua_client.settings import ClientSettings
from aqua_client.wire import (
    Grant,
    HostRoom,
    LeaseUse,
    OfferResult,
    ReclaimResult,
    RevokeNotice,
    SafetyClass,
)

__all__ = ["Session", "SessionListener"]


class SessionListener(Protocol):
    """Who is told what the daemon says. Called on the session's thread: return at once."""

    def revoked(self, notice: RevokeNotice) -> None:
        """Evacuate the leases, then `acknowledge` them; unknown ones at once. May be repeated."""

    def leases_ended(self, lease_ids: Sequence[str]) -> None:
        """The daemon does not know these: evacuate, then close; there is nobody to tell."""

    def leases_lost(self, lease_ids: Sequence[str], reason: str) -> None:
        """What these hold is gone."""

    def attached(self) -> None:
        """Attached, for the first time or again: leases may be asked for."""

    def detached(self, reason: str) -> None:
        """Not attached any more. Leases stay readable; `fetch` and evacuation go on."""

    def lease_uses(self) -> Sequence[LeaseUse]:
        """Every lease that the client knows, for keepalive and re-attach."""

    def host_room(self) -> HostRoom:
        """The host memory held for `store` data now."""


class Session:
    """One link to the daemon. Threads may share it. In a forked child everything raises."""

    def __init__(
        self, settings: ClientSettings, listener: SessionListener, counters: Counters
    ) -> None:
        """Start nothing yet."""
        raise NotImplementedError

    def start(self) -> None:
        """Try to attach within `settings.connect_seconds`, then go on trying in the background.

        Raises:
            ForkedChild: this process is a child of the one that made the session.
        """
        raise NotImplementedError

    @property
    def attached(self) -> bool:
        """Whether the daemon knows this session now."""
        raise NotImplementedError

    @property
    def reason(self) -> str:
        """Why no lease can be had now: "" when it can, else no_daemon, refused, breaker, ..."""
        raise NotImplementedError

    @property
    def tenant(self) -> str:
        """Who the daemon says this is; "" before the first attach."""
        raise NotImplementedError

    @property
    def term_seconds(self) -> float:
        """How long a lease lasts without a keepalive; 0.0 before the first attach."""
        raise NotImplementedError

    @property
    def smallest_slab_bytes(self) -> int:
        """0 before the first attach."""
        raise NotImplementedError

    @property
    def largest_slab_bytes(self) -> int:
        """0 before the first attach."""
        raise NotImplementedError

    def acquire(self, nbytes: int, safety_class: SafetyClass, *, seconds: float) -> Grant:
        """Borrow one slab. The caller owns the grant's descriptor.

        Raises:
            Refused: the daemon said no; `reason` says why (no_room, no_host_room, quota, ...).
            BrokerUnreachable: no answer in *seconds*, or none is to be expected now.
            ForkedChild: connect anew.
        """
        raise NotImplementedError

    def release(
        self, lease_ids: Sequence[str], host_room: HostRoom, *, seconds: float | None = None
    ) -> set[str]:
        """Give slabs back that are unmapped; the ids that the daemon knew. Raises as `acquire`."""
        raise NotImplementedError

    def acknowledge(
        self, lease_ids: Sequence[str], host_room: HostRoom, *, seconds: float | None = None
    ) -> set[str]:
        """Say that revoked slabs are evacuated and unmapped. Otherwise as `release`."""
        raise NotImplementedError

    def reserve_host(self, host_room: HostRoom, *, seconds: float | None = None) -> HostRoom:
        """Set the bytes of host memory held for `store`; what is in force. Raises as `acquire`.

        A raise that the node's or the tenant's pool has no room for is Refused (no_host_room).
        """
        raise NotImplementedError

    def offer(self, gpu: str, nbytes: int, *, seconds: float | None = None) -> OfferResult:
        """Say how many bytes of *gpu* may be lent. NotAnOwner, else raises as `acquire`."""
        raise NotImplementedError

    def reclaim(self, gpu: str, nbytes: int, deadline_seconds: float = 0.0) -> ReclaimResult:
        """Ask for bytes of *gpu* back and wait for them; 0: the daemon's own deadline.

        NotAnOwner, else raises as `acquire`.
        """
        raise NotImplementedError

    def close(self, *, seconds: float = 0.2) -> None:
        """Say goodbye if that is quick, and stop. The caller has unmapped everything. Idempotent.

        Never raises.
        """
        raise NotImplementedError

    def abandon_in_child(self) -> None:
        """Forget everything in a forked child, touching neither gRPC nor the sentinel.

        Runs by itself after each fork; calling it again does nothing.
        """
        raise NotImplementedError
