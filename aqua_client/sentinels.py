"""This process's ends of the sentinels: what tells the node that nobody here can touch a slab.

One comes with each session that is opened, and one from each daemon that had none of it. They are
open until this process stops the session, and never closed by a forked child: while a child lives
that may still map the slabs, they must not end. One whose other end nobody has any more, neither a
daemon nor a keeper, proves nothing to anybody, and goes; else a process would hold one for every
daemon that it has seen.
"""

from __future__ import annotations

import os
import select


class Sentinels:
    """All of one session's. Used by its thread only."""

    def __init__(self) -> None:
        self._open: list[int] = []

    def __len__(self) -> int:
        return len(self._open)

    def add(self, sentinel: int) -> None:
        """Another one, owned here; those that nobody watches are closed."""
        unwatched = [one for one in self._open if _has_ended(one)]
        self._open = [one for one in self._open if one not in unwatched] + [sentinel]
        for one in unwatched:
            os.close(one)

    def close(self) -> None:
        """All of them."""
        for sentinel in self._open:
            os.close(sentinel)
        self._open.clear()


def _has_ended(sentinel: int) -> bool:
    """Whether the other end is closed everywhere."""
    poll = select.poll()
    poll.register(sentinel, 0)  # hanging up is always told
    return any(events & select.POLLHUP for _, events in poll.poll(0))
