"""Owners take their memory back from a real node: data moves while its client goes on."""

from __future__ import annotations

import threading
import time
import warnings

import pytest
import torch

import aqua_client
from tests.end_to_end.test_paging import noise
from tests.nodes import MIB, Node, running_node, wait_until


def borrowed_of(node: Node, gpu: str) -> float:
    """What borrowers have of a GPU, in whatever state."""
    states = ("lent", "quarantined", "returning")
    samples = node.scrape()
    return sum(samples.get(f'aqua_pool_bytes{{gpu="{gpu}",state="{one}"}}', 0) for one in states)


def lender_of(client: aqua_client.Client) -> str:
    leases = client.stats()["leases"]
    assert isinstance(leases, dict)
    return str(max(leases, key=lambda gpu: leases[gpu]["bytes"]))


def test_an_owner_that_grows_moves_what_is_lent_to_other_gpus() -> None:
    """Exact, and still in leased memory."""
    with (
        running_node(gpus=4, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        tensors = [noise(3 * MIB, seed=seed) for seed in range(8)]
        handles = [client.offload(tensor) for tensor in tensors]
        gpu = lender_of(client)
        node.load(gpu, 60 * MIB)
        wait_until(lambda: borrowed_of(node, gpu) == 0, what="the owner has its GPU")
        assert {handle.tier for handle in handles} == {"peer"}
        assert all(torch.equal(h.fetch(), t) for h, t in zip(handles, tensors, strict=True))
        assert gpu not in str(client.stats()["leases"])


def test_where_no_gpu_has_room_it_moves_to_the_host() -> None:
    """Room there was reserved with the leases, so it is never refused."""
    tensor = noise(40 * MIB)
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        handle = client.offload(tensor)
        assert handle.tier == "peer"
        node.load("SHM-1", 60 * MIB)
        wait_until(lambda: borrowed_of(node, "SHM-1") == 0, what="the owner has its GPU")
        assert (handle.tier, handle.reason) == ("host", "reserve")
        assert torch.equal(handle.fetch(), tensor)
        assert client.stats()["fallbacks"] == {}


def test_cache_data_is_dropped_when_its_gpu_is_needed() -> None:
    """Fetching it says so."""
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        handle = client.offload(noise(MIB), keep="cache")
        assert handle.tier == "peer"
        node.load("SHM-1", 60 * MIB)
        wait_until(lambda: borrowed_of(node, "SHM-1") == 0, what="the owner has its GPU")
        with pytest.raises(aqua_client.LeaseLost, match="reserve"):
            handle.fetch()


def test_a_keeper_that_dies_takes_its_data_and_says_so() -> None:
    """Fetches raise instead of returning anything else; new data goes elsewhere."""
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        handle = client.offload(noise(MIB))
        assert handle.tier == "peer"
        node.kill_keeper()
        wait_until(lambda: handle.tier == "lost", what="the loss is known")
        with pytest.raises(aqua_client.LeaseLost):
            handle.fetch()


@pytest.mark.limit(90)
def test_owners_come_and_go_while_threads_park_and_fetch() -> None:
    """Four threads never stop; each owner gets its GPU, not one byte differs."""
    faults: list[BaseException] = []
    stop = threading.Event()
    with (
        running_node(gpus=4, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        threads = [
            threading.Thread(target=_use, args=(client, number, stop, faults))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 4.0
        while time.monotonic() < end:
            for gpu in ("SHM-1", "SHM-2", "SHM-3"):
                owner = node.load(gpu, 60 * MIB)
                wait_until(lambda gpu=gpu: borrowed_of(node, gpu) == 0, what=f"{gpu} is free")  # type: ignore[misc] # a default binds it
                owner.kill()
                owner.wait()
        stop.set()
        for thread in threads:
            thread.join()
        assert faults == []
        assert int(str(client.stats()["revokes_served"])) > 0


def _use(
    client: aqua_client.Client, number: int, stop: threading.Event, faults: list[BaseException]
) -> None:
    held: list[tuple[aqua_client.OffloadedTensor, torch.Tensor]] = []
    try:
        while not stop.is_set():
            tensor = noise(700_000, seed=number * 1000 + len(held))
            held.append((client.offload(tensor), tensor))
            assert all(torch.equal(handle.fetch(), expected) for handle, expected in held[-3:])
            if len(held) > 12:
                held.pop(0)[0].release()
        assert all(torch.equal(handle.fetch(), expected) for handle, expected in held)
    except BaseException as fault:  # noqa: BLE001 - told by the test's own thread
        faults.append(fault)
