"""Reads one GPU over and over, in a thread, so that an NVML that hangs holds up nothing else.

Covers when it is read and how old the figures are; what they say is `nvml`'s and `inventory`'s.

What others use is what NVML counts as used less what the keeper has made there itself. Both have to
be of one moment: an allocation between the two would look like bytes that appeared or vanished. So
the keeper marks the time that it changes something, and what was read meanwhile is read again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from aqua_daemon.keeper.inventory import Identity, Reading
from aqua_daemon.keeper.nvml import GpuLost, Nvml, NvmlError

PERIOD_SECONDS = 0.5
_AGAIN_SECONDS = 0.002  # after a change meanwhile; the longest, a scrub, takes about as long
_OPEN_AGAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One reading, and what of it is not the keeper's own."""

    identity: Identity
    reading: Reading
    others_bytes: int  # used by anything but slabs
    revision: int  # of `Held`, when it was read
    read_at: float  # monotonic


class Held:
    """What the keeper has made on the GPU itself. Changed by one thread, read by another."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.revision = 0  # odd while something changes

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Set `nbytes` inside, with whatever changes on the GPU."""
        self.revision += 1
        try:
            yield
        finally:
            self.revision += 1


class NvmlReader:
    """Its thread runs from the start until `close`, or for good if NVML never answers."""

    def __init__(self, uuid: str) -> None:
        self.held = Held()
        self.latest: Figures | None = None
        self.problem = ""  # why the last try to read failed; empty: it did not
        self.is_lost = False  # it was because the GPU is
        self._uuid = uuid
        self._has_tried = threading.Event()
        self._wake = threading.Event()
        self._news = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
        self._thread.start()

    def wait_for_first(self, seconds: float) -> None:
        """Return once it was read or could not be, or after *seconds*."""
        self._has_tried.wait(seconds)

    def wake(self) -> None:
        """Read again now: something has changed."""
        self._wake.set()

    def wait_until_seen(self, revision: int, seconds: float) -> None:
        """Read again now, and return once what `Held` had then is in the figures, or in vain."""
        deadline = time.monotonic() + seconds
        self.wake()
        with self._news:
            self._news.wait_for(
                lambda: self.has_seen(revision), timeout=max(0.0, deadline - time.monotonic())
            )

    def has_seen(self, revision: int) -> bool:
        """Whether the figures were read after `Held` came to *revision*."""
        return self.latest is not None and self.latest.revision >= revision

    def age_seconds(self) -> float:
        """How old the latest figures are; without any, for ever."""
        return float("inf") if self.latest is None else time.monotonic() - self.latest.read_at

    def close(self) -> None:
        """Ask the thread to end, without waiting for a call that hangs. May be called twice."""
        self._is_closed = True
        self._wake.set()
        self._thread.join(PERIOD_SECONDS)

    def _run(self) -> None:
        while not self._is_closed:
            try:
                with Nvml() as nvml:
                    self._read_for_ever(nvml, nvml.identity(self._uuid))
            except NvmlError as error:
                self.problem = str(error)
                self.is_lost = isinstance(error, GpuLost)
                self._has_tried.set()
                self._pause(_OPEN_AGAIN_SECONDS)

    def _read_for_ever(self, nvml: Nvml, identity: Identity) -> None:
        while not self._is_closed:
            self._read(nvml, identity)
            self._has_tried.set()
            self._pause(PERIOD_SECONDS)

    def _read(self, nvml: Nvml, identity: Identity) -> None:
        while not self._is_closed:
            revision, held_bytes = self.held.revision, self.held.nbytes
            reading = nvml.reading(self._uuid)
            if revision % 2 == 0 and self.held.revision == revision:
                self.latest = Figures(
                    identity=identity,
                    reading=reading,
                    others_bytes=max(0, reading.used_bytes - held_bytes),
                    revision=revision,
                    read_at=time.monotonic(),
                )
                self.problem = ""
                self.is_lost = False
                with self._news:
                    self._news.notify_all()
                return
            self._pause(_AGAIN_SECONDS)

    def _pause(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()
