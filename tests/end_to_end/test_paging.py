"""Tensors parked on a real node: exact bytes from peers, and through the death of the daemon."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator

import pytest
import torch

import aqua_client
from aqua_client.settings import ClientSettings
from tests.end_to_end.test_client_deaths import held_bytes
from tests.nodes import MIB, Node, running_node, short_directory, wait_until

QUANTISED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
DTYPES = sorted(
    {one for one in vars(torch).values() if isinstance(one, torch.dtype)} - QUANTISED, key=str
)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """One node for the tests that leave it as it was."""
    with running_node(gpus=4, gpu_bytes=64 * MIB) as made:
        yield made


def noise(nbytes: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same dtype, shape, strides and bits."""
    assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
    flat = [t.as_strided((t.numel(),), (1,)).view(torch.uint8) for t in (one, other)]
    return torch.equal(*flat)


def lent_bytes(node: Node) -> float:
    return sum(value for name, value in node.scrape().items() if 'state="lent"' in name)


def test_every_dtype_and_layout_comes_back_from_peers(node: Node) -> None:
    """Bit by bit; not one of them by way of the host."""
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ComplexHalf, which is experimental
            tensors = [(noise(60 * dtype.itemsize) % 2).view(dtype) for dtype in DTYPES]
            tensors += [tensor.reshape(3, 4, 5).permute(2, 0, 1) for tensor in tensors]
            tensors += [
                torch.tensor(2.5),
                torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
            ]
            handles = [client.offload(tensor) for tensor in tensors]
            assert {handle.tier for handle in handles} == {"peer"}
            pairs = zip(handles, tensors, strict=True)
            assert all(same_bits(handle.fetch(), tensor) for handle, tensor in pairs)
        assert client.stats()["host_out_bytes"] == 0
        gappy = torch.randn(100, 100)[::3, ::7]
        assert torch.equal(client.offload(gappy).fetch(), gappy)
        assert torch.equal(client.offload(torch.zeros(0, 4)).fetch(), torch.zeros(0, 4))
    wait_until(lambda: held_bytes(node) == 0, what="a closed client's slabs are returned")


def test_a_tensor_lies_on_several_gpus(node: Node) -> None:
    """Larger than any slab, and than what any one GPU may lend; never on its own GPU."""
    tensor = noise(100 * MIB)
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        handle = client.offload(tensor)
        assert handle.tier == "peer"
        leases = client.stats()["leases"]
        assert isinstance(leases, dict)
        assert len(leases) >= 2
        assert "SHM-0" not in leases
        assert torch.equal(handle.fetch(), tensor)
        out = torch.zeros_like(tensor)
        assert torch.equal(handle.fetch(out=out), tensor)
        handle.release()
    wait_until(lambda: held_bytes(node) == 0, what="returned")


def test_a_full_node_leaves_the_rest_to_the_host(node: Node) -> None:
    """The tensor is in both tiers, and whole; the daemon knows of the host's part."""
    tensor = noise(200 * MIB)
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        with pytest.warns(aqua_client.AquaWarning, match="no_room"):
            handle = client.offload(tensor)
        assert (handle.tier, handle.reason) == ("mixed", "no_room")
        assert torch.equal(handle.fetch(), tensor)
        host_bytes, reserved = client.stats()["host_bytes"], client.stats()["host_reserved_bytes"]
        assert isinstance(host_bytes, int)
        assert isinstance(reserved, int)
        assert 0 < host_bytes <= reserved
    wait_until(lambda: held_bytes(node) == 0, what="returned")


def test_two_clients_do_not_see_each_other(node: Node) -> None:
    """Each has slabs of its own."""
    one = aqua_client.Client(settings_for(node, "SHM-0"))
    other = aqua_client.Client(settings_for(node, "SHM-1"))
    with one, other:
        handles = [
            (client.offload(noise(MIB, seed=seed)), seed)
            for client in (one, other)
            for seed in (1, 2)
        ]
        assert all(torch.equal(handle.fetch(), noise(MIB, seed=seed)) for handle, seed in handles)
        assert {handle.tier for handle, _ in handles} == {"peer"}
        assert "SHM-1" not in str(other.stats()["leases"])
    wait_until(lambda: held_bytes(node) == 0, what="returned")


