"""Finds places for what found none at once: in slabs that are borrowed for it, and in the host.

Never under the lock. Does not cover what is put into a slab that is held (`pager`, `tiers`).
"""

from __future__ import annotations

import time

from aqua_client import in_flight
from aqua_client.borrowing import Borrowing
from aqua_client.fallback import FallbackRule, Shortage
from aqua_client.host_reserving import HostReserving
from aqua_client.lender import Lender
from aqua_client.news import News
from aqua_client.settings import ClientSettings
from aqua_client.slabs import Place, Stored
from aqua_client.tiers import Tiers, refuse_closed

# A session notices silence after two thirds of a term; a lease must not be written to after one.
WRITABLE_TERMS = 1 / 3


class Reserving:
    """One a client."""

    def __init__(
        self,
        tiers: Tiers,
        borrowing: Borrowing,
        news: News,
        *,
        lender: Lender,
        settings: ClientSettings,
    ) -> None:
        self._tiers = tiers
        self._borrowing = borrowing
        self._news = news
        self._lender = lender
        self._acquire_seconds = settings.acquire_seconds
        self._host_reserving = HostReserving(tiers, lender)
        self._rule = FallbackRule(settings)

    def reserve(self, stored: Stored) -> None:
        """Slab by slab, asking for more of them; what finds no room there goes to the host.

        What it has found is the stored's, also when it raises.

        Raises:
            InsufficientMemory: no tier has room.
            BrokerUnreachable: no leased memory, and `fallback="error"`.
            HandleReleased: the client has closed meanwhile.
        """
        missing = stored.nbytes
        reason = ""
        # One deadline for all of its slabs: what is not there by then goes to the host.
        end = time.monotonic() + self._acquire_seconds
        in_flight.land(self._tiers)  # perhaps there is room by now
        while missing and not reason:
            try:
                self._check_writable()
                place = self._borrowing.put(missing, stored, end=end)
            except Shortage as shortage:
                reason = shortage.reason
            else:
                stored.reserved.append(place)
                missing -= place.nbytes
        if missing:
            places = self._in_host(stored, missing, reason)
            stored.reserved += places
            with self._tiers.lock:
                if self._tiers.is_closed:  # meanwhile: it does not wait for this copy
                    refuse_closed()
                self._tiers.in_host.update(dict.fromkeys(places))

    def _in_host(self, stored: Stored, nbytes: int, reason: str) -> list[Place]:
        with self._tiers.lock:
            free = self._tiers.free_slab_bytes
        self._rule.enter(reason, nbytes=nbytes, peer_free_bytes=free)
        return self._host_reserving.place(stored, nbytes, reason)

    def _check_writable(self) -> None:
        """After a term without contact a lease may have lapsed: nothing new goes there."""
        if self._news.silent_seconds > WRITABLE_TERMS * self._lender.term_seconds:
            raise Shortage(self._lender.reason or "detached")
