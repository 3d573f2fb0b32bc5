"""The client's link to the daemon: attach and stay attached, borrow and give back.

Covers who may call what and when; `presence` holds the connection that keeps the session alive,
`calls` the unary calls. Does not cover what is in the leases: that is the pager's.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from secrets import token_hex
from typing import TypeVar

from aqua_client import __version__
from aqua_client.calls import BREAKER, Calls, is_lost_to_fork
from aqua_client.counters import Counters
from aqua_client.descriptors import ArrivingDescriptors, check_spare
from aqua_client.errors import BrokerUnreachable, ForkedChild, Refused
from aqua_client.listeners import SessionListener, Standing
from aqua_client.presence import Presence
from aqua_client.records import (
    GpuBytes,
    Grant,
    Granted,
    HostRoom,
    OfferResult,
    ReclaimResult,
    SafetyClass,
)
from aqua_client.settings import ClientSettings
from aqua_client.wire import (
    Call,
    acknowledge_call,
    acquire_call,
    exchange_call,
    gpu_bytes_call,
    offer_call,
    reclaim_call,
    release_call,
    reserve_host_call,
)

__all__ = ["Session", "SessionListener"]

# What the daemon takes at most, and how much later it answers. A daemon that dies or falls silent
# meanwhile ends the call much earlier.
LONGEST_RECLAIM_SECONDS = 60.0
RECLAIM_GRACE_SECONDS = 3.0

SLAB_DESCRIPTORS = 2  # the slab's own, and one for whoever opens a file at that moment

AnswerT = TypeVar("AnswerT")


class Session:
    """One link to the daemon. Threads may share it. In a forked child everything raises."""

    def __init__(
        self, settings: ClientSettings, listener: SessionListener, counters: Counters
    ) -> None:
        """Start nothing yet."""
        self._settings = settings
        self._counters = counters
        self._descriptors = ArrivingDescriptors()
        self._calls = Calls(settings.socket_path, counters)
        self._presence = Presence(
            settings, listener, counters, self._calls, self._descriptors, version=__version__
        )
        self._unanswered: dict[tuple[int, SafetyClass], str] = {}  # acquires: their request ids
        self._is_closed = False
        self._is_abandoned = False
        _MADE.add(self)

    def start(self) -> None:
        """Try to attach within `settings.connect_seconds`, then go on trying in the background.

        In a forked child of a process that has used gRPC it stays detached, with reason `forked`.

        Raises:
            ForkedChild: this process is a child of the one that made the session.
        """
        self._check_not_forked()
        if is_lost_to_fork():
            self._presence.standing = Standing(reason="forked")
            self._calls.shut("forked")
            return
        _STARTED.add(self)
        self._presence.start(seconds=self._settings.connect_seconds)

    @property
    def attached(self) -> bool:
        """Whether the daemon knows this session now."""
        return self._presence.standing.attached

    @property
    def reason(self) -> str:
        """Why no lease can be had now: "" when it can, else no_daemon, refused, breaker, ..."""
        return self._presence.standing.reason or self._calls.reason

    @property
    def tenant(self) -> str:
        """Who the daemon says this is; "" before the first attach."""
        welcome = self._presence.standing.welcome
        return welcome.tenant if welcome else ""

    @property
    def term_seconds(self) -> float:
        """How long a lease lasts without a keepalive; 0.0 before the first attach."""
        welcome = self._presence.standing.welcome
        return welcome.term_seconds if welcome else 0.0

    @property
    def smallest_slab_bytes(self) -> int:
        """0 before the first attach."""
        welcome = self._presence.standing.welcome
        return welcome.smallest_slab_bytes if welcome else 0

    @property
    def largest_slab_bytes(self) -> int:
        """0 before the first attach."""
        welcome = self._presence.standing.welcome
        return welcome.largest_slab_bytes if welcome else 0

    @property
    def takes_exchanges(self) -> bool:
        """Whether the daemon knows `exchange`; older ones do not."""
        welcome = self._presence.standing.welcome
        return welcome is not None and welcome.takes_exchanges

    def acquire(
        self, nbytes: int, safety_class: SafetyClass, *, wanted_bytes: int = 0, seconds: float
    ) -> Grant:
        """Borrow one slab. The caller owns the grant's descriptor.

        *wanted_bytes*: all that would be put into leases if it could, this slab among it.

        Raises:
            Refused: the daemon said no; `reason` says why (no_room, no_host_room, quota, ...).
            BrokerUnreachable: no answer in *seconds*, or none is to be expected now.
            ForkedChild: connect anew.
        """
        self._check_not_forked()
        deadline = time.monotonic() + seconds
        check_spare(SLAB_DESCRIPTORS)
        with self._descriptors.expected() as link:
            granted = self._ask_for_slab(nbytes, safety_class, wanted_bytes, seconds)
            if not granted.by_descriptor:
                return granted.grant
            lease_id = granted.grant.lease_id
            descriptor = self._descriptors.take(lease_id, deadline=deadline, link=link)
        if descriptor is None:
            # Not named in any keepalive, so the daemon takes the lease back.
            msg = f"the slab of lease {lease_id} did not come in {seconds:g} s"
            reason = "timeout" if time.monotonic() >= deadline else self.reason or "lost"
            raise BrokerUnreachable(msg, reason=reason)
        return replace(granted.grant, descriptor=descriptor)

    def release(
        self, lease_ids: Sequence[str], host_room: HostRoom, *, seconds: float | None = None
    ) -> set[str]:
        """Give slabs back that are unmapped; the ids that the daemon knew. Raises as `acquire`."""
        return self._give_back(release_call(token_hex(16), lease_ids, host_room), seconds)

    def acknowledge(
        self, lease_ids: Sequence[str], host_room: HostRoom, *, seconds: float | None = None
    ) -> set[str]:
        """Say that revoked slabs are evacuated and unmapped. Otherwise as `release`."""
        return self._give_back(acknowledge_call(token_hex(16), lease_ids, host_room), seconds)

    def tell_returned(
        self,
        host_room: HostRoom,
        *,
        acknowledged: Sequence[str] = (),
        released: Sequence[str] = (),
    ) -> None:
        """`acknowledge` and `release`, of slabs that are unmapped, without waiting for the answers.

        A no that comes later is only counted. Raises as these, of what could not be sent.
        """
        self._check_not_forked()
        seconds = self._settings.call_seconds
        if acknowledged:
            self._calls.tell(
                acknowledge_call(token_hex(16), acknowledged, host_room), seconds=seconds
            )
        if released:
            self._calls.tell(release_call(token_hex(16), released, host_room), seconds=seconds)

    def exchange(self, kept: Sequence[str], given: Sequence[str], *, seconds: float) -> None:
        """Have *given* revoked instead of *kept*, which were: leases of one GPU. Raises as `acquire`.

        Refused (exchange_...): *kept* have to come. What is taken is asked for by a revoke as well.
        """
        self._give_back(exchange_call(token_hex(16), kept, given), seconds)

    def reserve_host(self, host_room: HostRoom, *, seconds: float | None = None) -> HostRoom:
        """Set the bytes of host memory held for `store`; what is in force. Raises as `acquire`.

        A raise that the node's or the tenant's pool has no room for is Refused (no_host_room).
        """
        return self._make(reserve_host_call(token_hex(16), host_room), seconds)

    def offer(self, gpu: str, nbytes: int, *, seconds: float | None = None) -> OfferResult:
        """Say how many bytes of *gpu* may be lent. NotAnOwner, else raises as `acquire`."""
        return self._make(offer_call(token_hex(16), gpu, nbytes), seconds)

    def reclaim(self, gpu: str, nbytes: int, deadline_seconds: float = 0.0) -> ReclaimResult:
        """Ask for bytes of *gpu* back and wait for them; 0: the daemon's own deadline.

        NotAnOwner, else raises as `acquire`.
        """
        waiting = deadline_seconds or LONGEST_RECLAIM_SECONDS
        call = reclaim_call(token_hex(16), gpu, nbytes, deadline_seconds)
        return self._make(call, waiting + RECLAIM_GRACE_SECONDS + self._settings.call_seconds)

    def gpu_bytes(self, gpu: str, *, seconds: float) -> GpuBytes:
        """What of *gpu* is held for borrowers now. Raises as `acquire`."""
        return self._make(gpu_bytes_call(gpu), seconds, minds_breaker=False)  # only a look

    def close(self, *, seconds: float = 0.2) -> None:
        """Say goodbye if that is quick, and stop. The caller has unmapped everything. Idempotent.

        Never raises.
        """
        if self._is_closed or self._is_abandoned:
            return
        self._is_closed = True
        self._calls.shut("closed")
        self._presence.stop(seconds=seconds)
        _STARTED.discard(self)  # last: another thread may fork while this one closes

    def abandon_in_child(self) -> None:
        """Forget everything in a forked child, touching neither gRPC nor the sentinel.

        Runs by itself after each fork; calling it again does nothing.
        """
        if self._is_abandoned:
            return
        self._is_abandoned = True
        self._calls.abandon_in_child()
        self._presence.abandon_in_child()
        self._descriptors.abandon_in_child()

    def _ask_for_slab(
        self, nbytes: int, safety: SafetyClass, wanted_bytes: int, seconds: float
    ) -> Granted:
        """What was asked and not answered in time is asked again, instead of anything new.

        So a keeper that is stuck does not find one slab to make for each time that it was asked.
        """
        asked_before = self._unanswered.pop((nbytes, safety), None)
        request_id = asked_before or token_hex(16)
        try:
            call = acquire_call(request_id, nbytes, safety, wanted_bytes=wanted_bytes)
            return self._calls.make(call, seconds=seconds)
        except BrokerUnreachable as error:
            if error.reason in {"timeout", BREAKER}:
                self._unanswered[nbytes, safety] = request_id
            raise
        except Refused as error:
            if asked_before is None or error.reason != "stale_request":
                raise
        # It was granted and has gone back by itself, so long ago was it asked for.
        call = acquire_call(token_hex(16), nbytes, safety, wanted_bytes=wanted_bytes)
        return self._calls.make(call, seconds=seconds)

    def _give_back(self, call: Call[AnswerT], seconds: float | None) -> AnswerT:
        # A keeper that makes no slabs must not hold up what needs none: revokes have deadlines.
        return self._make(call, seconds, minds_breaker=False)

    def _make(
        self, call: Call[AnswerT], seconds: float | None, *, minds_breaker: bool = True
    ) -> AnswerT:
        self._check_not_forked()
        seconds = seconds or self._settings.call_seconds
        return self._calls.make(call, seconds=seconds, minds_breaker=minds_breaker)

    def _check_not_forked(self) -> None:
        if self._is_abandoned:
            msg = "this process was forked from the one that connected: connect anew in it"
            raise ForkedChild(msg)


_STARTED: set[Session] = set()  # also those that nobody knows any more: their threads go on
_MADE: weakref.WeakSet[Session] = weakref.WeakSet()


def _abandon_all() -> None:
    for session in tuple(_MADE):
        session.abandon_in_child()
    _STARTED.clear()


os.register_at_fork(after_in_child=_abandon_all)
