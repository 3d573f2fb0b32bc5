"""Hands out byte ranges of one slab: best fit, aligned, merged again with their neighbours.

Pure: it knows numbers, no memory. Not thread-safe: whoever owns the slab holds a lock.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from itertools import accumulate

# Wide enough for every vector load and every dtype, and what torch's own allocator rounds to.
ALIGNMENT_BYTES = 512

# A hole is written as one number, its length before its offset: numbers are compared in half the
# time of pairs.
_OFFSET_BITS = 48
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1


def aligned(nbytes: int) -> int:
    """What so many bytes take of a slab."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class ExtentMap:
    """The free and the taken ranges of `capacity_bytes` bytes.

    Free ranges are kept by place, by end and by size, so that taking and giving back is one
    binary search and a few look-ups, however many there are.
    """

    __slots__ = ("_by_size", "_ends", "_starts", "_taken", "capacity_bytes", "used_bytes")

    def __init__(self, capacity_bytes: int) -> None:
        """Everything is free. The capacity is a multiple of the alignment."""
        if capacity_bytes <= 0 or capacity_bytes % ALIGNMENT_BYTES:
            raise ValueError(f"{capacity_bytes} is no multiple of {ALIGNMENT_BYTES} bytes")
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._taken: dict[int, int] = {}  # lengths by offset
        self._ends: dict[int, int] = {}  # of holes, by where they start
        self._starts: dict[int, int] = {}  # of holes, by where they end
        self._by_size: list[int] = []  # of holes, each written as one number
        self._add_hole(0, capacity_bytes)

    @classmethod
    def of_taken(cls, capacity_bytes: int, taken: Iterable[tuple[int, int]]) -> ExtentMap:
        """The map where these ranges, by offset and length, are taken: what a broken one was."""
        made = cls(capacity_bytes)
        made._ends.clear()
        made._starts.clear()
        made._by_size.clear()
        end = 0
        for offset, nbytes in sorted(taken):
            length = aligned(nbytes)
            if offset > end:
                made._add_hole(end, offset)
            made._taken[offset] = length
            made.used_bytes += length
            end = offset + length
        if end < capacity_bytes:
            made._add_hole(end, capacity_bytes)
        return made

    @property
    def largest_free_bytes(self) -> int:
        """The longest range that `take` can give."""
        return self._by_size[-1] >> _OFFSET_BITS if self._by_size else 0

    @property
    def free_bytes(self) -> int:
        """All free ranges together."""
        return self.capacity_bytes - self.used_bytes

    def take(self, nbytes: int) -> int:
        """The offset of a range of at least *nbytes* bytes; the smallest hole that has room.

        Raises:
            ValueError: *nbytes* is not positive, or longer than `largest_free_bytes`.
        """
        length = aligned(nbytes)
        by_size = self._by_size
        index = bisect_left(by_size, length << _OFFSET_BITS)
        if nbytes <= 0 or index == len(by_size):
            raise ValueError(f"{nbytes} bytes: the longest hole has {self.largest_free_bytes}")
        offset = by_size[index] & _OFFSET_MASK
        start, end = offset + length, self._ends.pop(offset)
        if start < end:  # the rest of it ends where it did
            self._ends[start] = end
            self._starts[end] = start
            rest = (end - start) << _OFFSET_BITS | start
            if index == 0 or by_size[index - 1] < rest:
                by_size[index] = rest
            else:
                del by_size[index]
                insort(by_size, rest)
        else:
            del self._starts[end], by_size[index]
        self._taken[offset] = length
        self.used_bytes += length
        return offset

    def take_together(self, sizes: Sequence[int]) -> list[int]:
        """`take` of each, one behind the other in one hole; each is given back by itself.

        Raises:
            ValueError: no hole has room for all, or one is not positive; nothing is taken.
        """
        if min(sizes, default=0) <= 0:
            raise ValueError(f"sizes must be positive: {list(sizes)}")
        lengths = [aligned(nbytes) for nbytes in sizes]
        ends = list(accumulate(lengths, initial=self.take(sum(lengths))))
        offsets = ends[:-1]
        self._taken.update(zip(offsets, lengths, strict=True))
        return offsets

    def give_back(self, offset: int) -> None:
        """Free the range that `take` put at *offset*.

        Raises:
            KeyError: nothing was taken there, or it has been given back.
        """
        length = self._taken.pop(offset)
        self.used_bytes -= length
        start, end = offset, offset + length
        if end in self._ends:
            behind, end = end, self._ends.pop(end)
            self._forget_size(behind, end)
        if start in self._starts:
            start = self._starts.pop(start)
            self._forget_size(start, offset)
        self._ends[start] = end  # instead of what stood there of the two
        self._starts[end] = start
        insort(self._by_size, (end - start) << _OFFSET_BITS | start)

    def _add_hole(self, start: int, end: int) -> None:
        self._ends[start] = end
        self._starts[end] = start
        insort(self._by_size, (end - start) << _OFFSET_BITS | start)

    def _forget_size(self, start: int, end: int) -> None:
        by_size, hole = self._by_size, (end - start) << _OFFSET_BITS | start
        if by_size[-1] == hole:
            del by_size[-1]  # as mostly: the one that is filled
        else:
            del by_size[bisect_left(by_size, hole)]
