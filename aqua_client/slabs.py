"""What the pager keeps: stored tensors, the places of their bytes, and the slabs these lie in.

Records without a lock of their own: all of it changes only under the pager's lock. What changes
when is `tiers`' to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future

import torch

from aqua_client.copying import Memory
from aqua_client.errors import HandleReleased, LeaseLost
from aqua_client.extents import ExtentMap
from aqua_client.records import Grant, LeaseUse, RevokeNotice, SafetyClass
from aqua_client.streams import Event

# By choice no piece is moved twice within this time, nor to another peer when it has to be: what
# moves so often goes to the host, where nobody asks for it.
SETTLED_SECONDS = 10.0
NEVER = float("-inf")


class Stored:
    """One tensor's bytes, piece by piece, wherever they are now; or room for them."""

    __slots__ = (
        "event",
        "is_in_flight",
        "is_released",
        "lost_reason",
        "nbytes",
        "places",
        "prefetched",
        "reason",
        "reserved",
        "safety",
        "used_at",
    )

    def __init__(self, nbytes: int, safety: SafetyClass) -> None:
        self.nbytes = nbytes
        self.safety = safety
        self.reserved: list[Place] = []  # for its writer, who alone knows them as its places
        self.is_in_flight = False  # the writer's pins go with a flight
        self.places: list[Place] = []  # in the order of the bytes, once they are written
        self.reason = ""  # why some of it is not in leased memory, or not anywhere
        self.lost_reason = ""
        self.is_released = False
        self.event: Event | None = None  # of its writing, until that is over
        self.prefetched: Prefetched | None = None
        self.used_at = 0.0  # when it was last fetched

    @property
    def tier(self) -> str:
        """`peer`, `host` or `mixed`; `lost` when the bytes are gone."""
        if self.lost_reason:
            return "lost"
        return tier_of(self.places)

    def check(self, *, may_be_lost: bool = False) -> None:
        """Whether its bytes are there.

        Raises:
            HandleReleased: it is not stored any more.
            LeaseLost: its bytes are gone.
        """
        if self.is_released:
            raise HandleReleased("the handle was released: its bytes are gone")
        if self.lost_reason and not may_be_lost:
            raise LeaseLost(_loss(self))


class Prefetched:
    """A copy of a tensor, made ahead of its fetch, and when it is there."""

    __slots__ = ("done", "target")

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target
        self.done: Future[Event | None] = Future()  # with the event of what was only enqueued


class Place:
    """Where one piece is: a range of a slab, or a buffer of the host.

    It is in use while a piece lies there (not retired) or somebody copies (pins).
    """

    __slots__ = (
        "is_gone",
        "is_retired",
        "is_writing",
        "memory",
        "moved_at",
        "nbytes",
        "offset",
        "pins",
        "slab",
        "stored",
    )

    def __init__(
        self, memory: Memory, offset: int, nbytes: int, stored: Stored, slab: Slab | None
    ) -> None:
        """Pinned by its writer."""
        self.memory = memory
        self.offset = offset
        self.nbytes = nbytes
        self.stored = stored
        self.slab = slab
        self.moved_at = NEVER  # when the piece was moved here
        self.pins = 1
        self.is_writing = True  # then one of the pins is its writer's
        self.is_retired = False
        self.is_gone = False  # it has been freed

    def is_settled(self, now: float) -> bool:
        """Whether its piece was moved so long ago that it may be again."""
        return now - self.moved_at > SETTLED_SECONDS


def places_in_host(memories: Iterable[Memory], stored: Stored) -> list[Place]:
    """Places in host memory that has been claimed."""
    return [Place(memory, 0, memory.nbytes, stored, None) for memory in memories]


def tier_of(places: Iterable[Place]) -> str:
    """`peer`, `host` or `mixed`."""
    on_peers = {place.slab is not None for place in tuple(places)}
    if len(on_peers) == 2:
        return "mixed"
    return "peer" if True in on_peers else "host"


def _loss(stored: Stored) -> str:
    if stored.safety is SafetyClass.CACHE:
        return f"{stored.nbytes} bytes of `cache` had to go ({stored.lost_reason}): make them anew"
    return f"{stored.nbytes} bytes were in memory that failed ({stored.lost_reason})"


