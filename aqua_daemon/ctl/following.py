"""The node's events, and following them: a cursor, asked again and again, past any restart.

Does not cover how a line looks: that is for the command. Asking is what following costs; there is
no stream that a slow terminal could hold up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aqua_protos import broker_pb2

from aqua_daemon.ctl.link import Link, Unreachable, opened

LOOK_SECONDS = 0.5
Wait = Callable[[float], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a follower is in the story."""

    epoch: str = ""
    cursor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What is new since a place, what a reader must know of it, and the place after it."""

    events: tuple[broker_pb2.EventLine, ...]
    remark: str  # empty: there is nothing to say
    place: Place


def page(place: Place, reply: broker_pb2.GetEventsReply) -> Page:
    """Read a reply to what was asked from *place*."""
    is_first = not place.epoch
    remark = ""
    if not is_first and reply.epoch != place.epoch:
        remark = "another daemon answers now; these are its events from its start"
    elif not is_first and reply.partial:
        remark = "more happened than the daemon remembers; some events are missing here"
    return Page(
        events=tuple(reply.events),
        remark=remark,
        place=Place(epoch=reply.epoch, cursor=reply.cursor),
    )


def last_events(path: Path, *, seconds: float) -> Page:
    """What the daemon remembers; raises as `link.opened` and `Link.call` do."""
    with opened(path, seconds=seconds) as link:
        return _next_page(link, Place())


def followed(path: Path, *, seconds: float, wait: Wait | None = None) -> Iterator[Page]:
    """What the daemon remembers, then what comes, for ever, from every daemon that serves there.

    Raises:
        Unreachable: there is no daemon at the beginning.
        Refused: a daemon will not talk to this caller.
    """
    wait = wait or threading.Event().wait
    place = Place()
    told_absent = False
    while True:
        try:
            with opened(path, seconds=seconds) as link:
                while True:
                    found = _next_page(link, place)
                    place, told_absent = found.place, False
                    yield found
                    wait(LOOK_SECONDS)
        except Unreachable:
            if not place.epoch:
                raise
            if not told_absent:
                told_absent = True
                yield Page(events=(), remark="the daemon is gone; waiting for it", place=place)
            wait(LOOK_SECONDS)


def _next_page(link: Link, place: Place) -> Page:
    request = broker_pb2.GetEventsRequest(epoch=place.epoch, after=place.cursor)
    return page(place, link.call("GetEvents", request, broker_pb2.GetEventsReply))
