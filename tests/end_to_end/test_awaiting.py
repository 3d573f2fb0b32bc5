"""An event loop that parks and fetches on a real node while an owner takes its memory back."""

from __future__ import annotations

import asyncio
import gc

import torch

import aqua_client
from tests.nodes import MIB, Node, running_node


def test_tasks_park_and_fetch_while_an_owner_grows() -> None:
    """Exact bytes, also where tasks are cancelled at any moment; then nothing is left."""
    with (
        running_node(gpus=3, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        asyncio.run(_use(client, node))
        gc.collect()  # a cancelled task's traceback may hold a handle
        assert client.stats()["peer_bytes"] == client.stats()["host_bytes"] == 0
        assert client.stats()["fetches"]


async def _use(client: aqua_client.Client, node: Node) -> None:
    tasks = [asyncio.create_task(_there_and_back(client, seed)) for seed in range(24)]
    grown = asyncio.create_task(asyncio.to_thread(node.load, "SHM-1", 60 * MIB))
    for task in tasks[::5]:
        await asyncio.sleep(0.001)
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await grown
    assert all(one is None or isinstance(one, asyncio.CancelledError) for one in results), results
    assert results.count(None) >= 19


async def _there_and_back(client: aqua_client.Client, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 256, (MIB,), dtype=torch.uint8, generator=generator)
    for _ in range(10):
        handle = await client.offload_async(tensor)
        assert torch.equal(await handle.fetch_async(), tensor)
        handle.release()
