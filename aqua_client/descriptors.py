"""Slab descriptors on their way: they come by the presence link, their leases by gRPC.

Which of the two comes first is chance. A lease's id is known only from the reply, so while any
acquire is out each descriptor is kept, and when none is out what is left is closed: a descriptor
that nobody takes would keep another tenant's freed memory alive.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aqua_client.errors import BrokerUnreachable


def check_spare(count: int) -> None:
    """See that this process may open so many descriptors more.

    Raises:
        BrokerUnreachable: it may not; its reason is `no_descriptors`.
    """
    spare: list[int] = []
    try:
        while len(spare) < count:
            spare.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        message = f"{count} descriptors can't be had ({error}): raise this process's RLIMIT_NOFILE"
        raise BrokerUnreachable(message, reason="no_descriptors") from error
    finally:
        for one in spare:
            os.close(one)


class ArrivingDescriptors:
    """Where the session's thread puts descriptors and callers take them."""

    def __init__(self) -> None:
        self._arrived: dict[str, int] = {}
        self._acquires_out = 0
        self._links_ended = 0
        self._change = threading.Condition()

    @contextmanager
    def expected(self) -> Iterator[int]:
        """While an acquire is out; gives what `take` needs to know which link it went out on."""
        with self._change:
            self._acquires_out += 1
            link = self._links_ended
        try:
            yield link
        finally:
            with self._change:
                self._acquires_out -= 1
                if not self._acquires_out:
                    self._close_all()

    def put(self, lease_id: str, descriptor: int) -> None:
        """The session's thread hands over *descriptor*."""
        with self._change:
            if not self._acquires_out:
                os.close(descriptor)
                return
            repeated = self._arrived.pop(lease_id, None)
            if repeated is not None:
                os.close(repeated)
            self._arrived[lease_id] = descriptor
            self._change.notify_all()

    def take(self, lease_id: str, *, deadline: float, link: int) -> int | None:
        """The lease's descriptor, which the caller owns.

        None: it has not come in time, or never will, as the link has ended that it was to come by.
        """
        with self._change:
            self._change.wait_for(
                lambda: lease_id in self._arrived or link != self._links_ended,
                max(0.0, deadline - time.monotonic()),
            )
            return self._arrived.pop(lease_id, None)

    def link_ended(self) -> None:
        """What was to come by this link never will."""
        with self._change:
            self._links_ended += 1
            self._change.notify_all()

    def abandon_in_child(self) -> None:
        """Close what is here without the lock, which another thread may hold for ever."""
        self._close_all()

    def _close_all(self) -> None:
        while self._arrived:
            _, descriptor = self._arrived.popitem()
            os.close(descriptor)
