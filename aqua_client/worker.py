"""The library's thread `aqua-pager`: serves revokes and losses, and gives back what lies idle.

Story of a revoke: the session's thread fences the slabs and wakes this one; it empties each slab;
what other threads write or read there at that moment keeps the slab in use, and the end of each
such copy wakes this thread again; an empty slab is unmapped, then acknowledged. So a long fetch
delays one slab, never the others. What has to go first goes first, the cheapest of that; and between
two slabs that have to be copied it is seen whether others were asked for meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext

from aqua_client import cuda_streams, in_flight
from aqua_client.arriving import Arriving
from aqua_client.borrowing import Borrowing
from aqua_client.cuda_errors import CudaError
from aqua_client.enlarging import Enlarging
from aqua_client.evacuation import Evacuation
from aqua_client.evacuation_buffer import EvacuationBuffer
from aqua_client.exchanging import Exchanging
from aqua_client.lender import Lender
from aqua_client.looking_ahead import LookingAhead
from aqua_client.promotion import Promotion
from aqua_client.quick_turns import QUICK_TURNS
from aqua_client.slabs import Slab
from aqua_client.streams import Streams
from aqua_client.telling import Telling
from aqua_client.tiers import Tiers

THREAD_NAME = "aqua-pager"

# How long handles that were garbage collected, and idle slabs, may wait for this thread's look.
TICK_SECONDS = 0.5

# While copies are in flight, their events are asked so often; if none is over, less and less.
POLL_SECONDS = 0.001
LONGEST_POLL_SECONDS = 0.05

# After the last of them it goes on so long: in a server that copies all the time nobody wakes it.
WATCH_SECONDS = 1.0

# Of each class one empty slab stays a while for the next burst: the one used last, or borrowed ahead.
# Others beside it go back soon: nobody needs two of them, and somebody else may.
IDLE_SECONDS = 3.0
WARM_SECONDS = 30.0

# Nobody holds a view for so long: from here on it is a fault worth a line in the log.
STUCK_SECONDS = 5.0

logger = logging.getLogger("aqua")


class Worker:
    """One a pager. A daemon thread: it never keeps the interpreter alive."""

    def __init__(
        self,
        tiers: Tiers,
        borrowing: Borrowing,
        arriving: Arriving,
        of_caller: Streams | None,
        *,
        lender: Lender,
        acquire_seconds: float,
    ) -> None:
        self._tiers = tiers
        self._borrowing = borrowing
        self._arriving = arriving
        self._buffer = EvacuationBuffer(tiers, of_caller)
        self._evacuation = Evacuation(tiers, borrowing, of_caller, self._buffer)
        self._exchanging = Exchanging(tiers, lender)
        self._enlarging = Enlarging(tiers)
        self._ahead = LookingAhead(tiers, borrowing, acquire_seconds=acquire_seconds)
        self._promotion = Promotion(tiers, borrowing, of_caller, acquire_seconds=acquire_seconds)
        self._is_settled = False
        self._watches_until = 0.0
        self._stuck_since: dict[str, float] = {}
        self._retry_at: dict[str, float] = {}
        self._complaints: dict[str, str] = {}  # the last that was said of a slab
        self._revokes_heard = 0  # of which the slabs are being served
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)

    def start(self) -> None:
        """Once."""
        self._thread.start()

    def stop(self, *, seconds: float) -> None:
        """Let the thread end, and wait so long for it."""
        with self._tiers.lock:
            self._is_stopping = True
            self._tiers.wake_worker()
        if self._thread is not threading.current_thread():
            self._thread.join(seconds)
        self._end_hurry(for_good=True)

    def _run(self) -> None:
        while True:
            self._wait()
            with self._tiers.lock:
                self._tiers.has_changed = False
                self._revokes_heard = self._tiers.revokes_heard
                if self._is_stopping:
                    return
                self._tiers.collect_garbage()
                unknown, self._tiers.unknown_leases = self._tiers.unknown_leases, []
                self._fence_idle()
                self._ahead.look()
                slabs = tuple(self._tiers.slabs.values())
                fenced = [slab for slab in slabs if slab.is_fenced]
            try:
                self._settle(slabs)
                with QUICK_TURNS.wanted() if fenced else nullcontext():
                    self._end_hurry()
                    self._serve(unknown, fenced)
                self._buffer.tend()
                self._enlarging.look()
            except Exception:
                # Leases would be quarantined one by one if this thread ended.
                logger.exception("the pager's thread failed; it goes on")

    def _end_hurry(self, *, for_good: bool = False) -> None:
        with self._tiers.lock:
            self._tiers.hurry.end(for_good=for_good)

    def _wait(self) -> None:
        """Until there is something to do, or it is time to look.

        Meanwhile copies are watched, and what lies in the host is brought back step by step.
        """
        tiers = self._tiers
        end = time.monotonic() + TICK_SECONDS
        poll = POLL_SECONDS
        while (left := end - (now := time.monotonic())) > 0:
            has_landed = in_flight.land(tiers)
            self._promotion.step()
            left = min(left, self._promotion.seconds_left)
            with tiers.lock:
                if tiers.flights or has_landed:
                    self._watches_until = now + WATCH_SECONDS
                tiers.is_watched = now < self._watches_until
                if not tiers.is_watched:
                    tiers.changed.wait_for(lambda: tiers.has_changed or tiers.flights, left)
                    poll = POLL_SECONDS
                else:
                    poll = POLL_SECONDS if has_landed else min(2 * poll, LONGEST_POLL_SECONDS)
                    tiers.changed.wait_for(lambda: tiers.has_changed, min(poll, left))
                if tiers.has_changed:
                    return

    def _settle(self, slabs: Sequence[Slab]) -> None:
        """With the first CUDA slab: this thread works on its device from now on."""
        ordinals = [slab.memory.opened_on for slab in slabs if slab.memory.opened_on is not None]
        if self._is_settled or not ordinals:
            return
        self._is_settled = True
        try:
            cuda_streams.settle_thread(ordinals[0])
        except (CudaError, RuntimeError) as error:  # each call makes the device its own anyway
            logger.warning("the pager's thread has no CUDA device: %s", error)

    def _serve(self, unknown: Sequence[str], fenced: Sequence[Slab]) -> None:
        if unknown:
            self._arriving.disown(unknown)
        self._borrowing.probe()
        # What needs no copy first, also where it may go instead of what does.
        self._empty([slab for slab in fenced if not slab.copy_bytes])
        costly = [slab for slab in fenced if slab.copy_bytes]
        if costly:
            self._empty(self._exchanging.instead_of(costly))
            self._empty([slab for slab in costly if slab.is_fenced])

    def _empty(self, fenced: Sequence[Slab]) -> None:
        telling, has_copied = Telling(), False
        for slab in sorted(fenced, key=lambda slab: (slab.deadline, slab.copy_bytes)):
            if time.monotonic() < self._retry_at.get(slab.lease_id, 0.0):
                continue
            if has_copied and self._tiers.revokes_heard != self._revokes_heard:
                break  # they may have less time: all are looked at again
            has_copied |= slab.copy_bytes > 0
            self._tell(telling.due(now=time.monotonic()))
            try:
                self._evacuation.empty(slab)
                if not slab.places and self._close(slab):
                    telling.add(slab, now=time.monotonic())
            except MemoryError as error:
                self._retry_later(slab)
                self._complain(slab, f"can't be emptied yet: {error}")
            except Exception as error:  # noqa: BLE001 - whatever it is: the thread goes on
                # A GPU that failed must not keep what lies on the others.
                self._retry_later(slab)
                self._complain(slab, f"can't be emptied; it is tried again: {error}", error)
        self._tell(telling.rest())

    def _tell(self, unmapped: Sequence[Slab]) -> None:
        if unmapped:
            self._arriving.give_back(unmapped)

    def _retry_later(self, slab: Slab) -> None:
        # Giving up its pins has woken this thread, which would try again at once, for ever.
        self._retry_at[slab.lease_id] = time.monotonic() + TICK_SECONDS

    def _complain(self, slab: Slab, words: str, error: Exception | None = None) -> None:
        """Log it, but not each time: what a dead context refuses it refuses until the end."""
        if self._complaints.get(slab.lease_id) != words:
            self._complaints[slab.lease_id] = words
            logger.error("lease %s %s", slab.lease_id, words, exc_info=error)

    def _fence_idle(self) -> None:
        """Empty slabs that nobody has used lately are to be given back. Under the lock."""
        now = time.monotonic()
        empty = [one for one in self._tiers.slabs.values() if not (one.places or one.is_fenced)]
        warm = {slab.safety: slab for slab in sorted(empty, key=lambda slab: slab.idle_since)}
        for slab in empty:
            is_warm = slab is warm[slab.safety]
            if now - slab.idle_since > (WARM_SECONDS if is_warm else IDLE_SECONDS):
                self._ahead.returned(slab)
                self._tiers.fence(slab, "idle")

    def _close(self, slab: Slab) -> bool:
        """Unmap an empty slab; whether it could be, and the daemon is to be told."""
        try:
            slab.memory.close()
        except BufferError as error:
            # For an instant this can be: an exception's traceback still shows a view.
            since = self._stuck_since.setdefault(slab.lease_id, time.monotonic())
            if time.monotonic() - since > STUCK_SECONDS:
                self._complain(slab, f"can't be given back: {error}")
            return False
        for kept in (self._stuck_since, self._retry_at, self._complaints):
            kept.pop(slab.lease_id, None)
        with self._tiers.lock:
            # A revoke that arrives from here on finds the id unknown, and the slab unmapped.
            self._tiers.forget_slab(slab)
            self._tiers.counters.revokes_served += slab.is_revoked
            if slab.is_ended:
                self._tiers.host.uncover(slab.lease_id)
        return not slab.is_ended
