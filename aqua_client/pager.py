"""Keeps tensors' bytes in leased memory or the host's.

Covers finding places, and pins for whoever copies; the copies themselves are the caller's
(`tensors`) or the worker's, what the daemon says is `news`'. No lock is held across a copy or a
call. In a forked child everything raises and no memory is touched: slabs are not mapped there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import NoReturn

from aqua_client import in_flight
from aqua_client.arriving import Arriving
from aqua_client.borrowing import Borrowing
from aqua_client.counters import Counters
from aqua_client.cuda_streams import streams_of_torch
from aqua_client.errors import AquaError, ForkedChild
from aqua_client.lender import LenderMaker
from aqua_client.news import News
from aqua_client.records import SafetyClass
from aqua_client.reserving import Reserving
from aqua_client.settings import ClientSettings
from aqua_client.slabs import Place, Prefetched, Slab, Stored, tier_of
from aqua_client.streams import Event, Streams
from aqua_client.tiers import Tiers, refuse_closed
from aqua_client.worker import POLL_SECONDS, Worker

logger = logging.getLogger("aqua")


class Pager:
    """One a client. Threads may share it."""

    def __init__(
        self, settings: ClientSettings, make_lender: LenderMaker, *, streams: Streams | None = None
    ) -> None:
        """Connect as far as that goes at once, and start the worker's thread."""
        self._settings = settings
        # None: no copy is only enqueued here, and whoever copies has nothing to ask.
        self.streams = streams or streams_of_torch()
        self._counters = Counters()
        self._tiers = Tiers(host_limit_bytes=settings.host_limit_bytes, counters=self._counters)
        self._news = News(self._tiers)
        self._is_forked = False
        self._lender = make_lender(settings, self._news, self._counters)
        self._arriving = Arriving(self._tiers, self._lender, home_gpu=settings.home_gpu)
        self._borrowing = Borrowing(self._tiers, self._lender, self._arriving)
        self._reserving = Reserving(
            self._tiers, self._borrowing, self._news, lender=self._lender, settings=settings
        )
        self._worker = Worker(
            self._tiers,
            self._borrowing,
            self._arriving,
            self.streams,
            lender=self._lender,
            acquire_seconds=settings.acquire_seconds,
        )
        self._worker.start()
        self._lender.start()

    def reserve(self, nbytes: int, safety: SafetyClass) -> Stored:
        """Places for so many bytes, pinned for their writer: then comes `written` or `discard`.

        Raises:
            InsufficientMemory: no tier has room.
            BrokerUnreachable: no leased memory, and `fallback="error"`.
        """
        if self._is_forked:
            _refuse_forked()
        tiers = self._tiers
        stored = Stored(nbytes, safety)
        try:
            with tiers.lock:
                if self._tiers.is_closed:
                    refuse_closed()
                if tiers.garbage:
                    tiers.collect_garbage()
                if not nbytes:
                    return stored
                if self._news.is_in_contact:
                    place = tiers.put(nbytes, stored)
                    if place is not None:
                        stored.reserved.append(place)
                        return stored
            self._reserving.reserve(stored)
        except AquaError:
            with tiers.lock:
                tiers.discard(stored.reserved)
            raise
        except BaseException:
            self.discard(stored)
            raise
        return stored

    def reserve_together(self, sizes: Sequence[int], safety: SafetyClass) -> list[Stored]:
        """`reserve` of each in one step, where one slab has room for all; none: it has not."""
        if self._is_forked:
            _refuse_forked()
        tiers = self._tiers
        several = [Stored(nbytes, safety) for nbytes in sizes]
        try:
            with tiers.lock:
                if self._tiers.is_closed:
                    refuse_closed()
                if tiers.garbage:
                    tiers.collect_garbage()
                if self._news.is_in_contact and tiers.put_together(several):
                    return several
        except BaseException:
            for one in several:
                self.discard(one)
            raise
        return []

    def written_together(
        self, several: Sequence[Stored], events: Sequence[Event | None]
    ) -> list[Stored]:
        """`written` of each."""
        with self._tiers.lock:
            for stored, event in zip(several, events, strict=True):
                self._tiers.written(stored, event)
        return list(several)

    def written(self, stored: Stored, event: Event | None = None) -> Stored:
        """The bytes are all there, or will be by *event*: they may be fetched, and then moved."""
        with self._tiers.lock:
            self._tiers.written(stored, event)
        return stored

    def discard(self, stored: Stored, event: Event | None = None) -> None:
        """It is of no use, whatever became of it; what was enqueued for it ends by *event*."""
        with self._tiers.lock:
            self._tiers.abandon(stored, event)

    def pin(self, stored: Stored) -> Sequence[Place]:
        """Where to read; stays so until `unpin`.

        Raises:
            HandleReleased: it was released, or the client closed.
            LeaseLost: its bytes are gone.
        """
        if self._is_forked:
            _refuse_forked()
        pins: Sequence[Place] = ()
        try:
            with self._tiers.lock:
                if self._tiers.is_closed:
                    refuse_closed()
                pins = self._tiers.pin(stored)
        except BaseException:
            self.unpin(pins, is_read=False)  # an interrupt may come where the lock is let go
            raise
        return pins

    def unpin(
        self,
        places: Sequence[Place],
        *,
        is_read: bool,
        nanoseconds: int = 0,
        event: Event | None = None,
        is_ahead: bool = False,
    ) -> None:
        """The copy is over, or will be by *event*; *is_read*: it worked.

        It took *nanoseconds*; 0: not timed. *is_ahead*: of a fetch that is still to come. The same again has no effect, unless an interrupt
        kept the first from having one.
        """
        counters = self._counters
        with self._tiers.lock:
            try:
                if is_read:
                    counters.fetches += not is_ahead
                    for place in places:
                        if place.slab is not None:
                            counters.peer_in_bytes += place.nbytes
                        else:
                            counters.host_in_bytes += place.nbytes
                    if nanoseconds:
                        counters.fetch_durations[tier_of(places)].count(nanoseconds)
                        if event is None and len(places) == 1 and (slab := places[0].slab):
                            counters.count_link(slab.lender_gpu, places[0].nbytes, nanoseconds)
                self._tiers.unpin(places, event)
            except BaseException:
                self._tiers.unpin(places, event)
                self._tiers.mend()
                raise

    def may_prefetch(self, stored: Stored, *, most_bytes: int) -> bool:
        """Whether it was not prefetched yet, and so much more may be. Raises as `pin`."""
        with self._tiers.lock:
            if self._tiers.is_closed:
                refuse_closed()
            stored.check(may_be_lost=stored.prefetched is not None)
            return stored.nbytes > 0 and self._tiers.fetched_ahead.may_begin(stored, most_bytes)

    def begin_prefetch(self, stored: Stored, prefetched: Prefetched, *, most_bytes: int) -> bool:
        """Note that it is brought back; False: that may not be, by now."""
        with self._tiers.lock:
            is_held = not (self._tiers.is_closed or stored.is_released)
            if not (is_held and self._tiers.fetched_ahead.may_begin(stored, most_bytes)):
                return False
            self._tiers.fetched_ahead.begin(stored, prefetched)
            self._counters.prefetches += 1
            return True

    def take_prefetched(self, stored: Stored) -> Prefetched | None:
        """What was prefetched of it, once. HandleReleased: it was released, or the client closed."""
        self.check_not_forked()
        with self._tiers.lock:
            if self._tiers.is_closed:
                refuse_closed()
            stored.check(may_be_lost=True)
            return self._tiers.fetched_ahead.take(stored)

    def count_fetch(self) -> None:
        """One that took what was prefetched."""
        with self._tiers.lock:
            self._counters.fetches += 1

    def release(self, stored: Stored) -> None:
        """Give its places back. Idempotent."""
        if self._is_forked:
            _refuse_forked()
        with self._tiers.lock:
            if not self._tiers.is_closed:
                try:
                    self._counters.releases += self._tiers.release(stored)
                except BaseException:
                    self._tiers.mend()
                    raise

    def release_later(self, stored: Stored) -> None:
        """For finalizers, which may run anywhere, also inside the lock."""
        self._tiers.garbage.append(stored)

    def check_not_forked(self) -> None:
        """Raise ForkedChild in a child of the process that connected."""
        if self._is_forked:
            _refuse_forked()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._tiers.is_closed

    def stats(self) -> dict[str, object]:
        """How things stand, and every counter, by name."""
        self.check_not_forked()
        with self._tiers.lock:
            self._tiers.collect_garbage()
            slabs = tuple(self._tiers.slabs.values())
            leases = {slab.lender_gpu: {"slabs": 0, "bytes": 0, "used_bytes": 0} for slab in slabs}
            for slab in slabs:
                lease = leases[slab.lender_gpu]
                lease["slabs"] += 1
                lease["bytes"] += slab.nbytes
                lease["used_bytes"] += slab.extents.used_bytes
            return {
                "attached": self._lender.attached,
                "reason": self._lender.reason,
                "tenant": self._lender.tenant,
                "peer_bytes": sum(place.nbytes for slab in slabs for place in slab.places),
                "host_bytes": self._tiers.host.used_bytes,
                "host_reserved_bytes": self._tiers.host.reserved_bytes,
                "evacuation_buffer_bytes": self._tiers.host.kept_bytes,
                "pinned_bytes": self._tiers.host.pinned.pinned_bytes,
                "prefetched_bytes": self._tiers.fetched_ahead.nbytes,
                "leases": leases,
                "copy_ways": {} if self.streams is None else self.streams.told(),
                **self._counters.snapshot(),
            }

    def close(self) -> None:
        """Unmap and give back everything. Handles hold nothing afterwards. Idempotent.

        What other threads copy or map just now gets `close_seconds` to end; slabs that are still
        in use then stay mapped, and borrowed, as long as this process lives.
        """
        with self._tiers.lock:
            if self._tiers.is_closed:
                return
            self._tiers.is_closed = True
            self._arriving.close()
            self._tiers.fetched_ahead.drop_all()
        seconds = self._settings.close_seconds
        self._worker.stop(seconds=seconds)
        with self._tiers.lock:
            for slab in self._tiers.slabs.values():
                self._tiers.fence(slab, "closed")
        self._await_idle(seconds)
        with self._tiers.lock:
            slabs = [slab for slab in self._tiers.slabs.values() if not _is_pinned(slab)]
            self._tiers.host.keep(0)
        self._tiers.host.buffer.unmap_surplus()
        self._tiers.host.pinned.close()
        if self._unmap(slabs):
            self._lender.close(seconds=seconds)  # with goodbye, which says that all is unmapped

    def abandon_in_child(self) -> None:
        """After a fork, in the child: raise from now on. Whoever held a lock is not here."""
        self._is_forked = True

    def _await_idle(self, seconds: float) -> None:
        """Until nobody copies any more, or the time is up."""
        end = time.monotonic() + seconds
        while True:
            in_flight.land(self._tiers)
            left = end - time.monotonic()
            with self._tiers.lock:
                pause = max(0.0, min(left, POLL_SECONDS))
                if self._tiers.changed.wait_for(self._is_idle, pause) or left <= 0:
                    return

    def _is_idle(self) -> bool:
        # Host memory, too: an interpreter that ends while a thread is in torch's copy aborts.
        return not self._arriving.is_opening and not (
            any(place.pins for place in self._tiers.in_host)
            or any(map(_is_pinned, self._tiers.slabs.values()))
        )

    def _unmap(self, slabs: Iterable[Slab]) -> bool:
        """Unmap these; whether none is mapped any more, nor will be."""
        for slab in slabs:
            try:
                slab.memory.close()
            except BufferError as error:
                logger.warning("lease %s stays mapped: %s", slab.lease_id, error)
            else:
                with self._tiers.lock:
                    self._tiers.forget_slab(slab)
        with self._tiers.lock:
            return not (self._tiers.slabs or self._arriving.is_opening)


def _refuse_forked() -> NoReturn:
    raise ForkedChild("this process was forked from the one that connected: connect anew")


def _is_pinned(slab: Slab) -> bool:
    return any(place.pins for place in slab.places)
