"""Calls that go out on the presence link: a caller's thread sends, and whoever reads the link hears.

Covers finding each answer's caller. Does not cover what an answer means (`calls`) nor what frames
look like (`wire_frames`). One is made for each link and ends with it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aqua_client.link import LinkBroken
from aqua_client.records import CallAnswer
from aqua_client.wire_frames import call_frame

# What is longer goes by gRPC: it might fill the socket's buffer, where a keepalive would wait for it.
MOST_BYTES = 64 * 1024

Ask = Callable[[bytes, float, Callable[[], bool]], None]


class FramedCalls:
    """The calls out on one link. Threads may share it."""

    def __init__(self, ask: Ask) -> None:
        """*ask* sends a frame within so many seconds, or raises TimeoutError or LinkBroken.

        It may stay there and read what comes until the answer was heard, or those seconds are over.
        """
        self._ask = ask
        self._numbers = itertools.count(1)
        self._out: dict[int, _Out] = {}  # whoever takes one out of it lets its caller go on
        self._has_ended = False

    def ask(self, method: str, payload: bytes, *, seconds: float) -> CallAnswer:
        """What the daemon answers.

        Raises:
            TimeoutError: nothing, in *seconds*.
            LinkBroken: the link has ended.
        """
        number, out = next(self._numbers), _Out()
        self._out[number] = out
        try:
            if not self._has_ended:
                deadline = time.monotonic() + seconds
                frame = call_frame(number, method, payload, seconds)
                self._ask(frame, seconds, lambda: number not in self._out)
                if not out.may_go_on.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
        finally:
            self._out.pop(number, None)
        if out.answer is None:
            raise LinkBroken("the link has ended", reason="lost")
        return out.answer

    def heard(self, answer: CallAnswer) -> None:
        """Whoever reads hands an answer over; it may come too late for anybody."""
        out = self._out.pop(answer.number, None)
        if out is not None:
            out.answer = answer
            out.may_go_on.release()

    def end(self) -> None:
        """Nothing more will be heard: calls that are out are given up."""
        self._has_ended = True
        for number in tuple(self._out):
            out = self._out.pop(number, None)
            if out is not None:
                out.may_go_on.release()


def _taken_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True)
class _Out:
    """One call that waits: a bare lock wakes its caller sooner than an event would."""

    answer: CallAnswer | None = None
    may_go_on: threading.Lock = field(default_factory=_taken_lock)
