"""When a keeper ends: never while a living process may hold a slab, unless told twice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Lifetime:
    """Decides from what it is told; keeps no clock."""

    linger_seconds: float | None  # None: stay until told to end
    _asked: int = 0
    _alone_since: float | None = None

    @property
    def is_ending(self) -> bool:
        """It was told to end, and takes on nothing new."""
        return self._asked > 0

    def ask_to_end(self) -> None:
        """SIGTERM: end when nothing is held; at the second one, end."""
        self._asked += 1

    def is_over(
        self, now: float, *, has_daemon: bool, has_owners: bool, has_living_holders: bool
    ) -> bool:
        """Whether to end now."""
        if self._asked:
            return self._asked > 1 or not has_living_holders
        if self.linger_seconds is None or has_daemon or has_owners or has_living_holders:
            self._alone_since = None
            return False
        if self._alone_since is None:
            self._alone_since = now
        return now - self._alone_since >= self.linger_seconds
