"""Hands out byte ranges of one slab: best fit, aligned, merged again with their neighbours.

Pure: it knows numbers, no memory. Not thread-safe: whoever owns the slab holds a lock.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

# Wide enough for every vector load and every dtype, and what torch's own allocator rounds to.
ALIGNMENT_BYTES = 512


class ExtentMap:
    """The free and the taken ranges of `capacity_bytes` bytes.

    Free ranges are kept by place, by end and by size, so that taking and giving back is one
    binary search and a few look-ups, however many there are.
    """

    __slots__ = ("_by_size", "_free", "_free_ends", "_taken", "capacity_bytes", "used_bytes")

    def __init__(self, capacity_bytes: int) -> None:
        """Everything is free. The capacity is a multiple of the alignment."""
        if capacity_bytes <= 0 or capacity_bytes % ALIGNMENT_BYTES:
            raise ValueError(f"{capacity_bytes} is no multiple of {ALIGNMENT_BYTES} bytes")
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._taken: dict[int, int] = {}
        self._free: dict[int, int] = {}
        self._free_ends: dict[int, int] = {}
        self._by_size: list[tuple[int, int]] = []
        self._add_free(0, capacity_bytes)

    @classmethod
    def of_taken(cls, capacity_bytes: int, taken: Iterable[tuple[int, int]]) -> ExtentMap:
        """The map where these ranges, by offset and length, are taken: what a broken one was."""
        made = cls(capacity_bytes)
        made._remove_free(0, capacity_bytes)
        end = 0
        for offset, nbytes in sorted(taken):
            length = -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            if offset > end:
                made._add_free(end, offset - end)
            made._taken[offset] = length
            made.used_bytes += length
            end = offset + length
        if end < capacity_bytes:
            made._add_free(end, capacity_bytes - end)
        return made

    @property
    def largest_free_bytes(self) -> int:
        """The longest range that `take` can give."""
        return self._by_size[-1][0] if self._by_size else 0

    @property
    def free_bytes(self) -> int:
        """All free ranges together."""
        return self.capacity_bytes - self.used_bytes

    def take(self, nbytes: int) -> int:
        """The offset of a range of at least *nbytes* bytes; the smallest hole that has room.

        Raises:
            ValueError: *nbytes* is not positive, or longer than `largest_free_bytes`.
        """
        if not 0 < nbytes <= self.largest_free_bytes:
            raise ValueError(f"{nbytes} bytes: the longest hole has {self.largest_free_bytes}")
        length = -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        hole, offset = self._by_size[bisect_left(self._by_size, (length, 0))]
        self._remove_free(offset, hole)
        if hole > length:
            self._add_free(offset + length, hole - length)
        self._taken[offset] = length
        self.used_bytes += length
        return offset

    def give_back(self, offset: int) -> None:
        """Free the range that `take` put at *offset*.

        Raises:
            KeyError: nothing was taken there, or it has been given back.
        """
        length = self._taken.pop(offset)
        self.used_bytes -= length
        after = self._free.get(offset + length)
        if after is not None:
            self._remove_free(offset + length, after)
            length += after
        before = self._free_ends.get(offset)
        if before is not None:
            self._remove_free(offset - before, before)
            offset -= before
            length += before
        self._add_free(offset, length)

    def _add_free(self, offset: int, length: int) -> None:
        self._free[offset] = length
        self._free_ends[offset + length] = length
        insort(self._by_size, (length, offset))

    def _remove_free(self, offset: int, length: int) -> None:
        del self._free[offset]
        del self._free_ends[offset + length]
        del self._by_size[bisect_left(self._by_size, (length, offset))]
