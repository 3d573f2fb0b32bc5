"""Which way blocks are copied: by what was measured near, and a plain way where nothing was."""

from __future__ import annotations

import pytest

from aqua_client.crossover import Crossover, Measured, Way

KIB = 2**10


def table() -> Crossover:
    made = Crossover()
    made.measured = (
        Measured(
            block_bytes=16 * KIB,
            count=512,
            seconds={Way.EACH: 9e-4, Way.KERNEL: 3e-5, Way.TORCH: 5e-5},
        ),
        Measured(
            block_bytes=1024 * KIB,
            count=8,
            seconds={Way.EACH: 2e-5, Way.BATCH: 1e-5, Way.TORCH: 9e-6},
        ),
    )
    return made


@pytest.mark.parametrize(
    ("block_bytes", "count", "way"),
    [
        (16 * KIB, 512, Way.KERNEL),
        (32 * KIB, 1000, Way.KERNEL),
        (2048 * KIB, 4, Way.TORCH),
        (512 * KIB, 16, Way.TORCH),
        (16 * KIB, 3, Way.EACH),
    ],
)
def test_the_quickest_of_the_nearest_is_chosen(block_bytes: int, count: int, way: Way) -> None:
    """Near in size and in number, both by their ratio; a few are enqueued one by one."""
    assert table().choose(block_bytes, count, may_torch=True) is way


def test_what_torch_can_not_do_it_is_not_asked_for() -> None:
    """Then it is the quickest of the others."""
    assert table().choose(1024 * KIB, 8, may_torch=False) is Way.BATCH


def test_where_nothing_is_measured_it_is_what_needs_no_proof() -> None:
    """Neither the driver's batch nor a kernel of our own."""
    assert Crossover().choose(16 * KIB, 512, may_torch=True) is Way.TORCH
    assert Crossover().choose(16 * KIB, 512, may_torch=False) is Way.EACH


def test_a_way_that_never_worked_is_never_chosen() -> None:
    """What is in no measurement is not there."""
    made = Crossover()
    made.measured = (Measured(block_bytes=KIB, count=8, seconds={}),)
    assert made.choose(KIB, 8, may_torch=True) is Way.TORCH
    assert made.choose(KIB, 8, may_torch=False) is Way.EACH


def test_the_table_is_told() -> None:
    """In microseconds, by count and size."""
    assert table().told()["8 x 1048576"] == {"each": 20.0, "batch": 10.0, "torch": 9.0}
