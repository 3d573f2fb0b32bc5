"""Any history of taking and giving back leaves a slab's ranges apart, aligned and complete."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from aqua_client.extents import ALIGNMENT_BYTES, ExtentMap

CAPACITY = 64 * ALIGNMENT_BYTES


class ExtentHistories(RuleBasedStateMachine):
    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.extents = ExtentMap(CAPACITY)
        self.model = [False] * (CAPACITY // ALIGNMENT_BYTES)  # whether each block is taken
        self.lengths: dict[int, int] = {}

    def holes(self) -> list[int]:
        """The lengths of the free runs, in blocks."""
        runs, run = [], 0
        for is_taken in [*self.model, True]:
            if is_taken and run:
                runs.append(run)
            run = 0 if is_taken else run + 1
        return runs

    @rule(target=taken, nbytes=st.integers(1, CAPACITY // 3))
    def take(self, nbytes: int) -> int:
        blocks = -(-nbytes // ALIGNMENT_BYTES)
        fitting = [hole for hole in self.holes() if hole >= blocks]
        if not fitting:
            with pytest.raises(ValueError, match="longest hole"):
                self.extents.take(nbytes)
            return -1
        offset = self.extents.take(nbytes)
        assert offset % ALIGNMENT_BYTES == 0
        first = offset // ALIGNMENT_BYTES
        assert not any(self.model[first : first + blocks])
        assert self.run_at(first) == min(fitting)  # the smallest hole that has room
        self.model[first : first + blocks] = [True] * blocks
        self.lengths[offset] = blocks
        return offset

    @rule(target=taken, sizes=st.lists(st.integers(1, CAPACITY // 6), min_size=1, max_size=4))
    def take_together(self, sizes: list[int]) -> MultipleResults[int]:
        lengths = [-(-nbytes // ALIGNMENT_BYTES) for nbytes in sizes]
        if max(self.holes(), default=0) < sum(lengths):
            with pytest.raises(ValueError, match="longest hole"):
                self.extents.take_together(sizes)
            return multiple()
        offsets = self.extents.take_together(sizes)
        at = offsets[0] // ALIGNMENT_BYTES
        for offset, blocks in zip(offsets, lengths, strict=True):
            assert offset == at * ALIGNMENT_BYTES  # one behind the other
            assert not any(self.model[at : at + blocks])
            self.model[at : at + blocks] = [True] * blocks
            self.lengths[offset] = blocks
            at += blocks
        return multiple(*offsets)

    @rule(offset=consumes(taken))
    def give_back(self, offset: int) -> None:
        if offset < 0:
            return
        self.extents.give_back(offset)
        first, blocks = offset // ALIGNMENT_BYTES, self.lengths.pop(offset)
        self.model[first : first + blocks] = [False] * blocks
        with pytest.raises(KeyError):
            self.extents.give_back(offset)

    @invariant()
    def totals_match(self) -> None:
        assert self.extents.used_bytes == sum(self.model) * ALIGNMENT_BYTES
        assert self.extents.free_bytes == CAPACITY - self.extents.used_bytes
        assert self.extents.largest_free_bytes == max(self.holes(), default=0) * ALIGNMENT_BYTES

    def run_at(self, first: int) -> int:
        start = first
        while start > 0 and not self.model[start - 1]:
            start -= 1
        end = first
        while end < len(self.model) and not self.model[end]:
            end += 1
        return end - start


TestExtentHistories = ExtentHistories.TestCase


def test_everything_given_back_is_one_hole_again() -> None:
    """Neighbours merge in any order of return."""
    extents = ExtentMap(CAPACITY)
    offsets = [extents.take(ALIGNMENT_BYTES) for _ in range(64)]
    assert extents.largest_free_bytes == 0
    for offset in [*offsets[1::2], *reversed(offsets[::2])]:
        extents.give_back(offset)
    assert extents.largest_free_bytes == CAPACITY


@pytest.mark.parametrize("capacity", [0, -512, 1000])
def test_a_capacity_that_is_not_aligned_is_refused(capacity: int) -> None:
    """A slab is a whole number of aligned blocks."""
    with pytest.raises(ValueError, match="multiple"):
        ExtentMap(capacity)


@pytest.mark.parametrize("nbytes", [0, -1, CAPACITY + 1])
def test_sizes_that_no_hole_has_are_refused(nbytes: int) -> None:
    """Nothing changes then."""
    extents = ExtentMap(CAPACITY)
    with pytest.raises(ValueError, match="longest hole"):
        extents.take(nbytes)
    assert extents.free_bytes == CAPACITY


@pytest.mark.parametrize("sizes", [[], [1, 0], [CAPACITY // 2, CAPACITY // 2 + 1]])
def test_several_that_no_hole_has_are_refused(sizes: list[int]) -> None:
    """Nothing changes then, either."""
    extents = ExtentMap(CAPACITY)
    with pytest.raises(ValueError, match=r"longest hole|positive"):
        extents.take_together(sizes)
    assert extents.largest_free_bytes == CAPACITY
