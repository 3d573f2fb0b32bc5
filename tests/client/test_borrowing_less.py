"""Who is refused a slab asks for the size that the daemon says may be had, once."""

from __future__ import annotations

import torch

from tests.client.pagers import paging, park, random_bytes
from tests.fakes.session import MIB, FakeNode


def test_the_size_that_may_be_had_is_asked_for_at_once() -> None:
    """Not found by halving."""
    node = FakeNode(gpu_bytes={"SHM-1": 4 * MIB}, says_room=True)
    tensor = random_bytes(30 * MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        assert handle.tier == "mixed"
        assert node.asked[:2] == [32 * MIB, 4 * MIB]
        assert pager.stats()["peer_bytes"] == 4 * MIB
        assert torch.equal(handle.fetch(), tensor)


def test_nothing_is_asked_again_where_not_even_the_smallest_may_be_had() -> None:
    """Host memory takes it."""
    node = FakeNode(gpu_bytes={"SHM-1": 1 * MIB}, says_room=True)
    with paging(node) as pager:
        assert park(pager, random_bytes(30 * MIB)).tier == "host"
        assert node.asked == [32 * MIB]
