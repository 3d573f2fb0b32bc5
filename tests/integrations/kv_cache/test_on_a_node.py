"""Conversations parked on a real node: turns with revokes between them, and the end of a keeper."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import DynamicCache

import aqua_client
from aqua_client.integrations.kv_cache import AquaCache
from tests.integrations.kv_cache import models
from tests.nodes import MIB, running_node, wait_until

TURNS = 3
# While owners come and go there is not always room.
pytestmark = pytest.mark.filterwarnings("ignore::aqua_client.fallback.AquaWarning")


def test_turns_with_revokes_between_them_are_those_of_a_stock_cache() -> None:
    """Parked, moved by an owner that grows, resumed or not: tokens and bytes are the same."""
    stock = DynamicCache()
    with (
        running_node(gpus=4, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        ours = AquaCache(tail_tokens=8, client=client)
        expected = found = models.prompt(200, batch=2)
        for turn in range(TURNS):
            expected, _ = models.generate(stock, expected)
            found, _ = models.generate(ours, found)
            assert torch.equal(found, expected)
            ours.park()
            assert ours.resident_bytes == 0
            assert parked_bytes(client) == ours.stored_bytes > 0
            for lender in lenders(client)[:1]:
                owner = node.load(lender, 60 * MIB)
                wait_until(partial(is_left, client, lender), what=f"{lender} is left")
                node.end_owner(owner)
            if turn % 2:
                ours.resume()
            more = models.prompt(5, batch=2, seed=turn)
            expected, found = (torch.cat([one, more], dim=1) for one in (expected, found))
        revokes = client.stats()["revokes_served"]
        assert isinstance(revokes, int)
        assert revokes > 0
        assert models.are_alike(ours, stock)


def test_a_conversation_whose_lender_fails_is_said_to_be_lost() -> None:
    """Its keeper was killed: the next turn says so, and a reset cache works on."""
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        cache = AquaCache(tail_tokens=8, client=client)
        models.read(cache, models.prompt(100))
        cache.park()
        node.kill_keeper()
        wait_until(lambda: client.stats()["leases_lost"], what="the loss is known")
        with pytest.raises(aqua_client.LeaseLost, match="conversation"):
            models.read(cache, models.prompt(1))
        cache.reset()
        models.read(cache, models.prompt(100))
        assert cache.get_seq_length() == 100


def test_without_a_daemon_it_is_the_same_in_host_memory() -> None:
    """With the process's own client, which says so once."""
    expected, _ = models.generate(DynamicCache(), models.prompt(50))
    with aqua_client.connect(socket="/nonexistent/aqua.sock") as client:
        cache = AquaCache(tail_tokens=8)
        with pytest.warns(aqua_client.AquaWarning):
            found, _ = models.generate(cache, models.prompt(50))
        assert torch.equal(found, expected)
        cache.park()
        assert client.stats()["host_bytes"] == cache.stored_bytes > 0


def lenders(client: aqua_client.Client) -> list[str]:
    found = client.stats()["leases"]
    assert isinstance(found, dict)
    return sorted(found)


def is_left(client: aqua_client.Client, gpu: str) -> bool:
    return gpu not in lenders(client)


def parked_bytes(client: aqua_client.Client) -> int:
    peer, host = client.stats()["peer_bytes"], client.stats()["host_bytes"]
    assert isinstance(peer, int)
    assert isinstance(host, int)
    return peer + host
