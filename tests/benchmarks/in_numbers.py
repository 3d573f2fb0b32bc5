"""What a small tensor costs when there are a thousand: `offload_many`, and blocks of a pool.

Beside them what people make for each tensor, one after the other, and what nobody who copies can be
cheaper than: one shared buffer that is there and touched, with a `copy_` for each tensor. All figures
are of one tensor, the least of rounds in this run, on one thread; all park the same thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

import aqua_client
from tests.benchmarks.figure import Figure
from tests.benchmarks.rivals import memory
from tests.benchmarks.rivals.rounds import least_us

SUBJECT = "small tensors"
KIB = 2**10
SIZES = (4 * KIB, 16 * KIB, 64 * KIB)
COUNT = 1000
CHEAPER = 26.0
ROUNDS = 30


def measure(client: aqua_client.Client) -> Iterator[Figure]:
    """Ours beside both ways to make memory for each, of each size."""
    for nbytes in SIZES:
        cache = torch.randint(0, 256, (2 * COUNT, nbytes), dtype=torch.uint8)
        ids = torch.randperm(2 * COUNT)[:COUNT]
        tensors = list(cache[ids].unbind())
        buffer_us = memory.shared_buffer(tensors, rounds=ROUNDS)["park_us"] / COUNT
        many_us = _many(client, tensors)
        pool_us = _pool(client, cache, ids)
        out = torch.zeros(nbytes, dtype=torch.uint8)
        for rival, made in (
            ("shared memory made for each", memory.shared_memory_made),
            ("a memfd made for each", memory.memfd_made),
        ):
            made_us = made(tensors[0], out, *tensors[1:], measured=least_us)["park_us"]
            for what, own_us in (("`offload_many`", many_us), ("a pool", pool_us)):
                yield Figure(
                    subject=SUBJECT,
                    name=f"{COUNT:,} of {nbytes // KIB} KiB by {what}, each, beside {rival}",
                    value=made_us / own_us,
                    unit="times cheaper",
                    rival=(
                        f"{made_us:,.1f} us, ours {own_us:,.2f} us; a {CHEAPER:.0f}th of it "
                        f"{made_us / CHEAPER:,.1f} us, into a touched shared buffer {buffer_us:,.2f} us"
                    ),
                    at_least=CHEAPER,
                )


def _many(client: aqua_client.Client, tensors: Sequence[torch.Tensor]) -> float:
    outs = [torch.zeros_like(tensor) for tensor in tensors]
    found = _each_us(
        lambda: client.offload_many(tensors),
        lambda handles: client.fetch_many(handles, outs),
        lambda handles: [handle.release() for handle in handles],
    )
    assert all(map(torch.equal, outs, tensors)), "the figures are of bytes that did not come back"
    return found


def _pool(client: aqua_client.Client, cache: torch.Tensor, ids: torch.Tensor) -> float:
    pool = client.pool(cache.shape[1:], cache.dtype)
    kept = cache[ids]
    found = _each_us(
        lambda: pool.store(cache, ids),
        lambda slots: pool.load(slots, cache, ids),
        lambda slots: slots.release(),
    )
    assert torch.equal(cache[ids], kept), "the figures are of bytes that did not come back"
    return found


def _each_us(
    park: Callable[[], object], back: Callable[..., object], forget: Callable[..., object]
) -> float:
    return least_us(park, back, forget, rounds=ROUNDS)["park_us"] / COUNT
