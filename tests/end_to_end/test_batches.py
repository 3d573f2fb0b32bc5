"""Several tensors at once on a real node: over many slabs, or not at all."""

from __future__ import annotations

import pytest
import torch

import aqua_client
from tests.nodes import MIB, running_node


def test_a_batch_lies_on_peers_whole_or_not_at_all() -> None:
    """More than the node has is refused, and then there is room for what it has."""
    layers = [torch.randint(0, 256, (MIB + 1000 * one,), dtype=torch.uint8) for one in range(60)]
    with (
        running_node(gpus=3, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0", fallback="error") as client,
    ):
        with pytest.raises(aqua_client.InsufficientMemory):
            client.offload_many([*layers, *layers])
        assert client.stats()["peer_bytes"] == client.stats()["offloads"] == 0
        handles = client.offload_many(layers)
        assert {handle.tier for handle in handles} == {"peer"}
        again = client.fetch_many(handles)
        assert all(torch.equal(one, other) for one, other in zip(layers, again, strict=True))