class Flight:
    """A copy that was enqueued: its event, and the pins that go when that is done."""

    __slots__ = ("event", "has_failed", "places", "written")

    def __init__(self, event: Event, places: Sequence[Place], written: Stored | None) -> None:
        self.event = event
        self.places = places
        self.written = written  # None: it was read
        self.has_failed = False  # and this has been logged


class Pins(list[Place]):
    """The places that somebody reads, and how many of them, from the first, are still pinned."""

    __slots__ = ("held",)
    held: int


class Slab:
    """A leased slab, mapped."""

    __slots__ = (
        "deadline",
        "extents",
        "fence_reason",
        "idle_since",
        "is_ahead",
        "is_ended",
        "is_fenced",
        "is_revoked",
        "lease_id",
        "lender_gpu",
        "low_bytes",
        "memory",
        "nbytes",
        "notice",
        "places",
        "safety",
        "used_at",
    )

    def __init__(self, grant: Grant, memory: Memory, *, now: float) -> None:
        self.lease_id = grant.lease_id
        self.lender_gpu = grant.lender_gpu
        self.nbytes = grant.nbytes
        self.safety = grant.safety_class
        self.memory = memory
        self.extents = ExtentMap(grant.nbytes)
        self.places: set[Place] = set()
        self.is_fenced = False  # nothing new may be put there
        self.is_revoked = False  # the daemon waits for an acknowledgement
        self.notice: RevokeNotice | None = None  # by which it does, until it was looked at
        self.deadline = math.inf  # and until when, of the clock that is monotonic
        self.is_ahead = False  # borrowed before it was needed
        self.low_bytes = grant.nbytes * 3 // 4  # with more used than this the worker looks
        self.is_ended = False  # the daemon knows nothing of it: there is nobody to tell
        self.fence_reason = ""
        self.used_at = now
        self.idle_since = now  # meaningful while it holds nothing

    @property
    def copy_bytes(self) -> int:
        """What would have to be moved out of it."""
        return self.extents.used_bytes if self.safety is SafetyClass.STORE else 0

    def put(self, nbytes: int, stored: Stored, *, now: float) -> Place:
        """A place for so many bytes, for which there is room."""
        place = Place(self.memory, self.extents.take(nbytes), nbytes, stored, self)
        self.places.add(place)
        self.used_at = now
        return place

    def put_together(self, several: Sequence[Stored], *, now: float) -> None:
        """A place for each, which is reserved for its writer; there is room for all in one hole."""
        offsets = self.extents.take_together([one.nbytes for one in several])
        for stored, offset in zip(several, offsets, strict=True):
            place = Place(self.memory, offset, stored.nbytes, stored, self)
            self.places.add(place)
            stored.reserved.append(place)
        self.used_at = now

    def remove(self, place: Place, *, now: float) -> None:
        """The place is free again."""
        self.places.remove(place)
        self.extents.give_back(place.offset)
        if not self.places:
            self.idle_since = now

    def use(self, *, now: float) -> LeaseUse:
        """What the daemon is told of it."""
        return LeaseUse(
            lease_id=self.lease_id,
            used_bytes=self.extents.used_bytes,
            copy_bytes=self.copy_bytes,
            idle_seconds=max(0.0, now - self.used_at),
        )

    def mend(self, *, now: float) -> None:
        """Drop what is wanted by nobody, and work out again which ranges are free."""
        for place in tuple(self.places):
            stored = place.stored
            place.is_retired |= bool(stored.is_released or stored.lost_reason)
            place.is_gone |= place.is_retired and not place.pins
            if place.is_gone:
                self.places.discard(place)
        taken = [(place.offset, place.nbytes) for place in self.places]
        self.extents = ExtentMap.of_taken(self.nbytes, taken)
        if not self.places:
            self.idle_since = now

    def movable(self) -> Iterator[Place]:
        """The places whose bytes are all there and still wanted, while none comes or goes."""
        return (one for one in self.places if not (one.is_writing or one.is_retired))
