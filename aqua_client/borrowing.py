"""Decides when the daemon is asked for a slab, and for how large a one. Never under the lock.

Story of a need: nothing held has room; one thread at a time asks for a class (others wait, then
look again); what is refused is asked for again with smaller slabs, then not for a moment. Each
request says all that would go to peers if it could, what lies in the host among it, so that the
daemon knows what this process lacks. How a grant becomes a slab is `arriving`'s.
"""

from __future__ import annotations

import logging
import threading
import time

from aqua_client.arriving import Arriving
from aqua_client.copying import UnusableSlab
from aqua_client.errors import BrokerUnreachable, Refused
from aqua_client.fallback import BACK_OFF_SECONDS, UNUSABLE_SECONDS, BackOff, Shortage
from aqua_client.lender import Lender
from aqua_client.records import SafetyClass
from aqua_client.slabs import Place, Slab, Stored
from aqua_client.tiers import Tiers

BREAKER = "breaker"  # the session's reason while it asks nothing of a daemon that is stuck
# How long the worker waits for what was late before; a revoke that comes meanwhile waits too.
PROBE_SECONDS = 0.25
SMALLER_MAY_DO = frozenset({"no_room", "no_host_room", "quota"})

logger = logging.getLogger("aqua")


class Borrowing:
    """The way to the daemon for everybody who needs memory."""

    def __init__(self, tiers: Tiers, lender: Lender, arriving: Arriving) -> None:
        self._tiers = tiers
        self._lender = lender
        self._arriving = arriving
        self._answered = threading.Condition(tiers.lock)
        self._asking: set[SafetyClass] = set()
        self._back_off = BackOff()
        self._late: dict[SafetyClass, int] = {}  # bytes asked for, and not answered in time

    @property
    def may_write(self) -> bool:
        """Whether what is put into a slab now is put into a lease that has not lapsed."""
        return self._lender.attached

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
            if (
                is_asking
            ):  # as it stands: no interrupt may come between, nor before a call's first step
                with tiers.lock:
                    self._asking.discard(stored.safety)
                    self._answered.notify_all()

    def borrow_ahead(self, safety: SafetyClass, *, seconds: float) -> bool:
        """Borrow the next slab of a class before it is needed; False: it is not to be had.

        Whoever needs one meanwhile waits for this, as for any other thread that asks.
        """
        size = self._begin_asking(safety, 1)
        if not size:
            return False
        try:
            slab = self._ask(size, safety, 0, seconds=seconds)
            slab.is_ahead = True
            return self._arriving.keep_if_wanted(slab)
        except (Refused, BrokerUnreachable, UnusableSlab) as error:
            logger.debug("no slab ahead of need: %s", error)
            return False
        finally:
            self._end_asking(safety)

    def borrow_for_host(self, safety: SafetyClass, nbytes: int, *, seconds: float) -> bool:
        """Borrow a slab for *nbytes* that lie in the host, or for some of them.

        Whoever needs one meanwhile waits, as in `borrow_ahead`. A refusal is remembered by nobody:
        who offloads asks all the same.
        """
        size = self._begin_asking(safety, nbytes)
        if not size:
            return False
        end = time.monotonic() + seconds
        smallest = max(1, self._lender.smallest_slab_bytes)
        try:
            while True:
                try:
                    left = max(0.001, end - time.monotonic())
                    return self._arriving.keep_if_wanted(self._ask(size, safety, 0, seconds=left))
                except (Refused, BrokerUnreachable, UnusableSlab) as error:
                    logger.debug("no slab of %d bytes for what is in the host: %s", size, error)
                    if not self._may_be_smaller(error, size, smallest, end):
                        return False
                    size = _smaller(size, smallest, error)
        finally:
            self._end_asking(safety)

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
            slab = self._ask(size, safety, 0, seconds=PROBE_SECONDS)
        except BrokerUnreachable as error:
            logger.debug("a slab is asked for again later: %s", error)
            return
        except (Refused, UnusableSlab) as error:
            self._note_failure(size, safety, error)
            slab = None
        with self._tiers.lock:
            self._late.clear()
        if slab is not None:
            self._arriving.keep_if_wanted(slab)  # for whoever offloads next

    def _begin_asking(self, safety: SafetyClass, nbytes: int) -> int:
        """The size to ask for so that *nbytes*, if slabs can hold them, fit; 0: not worth it now."""
        with self._tiers.lock:
            if safety in self._asking or self._why_not_ask(safety):
                return 0
            self._asking.add(safety)
            return self._next_slab_bytes(nbytes, safety)

    def _end_asking(self, safety: SafetyClass) -> None:
        with self._tiers.lock:
            self._asking.discard(safety)
            self._answered.notify_all()

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
                slab = self._ask(size, stored.safety, nbytes, seconds=seconds)
                return self._take_in(slab, nbytes, stored, avoid_gpu)
            except (Refused, BrokerUnreachable, UnusableSlab) as error:
                if self._may_be_smaller(error, size, smallest, end):
                    size = _smaller(size, smallest, error)
                    continue
                self._note_failure(size, stored.safety, error)
                raise Shortage(error.reason) from error
            except BaseException:
                if slab is not None:
                    self._arriving.give_up(slab)
                raise

    def _may_be_smaller(
        self,
        error: Refused | BrokerUnreachable | UnusableSlab,
        size: int,
        smallest: int,
        end: float,
    ) -> bool:
        room = _room(error)
        may_do = error.reason in SMALLER_MAY_DO and (room is None or room >= smallest)
        return may_do and size > smallest and time.monotonic() < end

    def _ask(self, size: int, safety: SafetyClass, nbytes: int, *, seconds: float) -> Slab:
        """Ask for a slab; for *nbytes* that are nowhere yet, beside what lies in the host."""
        wanted_bytes = max(size, nbytes + self._tiers.host.used_bytes)
        return self._arriving.ask(size, safety, wanted_bytes=wanted_bytes, seconds=seconds)

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
            unwanted = self._arriving.why_unwanted(slab.lease_id)
            if not unwanted:
                self._arriving.keep(slab)
                if slab.lender_gpu != avoid_gpu:
                    return slab.put(min(nbytes, slab.nbytes), stored, now=time.monotonic())
                raise Shortage("same_gpu")
        self._arriving.drop(slab)
        raise Shortage(unwanted)


def _room(error: Refused | BrokerUnreachable | UnusableSlab) -> int | None:
    """The largest slab that the daemon says may be had; None: it does not say."""
    return error.largest_bytes if isinstance(error, Refused) else None


def _smaller(size: int, smallest: int, error: Refused | BrokerUnreachable | UnusableSlab) -> int:
    """What to ask for next: half of *size*, or what there is room for where that is less."""
    size, room = size // 2, _room(error)
    while room is not None and size > max(smallest, room):
        size //= 2
    return max(smallest, size)
