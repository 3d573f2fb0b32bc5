"""While leases are taken back, threads that want the interpreter have their turn sooner.

One that computes in Python keeps it for `sys.getswitchinterval()`, 5 ms, where another waits. If it lets
go of it for an instant now and then, as an event loop does that polls, it keeps it for seconds: who
waits is woken each time, finds it taken again, and its 5 ms begin anew (`take_gil` in CPython's
`ceval_gil.h` asks for it only after an interval without being woken). So while a deadline runs, and
only then, the interval is shorter than what mostly lies between two such instants. Where nobody else
wants the interpreter it changes nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

QUICK_SECONDS = 50e-6


class QuickTurns:
    """One a process, as there is one interpreter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._programs_own: float | None = None

    def forget(self) -> None:
        """In a forked child: whoever wanted them, or held the lock, is not here."""
        self._give_back()
        self._lock = threading.Lock()
        self._wanted = 0

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Some thread of the library's has a deadline to keep."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self._wanted += more
            if not self._wanted:
                self._give_back()
            elif self._programs_own is None and sys.getswitchinterval() > 2 * QUICK_SECONDS:
                self._programs_own = sys.getswitchinterval()
                sys.setswitchinterval(QUICK_SECONDS)

    def _give_back(self) -> None:
        # Another than ours: the program has set one meanwhile, and keeps it.
        is_ours = sys.getswitchinterval() < 2 * QUICK_SECONDS
        if self._programs_own is not None and is_ours:
            sys.setswitchinterval(self._programs_own)
        self._programs_own = None


QUICK_TURNS = QuickTurns()

os.register_at_fork(after_in_child=QUICK_TURNS.forget)
