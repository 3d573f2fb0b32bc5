"""Calls that go out on the presence link: a caller's thread sends, and whoever reads the link hears.

A caller waits for its answer, or leaves it to be heard by whom it names.

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
Hear = Callable[[CallAnswer | None], None]  # None: there will be none


class FramedCalls:
    """The calls out on one link. Threads may share it."""

    def __init__(self, ask: Ask) -> None:
        """*ask* sends a frame within so many seconds, or raises TimeoutError or LinkBroken.

        It may stay there and read what comes until the answer was heard, or those seconds are over.
        """
        self._ask = ask
        self._numbers = itertools.count(1)
        self._out: dict[int, Hear] = {}  # whoever takes one out of it calls it
        self._has_ended = False

    def ask(self, method: str, payload: bytes, *, seconds: float) -> CallAnswer:
        """What the daemon answers.

        Raises:
            TimeoutError: nothing, in *seconds*.
            LinkBroken: the link has ended.
        """
        number, out = next(self._numbers), _Waiting()
        self._out[number] = out.hear
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

    def tell(self, method: str, payload: bytes, hear: Hear, *, seconds: float) -> None:
        """Send, and go on: whoever reads the link calls *hear*, which is to be quick, with what comes.

        Raises:
            TimeoutError: the link had no room in *seconds*.
            LinkBroken: the link has ended.
        """
        if self._has_ended:
            raise LinkBroken("the link has ended", reason="lost")
        number = next(self._numbers)
        self._out[number] = hear
        try:
            self._ask(call_frame(number, method, payload, seconds), seconds, lambda: True)
        except BaseException:
            self._out.pop(number, None)
            raise

    def heard(self, answer: CallAnswer) -> None:
        """Whoever reads hands an answer over; it may come too late for anybody."""
        hear = self._out.pop(answer.number, None)
        if hear is not None:
            hear(answer)

    def end(self) -> None:
        """Nothing more will be heard: calls that are out are given up."""
        self._has_ended = True
        for number in tuple(self._out):
            hear = self._out.pop(number, None)
            if hear is not None:
                hear(None)


def _taken_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True)
class _Waiting:
    """One caller that waits: a bare lock wakes it sooner than an event would."""

    answer: CallAnswer | None = None
    may_go_on: threading.Lock = field(default_factory=_taken_lock)

    def hear(self, answer: CallAnswer | None) -> None:
        """Let it go on."""
        self.answer = answer
        self.may_go_on.release()
