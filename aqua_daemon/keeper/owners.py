"""Watches the processes that registered bytes of their own, and ends their use with them."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

_Ended = Callable[[int], None]


class Owners:
    """One pidfd for each process, whichever connections it has or had."""

    def __init__(self, on_ended: _Ended) -> None:
        """*on_ended* gets the pid of each process that ends."""
        self._loop = asyncio.get_running_loop()
        self._on_ended = on_ended
        self._pidfds: dict[int, int] = {}

    def watch(self, pid: int, pidfd: int) -> None:
        """Take ownership of *pidfd* and tell when the process ends; a repeat changes nothing."""
        known = self._pidfds.get(pid)
        if known is not None and _has_ended(known):
            self._end(pid)  # the pid was given out again before the loop came round to the death
        if pid in self._pidfds:
            os.close(pidfd)
            return
        self._pidfds[pid] = pidfd
        self._loop.add_reader(pidfd, self._end, pid)

    def forget(self, pid: int) -> None:
        """Stop watching. Idempotent."""
        pidfd = self._pidfds.pop(pid, None)
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Stop watching all of them. May be called twice."""
        for pid in list(self._pidfds):
            self.forget(pid)

    def _end(self, pid: int) -> None:
        self.forget(pid)
        self._on_ended(pid)


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
