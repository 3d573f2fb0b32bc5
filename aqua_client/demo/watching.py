"""Looks at the node and at the client twice a second, and tells what has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from aqua_client.demo.happenings import GpuBytes, NodeSeen, RevokesServed, Teller

PERIOD_SECONDS = 0.4

Stats = Callable[[], Mapping[str, object]]
Gauges = Callable[[], tuple[GpuBytes, ...]]  # may raise OSError


class Watch:
    """A thread that looks while the run goes on. `look` may be called at any time beside it."""

    def __init__(self, *, gauges: Gauges, stats: Stats, tell: Teller) -> None:
        self._gauges = gauges
        self._stats = stats
        self._tell = tell
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._revokes = 0
        self._evacuated = 0
        self.gpus: tuple[GpuBytes, ...] = ()
        self.lenders: dict[str, int] = {}  # by GPU, the most that was seen lent

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> tuple[GpuBytes, ...]:
        """Look once, now; the GPUs as they were last seen where the daemon does not answer."""
        with self._lock:
            try:
                self.gpus = self._gauges()
            except OSError:
                pass  # the daemon is busy or away: the next look tells
            else:
                self._tell(NodeSeen(gpus=self.gpus))
            for gpu in self.gpus:
                if gpu.lent:
                    self.lenders[gpu.gpu] = max(gpu.lent, self.lenders.get(gpu.gpu, 0))
            self._tell_revokes()
            return self.gpus

    def wait_lendable(self, gpu: str, *, seconds: float) -> bool:
        """Look until something of a GPU may be lent; False: not within *seconds*."""
        end = time.monotonic() + seconds
        while not any(one.gpu == gpu and one.lendable for one in self.look()):
            if time.monotonic() > end or self._ended.wait(PERIOD_SECONDS / 4):
                return False
        return True

    def _tell_revokes(self) -> None:
        stats = self._stats()
        revokes, evacuated = count(stats, "revokes_served"), count(stats, "evacuated_bytes")
        if revokes > self._revokes or evacuated > self._evacuated:
            self._tell(
                RevokesServed(
                    revokes=revokes - self._revokes, evacuated_bytes=evacuated - self._evacuated
                )
            )
            self._revokes, self._evacuated = revokes, evacuated

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_SECONDS):
            self.look()


def count(stats: Mapping[str, object], name: str) -> int:
    """One of the client's counts; 0 where it has none of that name."""
    value = stats.get(name, 0)
    return value if isinstance(value, int) else 0
