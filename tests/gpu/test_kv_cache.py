"""The cache of `generate()` on a device: bytes are exact, and tokens are those of the stock cache.

The GPU lends to itself. What is the same on every device is tests/integrations'.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import aqua_client
from tests.contract.places import cuda_place
from tests.nodes import wait_until

pytest.importorskip("transformers", reason="not run here: transformers is missing")
from transformers import DynamicCache

from aqua_client.integrations.kv_cache import AquaCache
from tests.integrations.kv_cache import models
from tests.integrations.kv_cache.feeding import feed

pytestmark = pytest.mark.limit(180)


@pytest.fixture(params=["legacy", "vmm"])
def client(request: pytest.FixtureRequest, cuda_device: int) -> Iterator[aqua_client.Client]:
    """Connected to a node with a keeper on this GPU."""
    with (
        cuda_place(request.param, cuda_device) as place,
        aqua_client.connect(socket=place.node.socket) as made,
    ):
        wait_until(lambda: made.stats()["attached"], seconds=20, what="attached")
        yield made
        torch.cuda.synchronize()


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_every_byte_comes_back_whatever_the_streams_do(
    client: aqua_client.Client, limit: int
) -> None:
    """Delays between all copies, and freed memory poisoned: what attention gets is exact."""
    cache = AquaCache(resident_layers=limit, tail_tokens=4, client=client)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert feed(cache, device="cuda", prompt_tokens=3000, steps=60, seed=limit) == []
    assert client.stats()["peer_in_bytes"] != 0
    assert client.stats()["fallbacks"] == {}


@pytest.mark.parametrize("way", ["greedy", "beams", "assisted"])
def test_tokens_are_those_of_the_stock_cache(client: aqua_client.Client, way: str) -> None:
    """In float32, with a head that keeps the two best apart."""
    draft = models.model(layers=1, device="cuda")
    how = {
        "greedy": models.GREEDY,
        "beams": {"num_beams": 3},
        "assisted": {"assistant_model": draft, "do_sample": False},
    }[way]
    tokens = models.prompt(200).to("cuda")
    expected, _ = models.generate(DynamicCache(), tokens, how, device="cuda")
    cache = AquaCache(tail_tokens=4, client=client)
    found, _ = models.generate(cache, tokens, how, device="cuda")
    assert torch.equal(found, expected)
