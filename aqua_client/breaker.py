"""When to stop asking a daemon that does not answer: decided from events and times alone.

While it is open nothing is asked, so a stuck daemon costs one deadline and not one a call. From
time to time one call, the probe, is let through; its answer closes the breaker.
"""

from __future__ import annotations

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 10.0


class Breaker:
    """Closed at first. Whoever shares it holds a lock around each call."""

    def __init__(self) -> None:
        self._pause_seconds = 0.0  # 0: closed
        self._probe_at = 0.0
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        """Whether the daemon is taken for stuck."""
        return self._pause_seconds > 0

    def allows(self, *, now: float) -> bool:
        """Whether a call may go out now; a True while it is open makes that call the probe."""
        if not self.is_open:
            return True
        if self._is_probing or now < self._probe_at:
            return False
        self._is_probing = True
        return True

    def answered(self) -> None:
        """A call was answered, with a yes or a no: the daemon works."""
        self._pause_seconds = 0.0
        self._is_probing = False

    def failed(self, *, now: float) -> None:
        """A call was not answered in time."""
        if self.is_open and not self._is_probing:
            return  # one of several that were out when the first of them failed
        doubled = max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds)
        self._pause_seconds = min(LONGEST_PAUSE_SECONDS, doubled)
        self._probe_at = now + self._pause_seconds
        self._is_probing = False

    def probe_ended(self) -> None:
        """The probe is over, whatever came of it: another may follow at its time."""
        self._is_probing = False
