"""Places in host memory, for which the daemon is asked first: its ledger knows of every byte.

Never under the lock. Without a daemon this process's own limit holds. The figures are `host_tier`'s.
"""

from __future__ import annotations

from aqua_client.copying import Memory
from aqua_client.errors import BrokerUnreachable, InsufficientMemory, Refused
from aqua_client.host_tier import piece_sizes
from aqua_client.lender import Lender
from aqua_client.slabs import Place, Stored, places_in_host
from aqua_client.tiers import Tiers


class HostReserving:
    """One a client."""

    def __init__(self, tiers: Tiers, lender: Lender) -> None:
        self._tiers = tiers
        self._lender = lender

    def place(self, stored: Stored, nbytes: int, reason: str) -> list[Place]:
        """Places in host memory for what is not in leased memory because of *reason*.

        Raises:
            InsufficientMemory: as `reserve`.
            MemoryError: the process can't have so much.
        """
        tiers = self._tiers
        self.reserve(nbytes)
        try:
            sizes = piece_sizes(nbytes)
            with tiers.lock:
                kept = [tiers.host.take_kept(size, evacuating=False) for size in sizes]
            pairs = zip(sizes, kept, strict=True)
            memories = [Memory.of_host(size) if one is None else one for size, one in pairs]
            with tiers.lock:
                stored.reason = reason
                tiers.counters.count_fallback(reason)
                return places_in_host(memories, stored)
        except BaseException:
            with tiers.lock:
                tiers.host.give_up(nbytes)
            raise

    def reserve(self, nbytes: int) -> None:
        """Claim host memory; the caller gives it up.

        Raises:
            InsufficientMemory: the daemon's ledger, or this process's own limit, has no room.
        """
        host = self._tiers.host
        claimed_bytes = asked_bytes = 0  # to be undone, also when an interrupt comes in between
        try:
            with self._tiers.lock:
                host.claim(nbytes)
                claimed_bytes = nbytes
                if not self._lender.reason and host.is_reserved:
                    return
                host.asked_bytes += nbytes
                asked_bytes = nbytes
            self._reserve_claimed(nbytes)
            with self._tiers.lock:
                host.asked_bytes -= nbytes
                asked_bytes = 0
        except BaseException:
            with self._tiers.lock:
                host.used_bytes -= claimed_bytes
                host.asked_bytes -= asked_bytes
            raise

    def _reserve_claimed(self, nbytes: int) -> None:
        host = self._tiers.host
        reason = self._lender.reason
        for rounded in (True, False):
            if reason:
                break
            with self._tiers.lock:
                wish = host.wish(rounded=rounded)
            try:
                granted = self._lender.reserve_host(wish)
            except Refused as error:
                if rounded:
                    continue  # perhaps there is room for what is needed, not for a whole step
                raise self._no_room(nbytes, error.reason, has_daemon=True) from error
            except BrokerUnreachable as error:
                reason = error.reason
            else:
                with self._tiers.lock:
                    host.granted(granted)
                    if host.is_reserved or not rounded:
                        return  # else a statement has overtaken it: say it again
        with self._tiers.lock:
            free = host.free_bytes(has_daemon=False)
            if free < 0:  # what was kept for evacuations goes before an offload fails
                host.keep(max(0, host.kept_bytes + free))
            is_allowed = host.free_bytes(has_daemon=False) >= 0
        host.buffer.unmap_surplus()
        if not is_allowed:
            raise self._no_room(nbytes, reason, has_daemon=False)

    def _no_room(self, nbytes: int, reason: str, *, has_daemon: bool) -> InsufficientMemory:
        """What to raise while *nbytes* that there is no room for are claimed."""
        with self._tiers.lock:
            free = self._tiers.host.free_bytes(has_daemon=has_daemon) + nbytes
            return InsufficientMemory(
                asked_bytes=nbytes,
                peer_free_bytes=self._tiers.free_slab_bytes,
                host_free_bytes=max(0, free),
                reason=reason,
            )
