"""Answers a revoke with other slabs: asks the daemon once, for a moment, and goes on either way.

Story of an exchange: a revoke names a slab that is in use; others of the same GPU are empty. These
are fenced, so that nothing comes into them meanwhile, and the daemon is asked to take them instead.
If it does, they go back at once and the first one is in use again. If it does not, or says nothing in
time, what it asked for is evacuated. Should its answer have been lost, it asks for the others itself.

A slab that is asked for again while the answer is on its way is not kept: which of the two the daemon
said last is not known here, and giving back what it does not want any more is no harm.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

from aqua_client.errors import BrokerUnreachable, Refused
from aqua_client.lender import Lender
from aqua_client.records import RevokeNotice
from aqua_client.slabs import Slab
from aqua_client.swapping import swaps
from aqua_client.tiers import Tiers

EXCHANGE_SECONDS = 0.1  # for all answers together: of the 2 s that a revoke has
LEAST_PART = 1 / 8  # and never more of what is left until the deadline

# What is wanted for these is so many bytes of a GPU, whichever they are.
EXCHANGEABLE = frozenset({"reclaim", "reserve", "rebalance"})

OFFERED = "offered"  # why a slab is fenced while the daemon is asked

logger = logging.getLogger("aqua")


class Exchanging:
    """Used by the worker's thread only."""

    def __init__(self, tiers: Tiers, lender: Lender) -> None:
        self._tiers = tiers
        self._lender = lender

    def instead_of(self, revoked: Sequence[Slab]) -> list[Slab]:
        """Slabs that go back instead of some of *revoked*, which are then fenced no more.

        Each revoke is answered so once at most.
        """
        end = time.monotonic() + EXCHANGE_SECONDS
        given: list[Slab] = []
        for notice, slabs in self._take_notices(revoked).items():
            given += self._exchange(notice, slabs, end)
        return given

    def _take_notices(self, revoked: Sequence[Slab]) -> dict[RevokeNotice, list[Slab]]:
        """What was asked for and not looked at yet; not what has been moved out of by now."""
        fresh: dict[RevokeNotice, list[Slab]] = {}
        with self._tiers.lock:
            for slab in revoked:
                notice, slab.notice = slab.notice, None
                if notice is None or self._tiers.host.covered_bytes(slab.lease_id):
                    continue
                if notice.reason in EXCHANGEABLE and self._lender.takes_exchanges:
                    fresh.setdefault(notice, []).append(slab)
        return fresh

    def _exchange(self, notice: RevokeNotice, slabs: Sequence[Slab], end: float) -> list[Slab]:
        now = time.monotonic()
        seconds = min(end - now, LEAST_PART * (notice.deadline - now))
        if seconds <= 0:
            return []
        with self._tiers.lock:
            found = swaps(slabs, self._tiers.slabs.values())
            kept = [swap.kept for swap in found]
            given = [slab for swap in found for slab in swap.given]
            for slab in given:
                self._tiers.fence(slab, OFFERED)
        if not found:
            return []
        try:
            self._lender.exchange(_ids(kept), _ids(given), seconds=seconds)
        except (BrokerUnreachable, Refused) as error:
            logger.info("%d slabs are evacuated, no others taken: %s", len(kept), error)
            self._refused(given)
            return []
        self._taken(notice, kept, given)
        return given

    def _refused(self, given: Sequence[Slab]) -> None:
        with self._tiers.lock:
            for slab in given:
                if slab.fence_reason == OFFERED:  # else something has happened to it meanwhile
                    self._tiers.unfence(slab)

    def _taken(self, notice: RevokeNotice, kept: Sequence[Slab], given: Sequence[Slab]) -> None:
        with self._tiers.lock:
            self._tiers.counters.leases_exchanged += len(kept)
            for slab in given:
                slab.is_revoked = True
                slab.notice = None
                slab.deadline = min(slab.deadline, notice.deadline)
                if slab.fence_reason == OFFERED:
                    slab.fence_reason = notice.reason
            for slab in kept:
                if slab.notice is None and slab.fence_reason == notice.reason:
                    slab.is_revoked = False
                    slab.deadline = math.inf
                    self._tiers.unfence(slab)


def _ids(slabs: Sequence[Slab]) -> list[str]:
    return [slab.lease_id for slab in slabs]
