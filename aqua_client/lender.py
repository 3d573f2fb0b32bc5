"""The session as the pager sees it: where memory is borrowed and given back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from aqua_client.counters import Counters
from aqua_client.records import Grant, HostRoom, SafetyClass
from aqua_client.session import SessionListener
from aqua_client.settings import ClientSettings


class Lender(Protocol):
    """What is used of a `Session`; every call raises what that raises."""

    @property
    def attached(self) -> bool:
        """Whether the daemon knows this process now."""

    @property
    def reason(self) -> str:
        """Why no lease can be had now; empty when it can."""

    @property
    def tenant(self) -> str:
        """Who the daemon says this is."""

    @property
    def term_seconds(self) -> float:
        """How long a lease lasts without contact."""

    @property
    def smallest_slab_bytes(self) -> int:
        """0 before the first attach."""

    @property
    def largest_slab_bytes(self) -> int:
        """0 before the first attach."""

    @property
    def takes_exchanges(self) -> bool:
        """Whether the daemon knows `exchange`."""

    def start(self) -> None:
        """Attach, or go on trying in the background."""

    def acquire(
        self, nbytes: int, safety_class: SafetyClass, *, wanted_bytes: int, seconds: float
    ) -> Grant:
        """Borrow one slab."""

    def release(
        self, lease_ids: Sequence[str], host_room: HostRoom, *, seconds: float | None = None
    ) -> set[str]:
        """Give slabs back."""

    def acknowledge(
        self, lease_ids: Sequence[str], host_room: HostRoom, *, seconds: float | None = None
    ) -> set[str]:
        """Say that revoked slabs are empty and unmapped."""

    def tell_returned(
        self,
        host_room: HostRoom,
        *,
        acknowledged: Sequence[str] = (),
        released: Sequence[str] = (),
    ) -> None:
        """Both, without waiting for the answers."""

    def exchange(self, kept: Sequence[str], given: Sequence[str], *, seconds: float) -> None:
        """Have leases revoked instead of others that were."""

    def reserve_host(self, host_room: HostRoom, *, seconds: float | None = None) -> HostRoom:
        """Reserve host memory."""

    def close(self, *, seconds: float = 0.2) -> None:
        """Leave. Never raises."""


LenderMaker = Callable[[ClientSettings, SessionListener, Counters], Lender]
