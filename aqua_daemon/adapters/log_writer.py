"""Writes text on a thread of its own, so that a slow disk or a full pipe holds nobody up.

Covers what waits, how much of it at most, and who may wait for it, for how long. What is logged and
when it is handed over is log_handler's.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable

MOST_WAITING_CHARACTERS = 4 * 2**20  # seconds of a busy node's story


class LogWriter:
    """Hands texts to a function that may take its time, in order."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """*write* is called on the thread alone; what it fails to write is lost."""
        self._write = write
        self._changed = threading.Condition()
        self._texts: deque[str] = deque()  # the first is being written
        self._characters = 0
        self._is_stuck = False  # somebody waited in vain, and nothing was written since
        self._thread: threading.Thread | None = None

    def put(self, text: str) -> bool:
        """Have it written; False: too much waits already, or nothing can be; it never will be."""
        with self._changed:
            if self._texts and self._characters + len(text) > MOST_WAITING_CHARACTERS:
                return False
            if not self._is_started():
                return False
            self._texts.append(text)
            self._characters += len(text)
            self._changed.notify_all()
        return True

    def wait(self, seconds: float) -> None:
        """Until all is written, or so long; no time at all where the last wait was in vain."""
        with self._changed:
            if not self._is_stuck and not self._changed.wait_for(self._is_done, seconds):
                self._is_stuck = True

    def _is_started(self) -> bool:
        if self._thread is None:
            # A daemon thread: one that is stuck for good keeps no process from ending.
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there is no room for one now
                return False
            self._thread = thread
        return True

    def _is_done(self) -> bool:
        return not self._texts

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._texts)
                text = self._texts[0]
            with contextlib.suppress(OSError, ValueError):  # nobody reads, or the disk is full
                self._write(text)
            with self._changed:
                self._texts.popleft()
                self._characters -= len(text)
                self._is_stuck = False
                self._changed.notify_all()


def to_descriptor(descriptor: int) -> Callable[[str], None]:
    """What writes to a descriptor, past Python's streams: one that is stuck would keep theirs locked."""

    def write(text: str) -> None:
        left = memoryview(text.encode(errors="backslashreplace"))
        while left:
            left = left[os.write(descriptor, left) :]

    return write
