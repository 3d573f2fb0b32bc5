"""Watches copies that were enqueued, and lets go of what they held when they are over.

The events are asked outside the lock: an answer can take as long as another thread's business with
the driver. Whoever finds no room may look too; otherwise it is the worker who does. A copy whose
device has failed is never over: what it holds is neither freed nor acknowledged.
"""

from __future__ import annotations

import logging

from aqua_client.slabs import Flight
from aqua_client.tiers import Tiers

# Copies of one stream end in order: where so many are not over, few of the others will be. Those
# asked come last next time, so that a stream which is stuck keeps nobody else's.
UNDONE_A_LOOK = 32

# Asking takes microseconds, unless the driver hangs: then nobody else hangs with whoever asked.
PATIENCE_SECONDS = 0.1

logger = logging.getLogger("aqua")


def land(tiers: Tiers) -> bool:
    """Let go of what is over; whether that was anything."""
    if not tiers.flights and not tiers.landing.locked():
        return False
    # One at a time: the next finds what the one before has let go.
    if not tiers.landing.acquire(timeout=PATIENCE_SECONDS):
        return False
    try:
        return _land(tiers)
    finally:
        tiers.landing.release()


def _land(tiers: Tiers) -> bool:
    with tiers.lock:
        waiting, tiers.flights = tiers.flights, []
    done: list[Flight] = []
    undone: list[Flight] = []
    try:
        for flight in waiting:
            if len(undone) == UNDONE_A_LOOK:
                break
            (done if _is_over(flight) else undone).append(flight)
    finally:
        with tiers.lock:
            unasked = waiting[len(done) + len(undone) :]
            tiers.flights = [*unasked, *tiers.flights, *undone]
            for flight in done:
                tiers.land(flight)
            if tiers.flights:
                tiers.changed.notify_all()  # the worker may have looked while they were not there
    return bool(done)


def _is_over(flight: Flight) -> bool:
    try:
        return flight.event.is_done()
    except RuntimeError as error:  # of the device's, and of every later call there
        if not flight.has_failed:
            logger.error("a copy's end can't be known: %s", error)  # noqa: TRY400 - the traceback says nothing
        flight.has_failed = True
        return False
