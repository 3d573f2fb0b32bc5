"""What grows is found, what comes and goes is not."""

from __future__ import annotations

import os

import pytest

from tests.benchmarks.processes import Cost, mapped_slabs
from tests.benchmarks.soak.flatness import Watch

MIB = 2**20


def watch(own_mib: list[float], descriptors: list[int], *, may_open: int = 0) -> Watch:
    seen = Watch(may_open=may_open)
    for number, (own, count) in enumerate(zip(own_mib, descriptors, strict=True)):
        cost = Cost(
            rss_bytes=int(2 * own * MIB),
            own_bytes=int(own * MIB),
            cpu_seconds=0.1 * number,
            descriptors=count + 3,
            slabs=3,
        )
        seen.add(cost, at=float(number))
    return seen


def test_what_comes_and_goes_is_flat() -> None:
    """Medians, and slabs are no descriptors that leak."""
    flat = watch([100, 140] * 50, [10, 12] * 50).judged(warm_at=10.0)
    assert flat.failures == []
    assert flat.cpu_share == pytest.approx(0.1)


def test_memory_that_only_grows_is_found() -> None:
    """A share of it and some MiB are allowed, no more."""
    slow = watch([100 + number * 0.1 for number in range(100)], [10] * 100)
    fast = watch([100 + number * 0.2 for number in range(100)], [10] * 100)
    assert slow.judged(warm_at=0.0).failures == []
    assert fast.judged(warm_at=0.0).failures == ["memory grew by 16.0 MiB"]


def test_descriptors_that_only_grow_are_found() -> None:
    """What a process may come to open is not held against it."""
    counts = [10 + number // 25 for number in range(100)]
    assert watch([100] * 100, counts).judged(warm_at=0.0).failures == ["3 descriptors more"]
    assert watch([100] * 100, counts, may_open=1).judged(warm_at=0.0).failures == []


def test_the_warm_up_is_not_judged() -> None:
    """An interpreter that imports grows."""
    grown = watch([50.0] * 50 + [100.0] * 50, [10] * 100)
    assert grown.judged(warm_at=50.0).failures == []
    assert grown.judged(warm_at=0.0).failures


def test_a_process_is_seen_as_it_is() -> None:
    """This one has memory, descriptors and no slab."""
    cost = Cost.of(os.getpid())
    assert cost.rss_bytes > cost.own_bytes > MIB
    assert cost.descriptors > 2
    assert cost.slabs == mapped_slabs(os.getpid()) == 0
    assert cost.cpu_seconds > 0
