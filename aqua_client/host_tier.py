"""How much host memory is used, and how much of it the daemon's ledger knows.

With a daemon every byte is reserved there before it is used, in steps, so that an offload seldom
has to ask. What a revoke moves here is covered by its slab's own reservation until the slab is
acknowledged. Without a daemon this process's own limit holds. All of it under the pager's
lock; `cache` data that went to the host counts like `store` data.
"""

from __future__ import annotations

from aqua_client import pinned
from aqua_client.copying import Memory
from aqua_client.records import HostRoom
from aqua_client.touched import TouchedPages

STEP_BYTES = 16 * 2**20

# What goes to the host lies there in pieces of this size, so that each finds room in any slab, and can
# be brought back by itself and in a millisecond. Those that are pinned are as long.
PIECE_BYTES = pinned.PIECE_BYTES


class HostTier:
    """The books of host memory."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.reserved_bytes = 0  # what the daemon was told last
        self.asked_bytes = 0  # of those used: no daemon or limit has agreed to them yet
        # Touched ahead for evacuations, within what is reserved with the slabs: never free.
        self.buffer = TouchedPages()
        self.pinned = pinned.PinnedPages()  # the same on CUDA, and some for offloads
        self.evacuation_bytes = 0  # of what is pinned: not for offloads
        self._covered_bytes: dict[str, int] = {}  # by leases that are not acknowledged yet
        self._revision = 0

    def free_bytes(self, *, has_daemon: bool) -> int:
        """What may still be used without asking the daemon for more; negative: too much is."""
        if has_daemon:
            return self.reserved_bytes - self.used_bytes
        limit = max(self.limit_bytes, self.reserved_bytes)
        return limit - self.used_bytes - self.kept_bytes

    @property
    def kept_bytes(self) -> int:
        """Made ready ahead, and not used."""
        return self.buffer.nbytes + self.pinned.nbytes

    def keep(self, most_bytes: int) -> None:
        """No more than so many bytes are made ready, what is pinned goes last.

        Then comes `buffer.unmap_surplus`, without the lock.
        """
        self.buffer.keep(max(0, most_bytes - self.pinned.nbytes))
        self.pinned.keep(most_bytes)

    def take_kept(self, nbytes: int, *, evacuating: bool) -> Memory | None:
        """So many bytes of what was made ready; offloads leave what evacuations will want."""
        if evacuating or self.pinned.nbytes - nbytes >= self.evacuation_bytes:
            found = self.pinned.take(nbytes)
            if found is not None:
                return Memory.of_pages(found[0], pinned_on=found[1])
        pages = self.buffer.take(nbytes) if evacuating else None
        return None if pages is None else Memory.of_pages(pages)

    def claim(self, nbytes: int) -> None:
        """Use so many bytes more."""
        self.used_bytes += nbytes

    def give_up(self, nbytes: int) -> None:
        """Use so many bytes less."""
        self.used_bytes -= nbytes

    @property
    def is_reserved(self) -> bool:
        """Whether the daemon knows of all that is used."""
        return self._own_bytes <= self.reserved_bytes

    def wish(self, *, rounded: bool) -> HostRoom:
        """What to ask of the daemon so that all that is used is reserved."""
        return self._room(_in_steps(self._own_bytes) if rounded else self._own_bytes)

    def granted(self, room: HostRoom) -> None:
        """The daemon agreed to *room*; a late answer changes nothing."""
        if room.revision == self._revision:
            self.reserved_bytes = room.nbytes

    def statement(self) -> HostRoom:
        """What is held now, for the daemon's books: never more than it agreed to or is used."""
        own = max(0, self._own_bytes - self.asked_bytes)
        self.reserved_bytes = max(own, min(self.reserved_bytes, _in_steps(own)))
        return self._room(self.reserved_bytes)

    def cover(self, lease_id: str, nbytes: int) -> None:
        """So many of the bytes claimed come from this slab, whose reservation still holds."""
        self._covered_bytes[lease_id] = self._covered_bytes.get(lease_id, 0) + nbytes

    def covered_bytes(self, lease_id: str) -> int:
        """What came from this slab so far."""
        return self._covered_bytes.get(lease_id, 0)

    def uncover(self, lease_id: str) -> None:
        """That slab's reservation ends with the next statement."""
        self._covered_bytes.pop(lease_id, None)

    @property
    def _own_bytes(self) -> int:
        return max(0, self.used_bytes - sum(self._covered_bytes.values()))

    def _room(self, nbytes: int) -> HostRoom:
        self._revision += 1
        return HostRoom(revision=self._revision, nbytes=nbytes)


def piece_sizes(nbytes: int) -> list[int]:
    """The sizes of the pieces that so many bytes are kept in."""
    begins = range(0, nbytes, PIECE_BYTES)
    return [min(PIECE_BYTES, nbytes - begin) for begin in begins]


def _in_steps(nbytes: int) -> int:
    return -(-nbytes // STEP_BYTES) * STEP_BYTES
