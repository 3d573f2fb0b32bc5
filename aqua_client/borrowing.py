"""Asks the daemon for slabs, and to take slabs back. Never under the lock.

Story of a borrowed slab: nothing held has room; one thread at a time asks (others wait, then look
again); the daemon's answer is mapped; and only under the lock, where a revoke that overtook the
answer is noticed, does it become a slab.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from aqua_client.copying import Memory, UnusableSlab
from aqua_client.errors import BrokerUnreachable, Refused
from aqua_client.fallback import BACK_OFF_SECONDS, UNUSABLE_SECONDS, BackOff, Shortage
from aqua_client.lender import Lender
from aqua_client.records import Grant, SafetyClass
from aqua_client.slabs import Place, Slab, Stored
from aqua_client.tiers import Tiers

# Ids that were acknowledged although nothing was known of them; calls in flight are far fewer.
REMEMBERED_DISOWNED = 1024
BREAKER = "breaker"  # the session's reason while it asks nothing of a daemon that is stuck
# How long the worker waits for what was late before; a revoke that comes meanwhile waits too.
PROBE_SECONDS = 0.25
SMALLER_MAY_DO = frozenset({"no_room", "no_host_room", "quota"})

logger = logging.getLogger("aqua")


class Borrowing:
    """The way to the daemon for everybody who needs memory."""

    def __init__(self, tiers: Tiers, lender: Lender, *, home_gpu: str | None) -> None:
        self._tiers = tiers
        self._home_gpu = home_gpu
        self._lender = lender
        self._answered = threading.Condition(tiers.lock)
        self._asking: set[SafetyClass] = set()
        self._back_off = BackOff()
        self._late: dict[SafetyClass, int] = {}  # bytes asked for, and not answered in time
        self._disowned: OrderedDict[str, None] = OrderedDict()
        self._opening: set[str] = set()  # granted, and being mapped by some thread
        self._put_off: set[str] = set()  # of these: revoked, to be acknowledged once unmapped
        self._is_closed = False

    def put(self, nbytes: int, stored: Stored, *, end: float, avoid_gpu: str = "") -> Place:
        """A place in a slab, for all of *nbytes* or for the first part of them, by *end*.

        Raises:
            Shortage: no slab is held or to be had that has room; its reason says why.
        """
        tiers = self._tiers
        is_asking = False
        try:
            with tiers.lock:
                while True:
                    # A tensor of several slabs fills whole ones first.
                    part = min(nbytes, self._lender.largest_slab_bytes or nbytes)
                    place = tiers.put(part, stored, avoid_gpu=avoid_gpu)
                    if place is not None:
                        return place
                    self._check_worth_asking(stored.safety)
                    if time.monotonic() >= end:
                        raise Shortage("timeout")
                    if stored.safety not in self._asking:
                        is_asking = True
                        self._asking.add(stored.safety)
                        break
                    if not self._answered.wait(end - time.monotonic()):
                        raise Shortage("busy")
                size = self._next_slab_bytes(nbytes, stored.safety)
            return self._borrow(size, nbytes, stored, end=end, avoid_gpu=avoid_gpu)
        finally:
            if is_asking:
                with tiers.lock:
                    self._asking.discard(stored.safety)
                    self._answered.notify_all()

    def borrow_ahead(self, safety: SafetyClass, *, seconds: float) -> bool:
        """Borrow the next slab of a class before it is needed; False: it is not to be had.

        Whoever needs one meanwhile waits for this, as for any other thread that asks.
        """
        with self._tiers.lock:
            if safety in self._asking or self._why_not_ask(safety):
                return False
            size = self._next_slab_bytes(1, safety)
            self._asking.add(safety)
        try:
            slab = self._ask(size, safety, seconds=seconds)
            slab.is_ahead = True
            with self._tiers.lock:
                is_wanted = not self._why_unwanted(slab.lease_id)
                if is_wanted:
                    self._keep(slab)
            if not is_wanted:
                self._drop(slab)
        except (Refused, BrokerUnreachable, UnusableSlab) as error:
            logger.debug("no slab ahead of need: %s", error)
            return False
        else:
            return is_wanted
        finally:
            with self._tiers.lock:
                self._asking.discard(safety)
                self._answered.notify_all()

    def close(self) -> None:
        """Under the lock: what is granted from now on is not mapped, or unmapped again."""
        self._is_closed = True

    @property
    def is_opening(self) -> bool:
        """Whether some slab is being mapped."""
        return bool(self._opening)

    def give_back(self, slabs: Sequence[Slab], *, seconds: float | None = None) -> None:
        """Tell the daemon of slabs that are unmapped. Failing is no harm: it takes them back."""
        acknowledged = [slab.lease_id for slab in slabs if slab.is_revoked]
        released = [slab.lease_id for slab in slabs if not slab.is_revoked]
        with self._tiers.lock:
            for slab in slabs:
                self._tiers.host.uncover(slab.lease_id)
            room = self._tiers.host.statement()
        try:
            if acknowledged:
                self._lender.acknowledge(acknowledged, room, seconds=seconds)
            if released:
                self._lender.release(released, room, seconds=seconds)
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

    def _acknowledge_unknown(self, lease_ids: Sequence[str]) -> None:
        if not lease_ids:
            return
        with self._tiers.lock:
            room = self._tiers.host.statement()
        try:
            self._lender.acknowledge(lease_ids, room)
        except (BrokerUnreachable, Refused) as error:
            logger.info("unknown leases were not acknowledged, they are asked for again: %s", error)

    def probe(self) -> None:
        """Ask a daemon that was taken for stuck something small, so that its answer is noticed.

        Where a slab was late (the daemon works, a keeper does not) ask for that slab again. The
        worker's to call: it would cost a server's thread a deadline each time.
        """
        if self._lender.reason == BREAKER:
            self._probe_daemon()
        if self._late and not self._lender.reason:
            self._probe_keepers()

    def _probe_daemon(self) -> None:
        with self._tiers.lock:
            room = self._tiers.host.statement()
        try:
            self._lender.reserve_host(room)
        except (BrokerUnreachable, Refused) as error:
            logger.debug("the daemon is asked again later: %s", error)

    def _probe_keepers(self) -> None:
        with self._tiers.lock:
            safety, size = next(iter(self._late.items()))
        try:
            slab = self._ask(size, safety, seconds=PROBE_SECONDS)
        except BrokerUnreachable as error:
            logger.debug("a slab is asked for again later: %s", error)
            return
        except (Refused, UnusableSlab) as error:
            self._note_failure(size, safety, error)
            slab = None
        with self._tiers.lock:
            self._late.clear()
            if slab is not None and not self._why_unwanted(slab.lease_id):
                self._keep(slab)  # for whoever offloads next
                return
        if slab is not None:
            self._drop(slab)

    def _check_worth_asking(self, safety: SafetyClass) -> None:
        reason = self._why_not_ask(safety)
        if reason:
            raise Shortage(reason)

    def _why_not_ask(self, safety: SafetyClass) -> str:
        reason = self._lender.reason or self._back_off.reason(safety)
        return "timeout" if self._late and not reason else reason

    def _next_slab_bytes(self, nbytes: int, safety: SafetyClass) -> int:
        """Twice as large for each slab held, and large enough for *nbytes* if slabs can be."""
        held = sum(slab.safety is safety for slab in self._tiers.slabs.values())
        size = smallest = max(1, self._lender.smallest_slab_bytes)
        largest = max(smallest, self._lender.largest_slab_bytes)
        while size < largest and (held > 0 or size < nbytes):
            size, held = size * 2, held - 1
        return min(size, largest)

    def _borrow(
        self, size: int, nbytes: int, stored: Stored, *, end: float, avoid_gpu: str
    ) -> Place:
        """Ask for a slab; for smaller ones while there is no room, until the smallest."""
        smallest = self._lender.smallest_slab_bytes
        while True:
            slab = None
            try:
                seconds = max(0.001, end - time.monotonic())
                slab = self._ask(size, stored.safety, seconds=seconds)
                return self._take_in(slab, nbytes, stored, avoid_gpu)
            except (Refused, BrokerUnreachable, UnusableSlab) as error:
                if error.reason in SMALLER_MAY_DO and size > smallest and time.monotonic() < end:
                    size = max(smallest, size // 2)
                    continue
                self._note_failure(size, stored.safety, error)
                raise Shortage(error.reason) from error
            except BaseException:
                if slab is not None:
                    self._give_up(slab)
                raise

    def _ask(self, size: int, safety: SafetyClass, *, seconds: float) -> Slab:
        """A slab, mapped: then comes `_keep` or `_drop`.

        Raises what `acquire` and `Memory.of_grant` raise.
        """
        grant = self._lender.acquire(size, safety, seconds=seconds)
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

    def _note_opening(self, grant: Grant) -> None:
        """It is being mapped.

        Raises:
            Refused: nobody wants it any more, and the daemon knows that.
        """
        with self._tiers.lock:
            unwanted = self._why_unwanted(grant.lease_id)
            if not unwanted:
                self._opening.add(grant.lease_id)
        if unwanted:
            raise Refused(f"lease {grant.lease_id} came too late: {unwanted}", reason=unwanted)

    def _note_failure(
        self, size: int, safety: SafetyClass, error: Refused | BrokerUnreachable | UnusableSlab
    ) -> None:
        seconds = BACK_OFF_SECONDS
        if isinstance(error, UnusableSlab):
            logger.warning("a granted slab can't be used: %s", error)
            seconds = UNUSABLE_SECONDS
        with self._tiers.lock:
            self._back_off.note(safety, error.reason, seconds=seconds)
            if error.reason == "timeout":
                self._late[safety] = size

    def _take_in(self, slab: Slab, nbytes: int, stored: Stored, avoid_gpu: str) -> Place:
        with self._tiers.lock:
            unwanted = self._why_unwanted(slab.lease_id)
            if not unwanted:
                self._keep(slab)
                if slab.lender_gpu != avoid_gpu:
                    return slab.put(min(nbytes, slab.nbytes), stored, now=time.monotonic())
                raise Shortage("same_gpu")
        self._drop(slab)
        raise Shortage(unwanted)

    def _why_unwanted(self, lease_id: str) -> str:
        """What happened since the slab was asked for; empty: nothing. Under the lock."""
        return "revoked" if lease_id in self._disowned else "closed" if self._is_closed else ""

    def _drop(self, slab: Slab) -> None:
        """Unmap a slab that nobody wants any more; if it was revoked, acknowledge it then."""
        slab.memory.close()
        with self._tiers.lock:
            self._opened(slab.lease_id)
            is_put_off = slab.lease_id in self._put_off
            self._put_off.discard(slab.lease_id)
        if is_put_off:
            self._acknowledge_unknown([slab.lease_id])

    def _opened(self, lease_id: str) -> None:
        self._opening.discard(lease_id)
        self._tiers.changed.notify_all()  # who closes waits for it

    def _keep(self, slab: Slab) -> None:
        self._opened(slab.lease_id)
        self._tiers.add_slab(slab)
        self._tiers.counters.leases_granted += 1

    def _give_up(self, slab: Slab) -> None:
        """After an interrupt: unmap it, unless it is among the slabs by now, and give it back."""
        with self._tiers.lock:
            is_kept = slab.lease_id in self._tiers.slabs
        if not is_kept:
            slab.memory.close()
            self._return_unused(slab.lease_id)

    def _return_unused(self, lease_id: str) -> None:
        with self._tiers.lock:
            self._opened(lease_id)
            self._put_off.discard(lease_id)
            room = self._tiers.host.statement()
        try:
            self._lender.release([lease_id], room)
        except (BrokerUnreachable, Refused) as error:
            logger.info("lease %s is left to lapse: %s", lease_id, error)
