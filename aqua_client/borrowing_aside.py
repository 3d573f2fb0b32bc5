"""Borrows in a thread of its own, so that neither an offload nor a revoke waits for a slab.

One at a time. Does not cover what is asked for, nor when.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from aqua_client.tiers import Tiers

THREAD_NAME = "aqua-ahead"


class BorrowingAside:
    """Under the lock, but for what its thread does."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self.is_asking = False

    def start(self, borrow: Callable[[], bool], *, done: Callable[[bool], None]) -> None:
        """Let a thread *borrow*; *done* is told, under the lock, whether a slab came."""
        # A daemon thread: the pager's own must not wait for a slab while a revoke comes.
        arguments = (borrow, done)
        thread = threading.Thread(target=self._ask, args=arguments, name=THREAD_NAME, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the process may have no more threads
            done(False)  # noqa: FBT003 - the answer that a thread would have brought
        else:
            self.is_asking = True  # it waits for the lock before it says that it has done

    def _ask(self, borrow: Callable[[], bool], done: Callable[[bool], None]) -> None:
        is_there = False
        try:
            is_there = borrow()
        finally:
            with self._tiers.lock:
                self.is_asking = False
                done(is_there)
