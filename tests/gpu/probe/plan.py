"""How much of everything: the whole probe, or a quick rehearsal of it."""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB, GIB = 2**10, 2**20, 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes and counts; a device with less memory gets what fits."""

    slab_bytes: int  # for questions that do not depend on size
    slab_sizes: tuple[int, ...]
    large_sizes: tuple[int, ...]  # opened once each: where others saw the cost explode
    slab_counts: tuple[int, ...]
    counted_slab_bytes: int
    repeats: int
    copy_sizes: tuple[int, ...]
    block_sizes: tuple[int, ...]
    kv_block_sizes: tuple[int, ...]
    blocks: int
    beside_bytes: int  # of each tensor that is copied beside something else
    beside_count: int
    product_side: int  # of a square matrix
    products: int
    scrubs: int
    stall_seconds: float
    stall_bytes: int
    return_sizes: tuple[int, ...]  # that an owner takes back
    wait_seconds: float  # for bytes that may never come back


WHOLE = Plan(
    slab_bytes=256 * MIB,
    slab_sizes=tuple(2 * MIB * 2**step for step in range(10)),  # 2 MiB to 1 GiB
    large_sizes=(4 * GIB, 16 * GIB, 64 * GIB),
    slab_counts=(1, 4, 16, 64, 256),
    counted_slab_bytes=64 * MIB,
    repeats=9,
    copy_sizes=tuple(64 * KIB * 4**step for step in range(9)),  # 64 KiB to 4 GiB
    block_sizes=tuple(4 * KIB * 4**step for step in range(5)),  # 4 KiB to 1 MiB
    kv_block_sizes=tuple(32 * KIB * 4**step for step in range(4)),  # 32 KiB to 2 MiB
    blocks=1000,
    beside_bytes=64 * MIB,
    beside_count=8,
    product_side=8192,
    products=5,  # some milliseconds
    scrubs=1000,
    stall_seconds=2.0,
    stall_bytes=1 * GIB,
    return_sizes=(1 * GIB, 10 * GIB, 30 * GIB),
    wait_seconds=3.0,
)
QUICK = Plan(
    slab_bytes=4 * MIB,
    slab_sizes=(2 * MIB, 4 * MIB),
    large_sizes=(8 * MIB,),
    slab_counts=(1, 4),
    counted_slab_bytes=2 * MIB,
    repeats=2,
    copy_sizes=(64 * KIB, 1 * MIB),
    block_sizes=(4 * KIB, 16 * KIB),
    kv_block_sizes=(4 * KIB, 16 * KIB),
    blocks=50,
    beside_bytes=1 * MIB,
    beside_count=2,
    product_side=64,
    products=2,
    scrubs=3,
    stall_seconds=0.1,
    stall_bytes=4 * MIB,
    return_sizes=(8 * MIB, 32 * MIB),
    wait_seconds=0.2,
)
