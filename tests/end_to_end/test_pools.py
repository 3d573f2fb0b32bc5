"""Block pools on a real node: blocks lie on peers, move when owners grow, and come back exactly."""

from __future__ import annotations

from functools import partial

import torch

import aqua_client
from tests.nodes import MIB, running_node, wait_until

SHAPE = (2, 16, 4, 64)  # 32 KiB of float32


def test_blocks_survive_owners_that_grow_on_their_gpus() -> None:
    """They are moved from GPU to GPU and to the host; every load gives the bytes stored."""
    cache = torch.randn(600, *SHAPE)
    ids = torch.randperm(600)[:500]
    kept = cache[ids]
    with (
        running_node(gpus=3, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        pool = client.pool(SHAPE, cache.dtype)
        slots = pool.store(cache, ids)
        assert (slots.tier, slots.nbytes) == ("peer", kept.numel() * 4)
        cache[ids] = 0.0
        for gpu in ("SHM-1", "SHM-2"):
            node.load(gpu, 60 * MIB)
            wait_until(partial(is_not_lending, client, gpu), what=f"{gpu} is given back")
            again = torch.zeros(500, *SHAPE)
            pool.load(slots, again, range(500))
            assert torch.equal(again, kept)
        assert slots.tier == "host"
        assert client.stats()["evacuated_bytes"]
        pool.load(slots, cache, ids)
        assert torch.equal(cache[ids], kept)
        slots.release()
        assert client.stats()["host_bytes"] == 0


def is_not_lending(client: aqua_client.Client, gpu: str) -> bool:
    found = client.stats()["leases"]
    assert isinstance(found, dict)
    return gpu not in found
