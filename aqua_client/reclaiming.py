"""One reclaim, from the asking to a result that has a name; its progress where somebody watches.

The daemon answers a reclaim once, when it is over. Meanwhile one look at the GPU each 50 ms says
how far it has come: a call that names one GPU and is answered with its sums alone, however many
leases there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from aqua_client.errors import BrokerUnreachable, NotAnOwner, Refused
from aqua_client.records import GpuBytes, ReclaimProgress, ReclaimResult
from aqua_client.session import Session

LOOK_SECONDS = 0.05
LONGEST_LOOK_SECONDS = 0.25  # a daemon that is busy is not waited for: the next look may do better

Watcher = Callable[[ReclaimProgress], object]


def reclaim(
    session: Session, gpu: str, nbytes: int, deadline_seconds: float, watcher: Watcher | None = None
) -> ReclaimResult:
    """Take *nbytes* of *gpu* back; *watcher* is called by this thread, and last when it is over.

    What *watcher* raises leaves here at once, and the reclaim goes on without anybody waiting.

    Raises:
        NotAnOwner: this process has no memory on the GPU.
        ForkedChild: connect anew.
    """
    started_at = time.monotonic()
    try:
        if watcher is None:
            return session.reclaim(gpu, nbytes, deadline_seconds)
        return _watched(session, gpu, nbytes, deadline_seconds, watcher)
    except NotAnOwner:
        raise
    except (BrokerUnreachable, Refused) as error:
        return ReclaimResult(
            asked_bytes=nbytes,
            revoked_bytes=0,
            freed_bytes=0,
            quarantined_bytes=0,
            seconds=time.monotonic() - started_at,
            error=error,
        )


def lent_bytes(session: Session, gpu: str) -> int | None:
    """What borrowers have of *gpu*; None: the daemon does not say."""
    found = _look(session, gpu)
    return None if found is None else found.lent_bytes


def _watched(
    session: Session, gpu: str, nbytes: int, deadline_seconds: float, watcher: Watcher
) -> ReclaimResult:
    progress = _Progress(nbytes, _look(session, gpu))
    answer: Future[ReclaimResult] = Future()

    def ask() -> None:
        try:
            answer.set_result(session.reclaim(gpu, nbytes, deadline_seconds))
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            answer.set_exception(error)

    threading.Thread(target=ask, name="aqua-reclaim", daemon=True).start()
    while True:
        try:
            result = answer.result(timeout=LOOK_SECONDS)
        except TimeoutError:
            now = _look(session, gpu)
            if now is not None:
                watcher(progress.at(now))
        else:
            watcher(progress.over(result))
            return result


def _look(session: Session, gpu: str) -> GpuBytes | None:
    try:
        return session.gpu_bytes(gpu, seconds=LONGEST_LOOK_SECONDS)
    except (BrokerUnreachable, Refused):
        return None  # the reclaim itself will say what is wrong


class _Progress:
    """What was held in the beginning, and how much less of it there is."""

    def __init__(self, asked_bytes: int, beginning: GpuBytes | None) -> None:
        self._asked_bytes = asked_bytes
        self._beginning = self._last = beginning
        self._freed_bytes = 0
        self._started_at = time.monotonic()

    def at(self, now: GpuBytes) -> ReclaimProgress:
        """After one look."""
        self._beginning = self._beginning or now
        self._last = now
        fallen_bytes = self._beginning.held_bytes - now.held_bytes
        self._freed_bytes = max(self._freed_bytes, fallen_bytes)
        return self._told(now)

    def over(self, result: ReclaimResult) -> ReclaimProgress:
        """At the end, by what the daemon says."""
        self._freed_bytes = max(self._freed_bytes, result.freed_bytes)
        last = self._last or GpuBytes(lent_bytes=0, returning_bytes=0, quarantined_bytes=0)
        return self._told(last)

    def _told(self, now: GpuBytes) -> ReclaimProgress:
        return ReclaimProgress(
            asked_bytes=self._asked_bytes,
            freed_bytes=self._freed_bytes,
            lent_bytes=now.lent_bytes,
            returning_bytes=now.returning_bytes,
            quarantined_bytes=now.quarantined_bytes,
            seconds=time.monotonic() - self._started_at,
        )
