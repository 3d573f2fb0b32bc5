"""From the daemon's grant to a slab among the others, and from there back to the daemon.

Story of a slab: what the daemon grants is mapped; and only under the lock, where a revoke that
overtook the answer is noticed, does it become a slab. Whoever no longer wants it unmaps it first.
Does not cover when one is asked for (`borrowing`). No call is made under the lock.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence

from aqua_client.copying import Memory
from aqua_client.errors import BrokerUnreachable, Refused
from aqua_client.lender import Lender
from aqua_client.records import Grant, SafetyClass
from aqua_client.slabs import Slab
from aqua_client.tiers import Tiers

# Ids that were acknowledged although nothing was known of them; calls in flight are far fewer.
REMEMBERED_DISOWNED = 1024

logger = logging.getLogger("aqua")


class Arriving:
    """One a client."""

    def __init__(self, tiers: Tiers, lender: Lender, *, home_gpu: str | None) -> None:
        self._tiers = tiers
        self._lender = lender
        self._home_gpu = home_gpu
        self._disowned: OrderedDict[str, None] = OrderedDict()
        self._opening: set[str] = set()  # granted, and being mapped by some thread
        self._put_off: set[str] = set()  # of these: revoked, to be acknowledged once unmapped
        self._is_closed = False

    def close(self) -> None:
        """Under the lock: what is granted from now on is not mapped, or unmapped again."""
        self._is_closed = True

    @property
    def is_opening(self) -> bool:
        """Whether some slab is being mapped."""
        return bool(self._opening)

    def ask(self, size: int, safety: SafetyClass, *, wanted_bytes: int, seconds: float) -> Slab:
        """A slab, mapped: then comes `keep` or `drop`. *wanted_bytes*: all that would go to peers.

        Raises what `acquire` and `Memory.of_grant` raise.
        """
        grant = self._lender.acquire(size, safety, wanted_bytes=wanted_bytes, seconds=seconds)
        memory = None
        descriptor = grant.descriptor
        try:
            self._note_opening(grant)
            descriptor = None  # closed by who opens it
            memory = Memory.of_grant(grant, home_gpu=self._home_gpu)
            return Slab(grant, memory, now=time.monotonic())
        except BaseException as error:
            if descriptor is not None:
                os.close(descriptor)
            if memory is not None:
                memory.close()
            if not isinstance(error, Refused):
                self._return_unused(grant.lease_id)
            raise

    def why_unwanted(self, lease_id: str) -> str:
        """What happened since the slab was asked for; empty: nothing. Under the lock."""
        return "revoked" if lease_id in self._disowned else "closed" if self._is_closed else ""

    def keep(self, slab: Slab) -> None:
        """Under the lock: it is one of the others now."""
        self._opened(slab.lease_id)
        self._tiers.add_slab(slab)
        self._tiers.counters.leases_granted += 1

    def keep_if_wanted(self, slab: Slab) -> bool:
        """Keep it, or unmap it where nobody wants it any more."""
        with self._tiers.lock:
            is_wanted = not self.why_unwanted(slab.lease_id)
            if is_wanted:
                self.keep(slab)
        if not is_wanted:
            self.drop(slab)
        return is_wanted

    def drop(self, slab: Slab) -> None:
        """Unmap a slab that nobody wants any more; if it was revoked, acknowledge it then."""
        slab.memory.close()
        with self._tiers.lock:
            self._opened(slab.lease_id)
            is_put_off = slab.lease_id in self._put_off
            self._put_off.discard(slab.lease_id)
        if is_put_off:
            self._acknowledge_unknown([slab.lease_id])

    def give_up(self, slab: Slab) -> None:
        """After an interrupt: unmap it, unless it is among the slabs by now, and give it back."""
        with self._tiers.lock:
            is_kept = slab.lease_id in self._tiers.slabs
        if not is_kept:
            slab.memory.close()
            self._return_unused(slab.lease_id)

    def give_back(self, slabs: Sequence[Slab]) -> None:
        """Tell the daemon of slabs that are unmapped. Failing is no harm: it takes them back.

        Nobody waits for what it says to that: meanwhile the next slab is unmapped.
        """
        acknowledged = [slab.lease_id for slab in slabs if slab.is_revoked]
        released = [slab.lease_id for slab in slabs if not slab.is_revoked]
        with self._tiers.lock:
            for slab in slabs:
                self._tiers.host.uncover(slab.lease_id)
            room = self._tiers.host.statement()
        try:
            self._lender.tell_returned(room, acknowledged=acknowledged, released=released)
        except (BrokerUnreachable, Refused) as error:
            # A revoke is sent again at the next contact; what is not named is taken back.
            logger.info("the daemon was not told of %d returned slabs: %s", len(slabs), error)

    def disown(self, lease_ids: Sequence[str]) -> None:
        """Acknowledge leases that are not known: given back before, or granted this moment.

        One that is just being mapped is acknowledged by whoever maps it, once it is unmapped; one
        that has become a slab since it was asked back is emptied as any other.
        """
        with self._tiers.lock:
            for slab in [self._tiers.slabs[one] for one in lease_ids if one in self._tiers.slabs]:
                slab.is_revoked = True
                self._tiers.fence(slab, "revoked")
            lease_ids = [lease_id for lease_id in lease_ids if lease_id not in self._tiers.slabs]
            for lease_id in lease_ids:
                self._disowned[lease_id] = None
            while len(self._disowned) > REMEMBERED_DISOWNED:
                self._disowned.popitem(last=False)
            self._put_off.update(self._opening.intersection(lease_ids))
            unmapped = [lease_id for lease_id in lease_ids if lease_id not in self._opening]
        self._acknowledge_unknown(unmapped)

    def _note_opening(self, grant: Grant) -> None:
        """It is being mapped.

        Raises:
            Refused: nobody wants it any more, and the daemon knows that.
        """
        with self._tiers.lock:
            unwanted = self.why_unwanted(grant.lease_id)
            if not unwanted:
                self._opening.add(grant.lease_id)
        if unwanted:
            raise Refused(f"lease {grant.lease_id} came too late: {unwanted}", reason=unwanted)

    def _acknowledge_unknown(self, lease_ids: Sequence[str]) -> None:
        if not lease_ids:
            return
        with self._tiers.lock:
            room = self._tiers.host.statement()
        try:
            self._lender.acknowledge(lease_ids, room)
        except (BrokerUnreachable, Refused) as error:
            logger.info("unknown leases were not acknowledged, they are asked for again: %s", error)

    def _opened(self, lease_id: str) -> None:
        self._opening.discard(lease_id)
        self._tiers.changed.notify_all()  # who closes waits for it

    def _return_unused(self, lease_id: str) -> None:
        with self._tiers.lock:
            self._opened(lease_id)
            self._put_off.discard(lease_id)
            room = self._tiers.host.statement()
        try:
            self._lender.release([lease_id], room)
        except (BrokerUnreachable, Refused) as error:
            logger.info("lease %s is left to lapse: %s", lease_id, error)
