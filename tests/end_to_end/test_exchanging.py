"""On a real node: a revoke names a slab in use beside an empty one, and no byte is copied for it."""

from __future__ import annotations

import torch

import aqua_client
from tests.end_to_end.test_paging import noise
from tests.end_to_end.test_revokes import borrowed_of
from tests.nodes import MIB, Node, running_node, wait_until

GPU_BYTES = 64 * MIB
RESERVE_BYTES = GPU_BYTES // 10


def leases_of(client: aqua_client.Client) -> dict[str, int]:
    """What it holds of SHM-1."""
    leases = client.stats()["leases"]
    assert isinstance(leases, dict)
    found: dict[str, int] = leases.get("SHM-1", {"slabs": 0, "bytes": 0, "used_bytes": 0})
    return found


def revokes(node: Node, outcome: str) -> float:
    return node.scrape()[f'aqua_revokes_total{{outcome="{outcome}",reason="reserve"}}']


def test_an_owner_gets_an_empty_slab_instead_of_one_in_use() -> None:
    """The daemon has not heard of either use, so it asks for the older one; the empty one comes."""
    # Of a long term, so that no keepalive says meanwhile what is used.
    with (
        running_node(gpus=2, gpu_bytes=GPU_BYTES, term_seconds=60) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        tensor = noise(3 * MIB)
        handle = client.offload(tensor)
        client.offload(noise(3 * MIB, seed=1)).release()
        before = leases_of(client)
        assert (before["slabs"], before["used_bytes"]) == (2, 3 * MIB)
        node.load("SHM-1", GPU_BYTES - before["bytes"] - RESERVE_BYTES + MIB)
        wait_until(lambda: revokes(node, "returned") == 1, what="the owner has its reserve")
        wait_until(lambda: borrowed_of(node, "SHM-1") < before["bytes"], what="it is freed")
        assert revokes(node, "spared") == 1
        assert revokes(node, "quarantined") == 0
        assert handle.tier == "peer"
        assert leases_of(client)["used_bytes"] == 3 * MIB
        assert leases_of(client)["slabs"] == 1
        assert torch.equal(handle.fetch(), tensor)
        stats = client.stats()
        assert (stats["evacuated_bytes"], stats["leases_exchanged"]) == (0, 1)
        assert stats["call_failures"] == {}
