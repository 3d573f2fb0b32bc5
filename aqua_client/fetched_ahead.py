"""What was prefetched and is not fetched yet. All of it runs under `Tiers.lock`."""

from __future__ import annotations

from aqua_client.slabs import Prefetched, Stored


class FetchedAhead:
    """The handles whose bytes were brought back ahead, and how many bytes that is."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._of: set[Stored] = set()

    def may_begin(self, stored: Stored, most_bytes: int) -> bool:
        """Whether it was not prefetched yet, and so much more may be."""
        return stored.prefetched is None and self.nbytes + stored.nbytes <= most_bytes

    def begin(self, stored: Stored, prefetched: Prefetched) -> None:
        """It is being brought back."""
        stored.prefetched = prefetched
        self._of.add(stored)
        self.nbytes += stored.nbytes

    def take(self, stored: Stored) -> Prefetched | None:
        """What was prefetched of it is the caller's, and not the handle's any more."""
        prefetched, stored.prefetched = stored.prefetched, None
        if prefetched is not None:
            self._of.discard(stored)
            self.nbytes -= stored.nbytes
        return prefetched

    def drop_all(self) -> None:
        """What was brought back goes; the next fetches bring it again."""
        for stored in tuple(self._of):
            self.take(stored)
