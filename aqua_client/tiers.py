"""The books of both tiers: which slabs are held, what lies where, who is copying.

Everything here is short and runs under `Tiers.lock`; nothing copies, calls the daemon or waits.
A place that is retired is freed when its last pin goes, so whoever copies need not look back.
Does not cover where slabs come from (`borrowing`) and go (`evacuation`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NoReturn

from aqua_client.counters import Counters
from aqua_client.errors import HandleReleased
from aqua_client.extents import aligned
from aqua_client.fetched_ahead import FetchedAhead
from aqua_client.held_slabs import HeldSlabs
from aqua_client.host_tier import HostTier
from aqua_client.quick_turns import Hurry
from aqua_client.records import LeaseUse, SafetyClass
from aqua_client.slabs import Flight, Pins, Place, Slab, Stored
from aqua_client.streams import Event


class Tiers:
    """What this process has stored, and where."""

    def __init__(self, *, host_limit_bytes: int, counters: Counters) -> None:
        self.lock = threading.Lock()
        # For the worker: there is news, or a fenced slab has come closer to being empty.
        self.changed = threading.Condition(self.lock)
        self.has_changed = False
        self.is_closed = False  # nothing is stored any more, nor read
        self.counters = counters
        self.host = HostTier(host_limit_bytes)
        self._held = HeldSlabs()
        self.slabs = self._held.by_lease
        self.in_host: dict[Place, None] = {}  # the pieces that are or come there, the oldest first
        self.fetched_at = 0.0  # when a fetch last began
        # Handles that were garbage collected: finalizers, which may run inside the lock, append here.
        self.garbage: deque[Stored] = deque()
        # Asked back although nothing is known of them; the worker acknowledges them.
        self.unknown_leases: list[str] = []
        self.revokes_heard = 0  # so many times leases were asked back
        self.hurry = Hurry()  # until the worker looks at these
        # The worker looks anyway: to wake it holds up a caller longer than all else in a call.
        self.is_watched = False
        # Copies that were enqueued and may not be over: their pins go when they are.
        self.flights: list[Flight] = []
        self.landing = threading.Lock()  # held by who asks after them; never taken inside `lock`
        self.fetched_ahead = FetchedAhead()

    def wake_worker(self) -> None:
        """Let the worker look."""
        self.has_changed = True
        self.changed.notify_all()

    def put(self, nbytes: int, stored: Stored, *, avoid_gpu: str = "") -> Place | None:
        """A place in a slab that is held; None where none has room."""
        slab = self._held.with_room(nbytes, stored.safety, avoid_gpu)
        if slab is None:
            return None
        place = slab.put(nbytes, stored, now=time.monotonic())
        self._note_fill(slab)
        return place

    def put_together(self, several: Sequence[Stored]) -> bool:
        """A place for each, of one class, in one slab; else nothing has changed."""
        nbytes = sum(aligned(one.nbytes) for one in several)
        slab = self._held.with_room(nbytes, several[0].safety, "") if nbytes else None
        if slab is not None:
            slab.put_together([one for one in several if one.nbytes], now=time.monotonic())
            self._note_fill(slab)
        return slab is not None

    def has_room(self, nbytes: int, safety: SafetyClass) -> bool:
        """Whether `put` would find some."""
        return self._held.with_room(nbytes, safety, "") is not None

    @property
    def free_slab_bytes(self) -> int:
        """What is free in the slabs that are held."""
        return self._held.free_bytes

    def add_slab(self, slab: Slab) -> None:
        """A slab has been borrowed; one that is ahead of need is filled after the others."""
        self._held.add(slab)

    def fence(self, slab: Slab, reason: str) -> None:
        """Put nothing more into a slab: it is to be emptied."""
        slab.is_fenced = True
        self._held.leave(slab)
        slab.fence_reason = reason
        self.wake_worker()

    def unfence(self, slab: Slab) -> None:
        """It is not to be emptied after all."""
        slab.is_fenced = False
        slab.fence_reason = ""

    def forget_slab(self, slab: Slab) -> None:
        """A slab has been unmapped."""
        self._held.forget(slab)

    def written(self, stored: Stored, event: Event | None = None) -> None:
        """The first copy is done: the bytes are stored, unless their slab was lost meanwhile.

        With an *event* it is only enqueued: it may be read after that, and moves when it is done.
        """
        places, counters = stored.reserved, self.counters
        is_lost = bool(stored.lost_reason)
        if not is_lost:
            stored.places = places
        for place in places:
            slab = place.slab
            place.is_retired = is_lost
            if slab is None:
                counters.host_out_bytes += place.nbytes
            else:
                counters.peer_out_bytes += place.nbytes
            if event is None:
                place.is_writing = False  # together with its pin: no call, so no interrupt, between
                place.pins -= 1
                if is_lost or slab is None or slab.is_fenced:
                    self._settle(place)
        if event is not None:
            stored.event = event
            self._watch(Flight(event, places, stored), stored)
        counters.offloads += 1
        stored.reserved = []

    def discard(self, places: Sequence[Place], event: Event | None = None) -> None:
        """Nothing is to be stored there after all; the caller's pins go too.

        With an *event* they go when it is done: something may have been enqueued.
        """
        for place in places:
            place.is_retired = True
        self.unpin(places, event)

    def abandon(self, stored: Stored, event: Event | None = None) -> None:
        """Undo a reservation that an error or an interrupt ended, however far it had come.

        Not all of its places may be known to it, some may be written, and the books half-changed.
        With an *event* what it wrote to is free when that is done.
        """
        stored.is_released = True
        places = {*stored.reserved, *stored.places, *self._places_of(stored)}
        stored.reserved, stored.places = [], []
        for place in places:
            place.is_retired = True
        if not stored.is_in_flight:
            written = [place for place in places if place.is_writing]
            if event is not None:
                self._watch(Flight(event, written, None), stored)
            else:
                for place in written:
                    place.is_writing = False  # together with its pin, as in `written`
                    place.pins -= 1
        for place in places:
            self._settle(place)
        self.mend()

    def mend(self) -> None:
        """Put the books of slabs right after an interrupt in the middle of changing them."""
        for slab in tuple(self.slabs.values()):
            slab.mend(now=time.monotonic())
        self.wake_worker()

    def pin(self, stored: Stored) -> Pins:
        """Where to read from; nothing there changes until `unpin`. Raises as `Stored.check`."""
        if stored.is_released or stored.lost_reason:
            stored.check()
        now = self.fetched_at = stored.used_at = time.monotonic()
        pins = Pins(stored.places)
        pins.held = 0
        try:
            for place in pins:
                place.pins += 1
                pins.held += 1
                slab = place.slab
                if slab is not None:
                    slab.used_at = now
        except BaseException:
            self.unpin(pins)
            raise
        return pins

    def unpin(self, places: Sequence[Place], event: Event | None = None) -> None:
        """The copy is over, also when it failed; with an *event*, when that is done.

        Idempotent for what `pin` gave, also where an interrupt broke it off; what was to be freed
        then is `mend`'s.
        """
        if not isinstance(places, Pins):
            if event is not None:
                self._watch(Flight(event, places, None))
                return
            for place in places:
                self._unpin(place)
            return
        if event is not None and places.held:
            self._watch(Flight(event, places, None), places)
        while places.held:
            places.held -= 1  # together with the pin: no call, so no interrupt, between
            place = places[places.held]
            place.pins -= 1
            slab = place.slab
            if place.is_retired or (slab is not None and slab.is_fenced):
                self._settle(place)

    def land(self, flight: Flight) -> None:
        """An enqueued copy is over."""
        stored = flight.written
        if stored is not None:
            stored.event = None
            for place in flight.places:
                place.is_writing = False
        elif flight.event.nanoseconds and (slab := flight.places[0].slab):
            nbytes, nanoseconds = flight.event.nbytes, flight.event.nanoseconds
            self.counters.count_link(slab.lender_gpu, nbytes, nanoseconds)
        for place in flight.places:
            self._unpin(place)

    def release(self, stored: Stored) -> bool:
        """Free a stored tensor's places; whether it was stored at all. Idempotent."""
        if stored.is_released:
            return False
        stored.is_released = True
        if stored.prefetched is not None:
            self.fetched_ahead.take(stored)
        self._retire_all(stored)
        return True

    def collect_garbage(self) -> None:
        """Release what handles that no longer exist held."""
        while self.garbage:
            self.counters.releases += self.release(self.garbage.popleft())

    def lose(self, stored: Stored, reason: str) -> None:
        """Its bytes are gone: `cache` that had to go, or the slab itself."""
        stored.lost_reason = stored.reason = reason
        self._retire_all(stored)

    def lose_place(self, place: Place, reason: str) -> None:
        """What lies there is gone, and with it its tensor."""
        pieces = place.stored.places
        if pieces and place not in pieces:
            place.is_retired = True  # it was only on its way there: `replace` leaves it where it is
        else:
            self.lose(place.stored, reason)

    def replace(self, old: Place, new: Sequence[Place], reason: str) -> None:
        """A piece has been copied from *old*, which the caller pinned, to *new*.

        Unless some of *new* was lost meanwhile: then it is still at *old*. *reason*: why it is not
        in leased memory, where it is not.
        """
        for place in new:
            place.is_writing = False
        if old.is_retired or any(place.is_retired for place in new):
            for place in new:  # released meanwhile: both places go
                place.is_retired = True
        else:
            self._swap(old, new, reason)
        for place in (*new, old):
            self._unpin(place)

    def _swap(self, old: Place, new: Sequence[Place], reason: str) -> None:
        stored = old.stored
        index = stored.places.index(old)
        stored.places[index : index + 1] = new
        old.is_retired = True
        now = time.monotonic()
        for place in new:
            place.moved_at = now
            if place.slab is None:
                self.in_host[place] = None
        if any(place.slab is None for place in new):
            stored.reason = reason
        elif stored.tier == "peer":
            stored.reason = ""

    def uses(self) -> list[LeaseUse]:
        """What the daemon is told of each lease."""
        return [slab.use(now=time.monotonic()) for slab in self.slabs.values()]

    def _note_fill(self, slab: Slab) -> None:
        if slab.extents.used_bytes > slab.low_bytes:
            slab.low_bytes = slab.nbytes  # once: the worker sees to it that it is as before
            self.wake_worker()

    def _watch(self, flight: Flight, of: Stored | Pins | None = None) -> None:
        if not self.flights and not self.is_watched:
            self.changed.notify_all()  # the worker looks more often from now on
        if isinstance(of, Pins):
            of.held = 0
        elif of is not None:
            of.is_in_flight = True
        self.flights.append(flight)  # no interrupt comes between this and what is above it

    def _places_of(self, stored: Stored) -> list[Place]:
        """Its places in slabs, also those that nobody else knows yet."""
        return [one for slab in self.slabs.values() for one in slab.places if one.stored is stored]

    def _retire_all(self, stored: Stored) -> None:
        places, stored.places = stored.places, []
        for place in places:
            place.is_retired = True
            if place.pins == 0:
                self._free(place)

    def _unpin(self, place: Place) -> None:
        place.pins -= 1
        self._settle(place)

    def _settle(self, place: Place) -> None:
        """After a pin has gone: free it, or let the worker move it, when nobody uses it."""
        if place.pins == 0:
            if place.is_retired:
                self._free(place)
            elif place.slab is not None and place.slab.is_fenced:
                self.wake_worker()

    def _free(self, place: Place) -> None:
        if place.is_gone:
            return
        place.is_gone = True
        if place.slab is None:
            self.host.used_bytes -= place.nbytes  # at once: an interrupt must not come between
            self.in_host.pop(place, None)
            place.memory.close()
            return
        place.slab.remove(place, now=time.monotonic())
        if place.slab.is_fenced and not place.slab.places:
            self.wake_worker()


def refuse_closed() -> NoReturn:
    """Nothing is stored there any more.

    Raises:
        HandleReleased: always.
    """
    raise HandleReleased("the client is closed: nothing is stored in it any more")
