"""Up to how many bytes a copy keeps the interpreter while it moves them.

Who lets go of it for a copy has to get it back. Mostly nobody has taken it, and torch's copies may
use several threads; but while a slab is emptied the library's thread does its books in between, and a
caller of `fetch` would wait for these longer than for its bytes. So more is copied without letting go
meanwhile. That thread then waits for its turn, as beside any that computes in Python: `pace`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# So many bytes `memmove` copies as quickly as torch does, without its preparations.
PLAIN_BYTES = 128 * 2**10

# A twentieth of a millisecond where the pages are there, in which nobody else computes in Python.
BESIDE_MOVES_BYTES = 2**20


class HeldCopies:
    """One a process, as there is one interpreter."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked child: whoever emptied a slab, or held the lock, is not here."""
        self.most_bytes = PLAIN_BYTES
        self._emptying = 0
        self._lock = threading.Lock()

    @contextmanager
    def beside_moves(self) -> Iterator[None]:
        """Some thread of the library's empties a slab."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self._emptying += more
            self.most_bytes = BESIDE_MOVES_BYTES if self._emptying else PLAIN_BYTES


HELD_COPIES = HeldCopies()

os.register_at_fork(after_in_child=HELD_COPIES.forget)