def settings_for(node: Node, home_gpu: str) -> ClientSettings:
    return ClientSettings(
        socket_path=node.socket, home_gpu=home_gpu, connect_seconds=5.0, host_limit_bytes=64 * MIB
    )


def test_without_a_daemon_the_host_is_used_and_with_one_peers() -> None:
    """A client that was there first finds the daemon when it comes."""
    tensor = noise(3 * MIB)
    with (
        short_directory() as directory,
        aqua_client.connect(socket=str(directory / "aqua.sock"), home_gpu="SHM-0") as client,
    ):
        with pytest.warns(aqua_client.AquaWarning, match="no_daemon"):
            early = client.offload(tensor)
        assert (early.tier, early.reason) == ("host", "no_daemon")
        with running_node(directory, gpus=2, gpu_bytes=32 * MIB):
            wait_until(lambda: client.stats()["attached"], what="the client attaches")
            late = client.offload(tensor)
            assert late.tier == "peer"
            assert torch.equal(early.fetch(), tensor)
            assert torch.equal(late.fetch(), tensor)
            late.release()


def test_a_daemon_that_hangs_costs_deadlines_and_no_byte() -> None:
    """Offloads beyond the slabs that are held go to the host; fetches never ask."""
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        tensor = noise(3 * MIB)
        held = client.offload(tensor)
        node.stop_daemon()
        assert torch.equal(held.fetch(), tensor)
        with pytest.warns(aqua_client.AquaWarning):
            beyond = client.offload(tensor)
        assert beyond.tier == "host"
        assert torch.equal(beyond.fetch(), tensor)
        node.continue_daemon()
        wait_until(lambda: client.offload(tensor).tier == "peer", seconds=30, what="peers again")
        assert torch.equal(held.fetch(), tensor)


@pytest.mark.limit(90)
@pytest.mark.parametrize("graceful", [False, True], ids=["killed", "stopped"])
def test_the_death_of_the_daemon_costs_no_byte(graceful: bool) -> None:  # noqa: FBT001 - a parameter
    """Clients fetch and offload all the time; the next daemon adopts what they hold."""
    with (
        running_node(gpus=3, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        held = [(client.offload(noise(MIB, seed=seed)), seed) for seed in range(20)]
        assert {handle.tier for handle, _ in held} == {"peer"}
        before = client.stats()["leases"]
        stop, faults, rounds = threading.Event(), list[BaseException](), list[int]()
        threads = [
            threading.Thread(target=_work, args=(client, number, stop, faults, rounds))
            for number in range(3)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(rounds) > 10, what="work goes on")
        node.restart_daemon(graceful=graceful)
        during = len(rounds)
        wait_until(lambda: client.stats()["attached"], what="re-attached", seconds=20)
        wait_until(lambda: len(rounds) > during + 10, what="work goes on")
        stop.set()
        for thread in threads:
            thread.join()
        assert faults == []
        assert client.stats()["session_reattaches"] == 1
        assert client.stats()["leases_lost"] == 0
        assert all(torch.equal(handle.fetch(), noise(MIB, seed=seed)) for handle, seed in held)
        assert {handle.tier for handle, _ in held} == {"peer"}
        assert isinstance(before, dict)
        assert set(before) <= set(str(client.stats()["leases"]).split("'"))
        assert lent_bytes(node) >= 20 * MIB
        wait_until(
            lambda: client.offload(noise(1000)).tier == "peer", what="peers again", seconds=30
        )


def _work(
    client: aqua_client.Client,
    number: int,
    stop: threading.Event,
    faults: list[BaseException],
    rounds: list[int],
) -> None:
    try:
        while not stop.is_set():
            tensor = noise(200_000 + number, seed=len(rounds))
            handle = client.offload(tensor)
            assert torch.equal(handle.fetch(), tensor)
            handle.release()
            rounds.append(number)
    except BaseException as fault:  # noqa: BLE001 - told by the test's own thread
        faults.append(fault)
