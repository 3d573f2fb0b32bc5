"""What holds for the whole process as long as any of its threads is within a block."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager


class WhileAny(ABC):
    """One a process; who says what holds is a class of this."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        os.register_at_fork(after_in_child=self._forget)

    @contextmanager
    def within(self) -> Iterator[None]:
        """A thread is, until the end of the block. Several may be, and one more than once."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    @abstractmethod
    def changed(self, *, is_any: bool) -> None:
        """One has come or gone, and *is_any* says whether any is there now. Under the lock."""

    def _count(self, more: int) -> None:
        with self._lock:
            self._inside += more
            self.changed(is_any=self._inside > 0)

    def _forget(self) -> None:
        """In a forked child: whoever was within, or held the lock, is not here."""
        self._lock = threading.Lock()
        self._inside = 0
        self.changed(is_any=False)
