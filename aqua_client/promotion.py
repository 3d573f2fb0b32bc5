"""Brings back to leases what lies in the host for want of room, when there is room again.

Story of a promotion: the pieces that may be moved are looked at, those fetched last come first; a
piece is copied into a slab that has room, readable all the while, and the swap is one step under
the lock; where no slab has room, a thread asks for one, and for as long as that is refused again
after longer and longer. What was moved in the last 10 s stays where it is. It runs in small steps
on the worker's thread, between which revokes are served and fetches go first; a slab that is asked
back meanwhile keeps none of it. Does not cover who gets memory first: that is the daemon's, which
hears of all that is here with each request.
"""

from __future__ import annotations

import logging
import time
from heapq import nlargest
from math import inf

from aqua_client import moving
from aqua_client.borrowing import Borrowing
from aqua_client.borrowing_aside import BorrowingAside
from aqua_client.records import SafetyClass
from aqua_client.slabs import Place
from aqua_client.streams import Streams
from aqua_client.tiers import Tiers

# A fetch that begins meanwhile shares the memory with one step, which takes a millisecond.
STEP_BYTES = 4 * 2**20

# Of the time at most one part in so many: the program's own copies have the rest.
SHARE = 4

# While the program fetches it waits for a pause of this length, but not for ever: a server that
# fetches without end fetches faster from a peer.
QUIET_SECONDS = 0.002
LONGEST_YIELD_SECONDS = 0.1

# How soon it looks again where nothing could be moved: as the worker does.
LOOK_SECONDS = 0.5

# Refused, it asks again after the first, then twice as long each time. The daemon remembers for 10 s
# what a process lacks, so it hears of it twice in that time.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 4.0

# So many pieces are chosen at once: the order is of that moment.
CHOSEN_AT_ONCE = 256

logger = logging.getLogger("aqua")


class Promotion:
    """Used by the worker's thread only."""

    def __init__(
        self,
        tiers: Tiers,
        borrowing: Borrowing,
        streams: Streams | None,
        *,
        acquire_seconds: float,
    ) -> None:
        self._tiers = tiers
        self._borrowing = borrowing
        self._streams = streams
        self._acquire_seconds = acquire_seconds
        self._aside = BorrowingAside(tiers)
        self._chosen: list[Place] = []  # the next one last
        self._due_at = 0.0
        self._yields_until = 0.0
        self._asks_at = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._refused: SafetyClass | None = None  # the other class has its turn next
        self._has_come = False  # a slab, since the last step began

    @property
    def seconds_left(self) -> float:
        """Until the next step is due."""
        return max(0.0, self._due_at - time.monotonic()) if self._tiers.in_host else inf

    def step(self) -> None:
        """Move a little, if that is due. Never raises."""
        began = time.monotonic()
        if not self._tiers.in_host or began < self._due_at:
            return
        if began - self._tiers.fetched_at < QUIET_SECONDS and began < self._yields_until:
            self._due_at = began + QUIET_SECONDS
            return
        self._has_come = False
        try:
            moved_bytes = self._move_some() if self._borrowing.may_write else 0
        except Exception:
            # A GPU that failed: what lies in the host is safe there.
            logger.exception("nothing can be brought back from host memory; it is tried again")
            moved_bytes = 0
        now = time.monotonic()
        self._yields_until = now + LONGEST_YIELD_SECONDS
        pause = (SHARE - 1) * (now - began) if moved_bytes or self._has_come else LOOK_SECONDS
        with self._tiers.lock:  # who asks sets it too
            self._due_at = now + pause

    def _move_some(self) -> int:
        self._choose()
        moved_bytes = 0
        while moved_bytes < STEP_BYTES:
            with self._tiers.lock:
                found = None if self._tiers.has_changed else self._next()
            if found is None:
                break
            moved_bytes += self._move(*found)
        return moved_bytes

    def _choose(self) -> None:
        """Which pieces come next; where these have no room, ask for some."""
        if self._chosen:
            return
        with self._tiers.lock:
            pieces = tuple(self._tiers.in_host)
        now = time.monotonic()
        movable = [one for one in pieces if _may_move(one, now)]
        hottest = nlargest(CHOSEN_AT_ONCE, movable, key=lambda one: one.stored.used_at)
        self._chosen = hottest[::-1]
        if not hottest or now < self._asks_at:
            return
        largest: dict[SafetyClass, int] = {}
        for one in hottest:
            largest[one.stored.safety] = max(one.nbytes, largest.get(one.stored.safety, 0))
        with self._tiers.lock:
            lacking = [one for one in largest if not self._tiers.has_room(largest[one], one)]
            if lacking and not self._aside.is_asking:
                safety = min(lacking, key=lambda one: one is self._refused)
                self._ask(safety, sum(one.nbytes for one in movable if one.stored.safety is safety))

    def _next(self) -> tuple[Place, Place] | None:
        """A piece, pinned, and where it goes. Under the lock."""
        now = time.monotonic()
        while self._chosen:
            place = self._chosen.pop()
            if not _may_move(place, now):
                continue
            target = self._tiers.put(place.nbytes, place.stored)
            if target is not None:
                place.pins += 1
                return place, target
        return None

    def _move(self, place: Place, target: Place) -> int:
        """How much of it is on a peer now."""
        tiers = self._tiers
        try:
            moving.copy_piece(self._streams, place, [target])
        except BaseException:
            with tiers.lock:
                tiers.discard([target])
                tiers.unpin([place])
            raise
        with tiers.lock:
            if target.slab is None or target.slab.is_fenced:  # it would only be moved again
                tiers.discard([target])
                tiers.unpin([place])
                return 0
            tiers.replace(place, [target], "")
            tiers.counters.promoted_bytes += place.nbytes
        return place.nbytes

    def _ask(self, safety: SafetyClass, nbytes: int) -> None:
        def borrow() -> bool:
            return self._borrowing.borrow_for_host(safety, nbytes, seconds=self._acquire_seconds)

        def done(is_there: bool) -> None:  # noqa: FBT001 - the answer
            self._refused = None if is_there else safety
            self._answered(is_there=is_there)

        self._aside.start(borrow, done=done)

    def _answered(self, *, is_there: bool) -> None:
        """Under the lock."""
        if is_there:
            self._has_come = True
            self._pause = FIRST_PAUSE_SECONDS
            self._due_at = 0.0
            self._tiers.wake_worker()
            return
        self._asks_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)


def _may_move(place: Place, now: float) -> bool:
    return not (place.is_writing or place.is_retired) and place.is_settled(now)
