"""Weights that are swapped in and out on a real node are copied out once, also when they move."""

from __future__ import annotations

from functools import partial

import torch

import aqua_client
from tests.nodes import MIB, running_node, wait_until


def test_weights_are_copied_out_once_and_move_when_an_owner_grows() -> None:
    """Parking them again costs nothing before and after; the bytes are the same."""
    weights = [torch.randn(256, 1024) for _ in range(8)]
    with (
        running_node(gpus=3, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        parked = [client.offload(one, immutable=True) for one in weights]
        node.load("SHM-1", 60 * MIB)
        wait_until(partial(is_not_lending, client, "SHM-1"), what="SHM-1 is given back")
        for _ in range(3):
            fetched = [handle.fetch() for handle in parked]
            assert [client.offload(one, immutable=True) for one in fetched] == parked
        assert client.stats()["offloads"] == len(weights)
        assert all(torch.equal(one, two) for one, two in zip(weights, fetched, strict=True))


def is_not_lending(client: aqua_client.Client, gpu: str) -> bool:
    found = client.stats()["leases"]
    assert isinstance(found, dict)
    return gpu not in found
