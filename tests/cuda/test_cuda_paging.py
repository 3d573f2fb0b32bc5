"""A server's calls, end to end, over lenders that are CUDA GPUs of a fake node.

The daemon, its keepers and the driver's books are those of real processes; this process is the
client, with tensors of the CPU. Covers both kinds of handle alike. What only a CUDA tensor can show
is tests/gpu/test_client_door.py's.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import aqua_client
from tests.contract.tensors import every_tensor, noise, same_bits
from tests.cuda.exporter import KINDS, MIB
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda.results import CUresult
from tests.fakes.torch_streams import leave_torch_out
from tests.nodes import Node, running_node, wait_until

GIB = 2**30
GPUS = 4
START_SECONDS = 30.0  # a keeper each, on two cores that others use too

pytestmark = [pytest.mark.parametrize("kind", KINDS), pytest.mark.limit(120)]


@pytest.fixture(autouse=True)
def no_torch_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that torch may have in this process is none of the fake node's."""
    leave_torch_out(monkeypatch)


@pytest.fixture
def machine(tmp_path: Path) -> FakeCudaNode:
    return fake_cuda_node(tmp_path, gpus=GPUS, memory=4 * GIB)


@contextmanager
def served(machine: FakeCudaNode, kind: str) -> Iterator[Node]:
    """A daemon with a keeper for each GPU, which have all reported."""
    with running_node(gpus=0, variables=machine.environment(), handles=kind) as node:
        wait_until(
            lambda: len(machine.contexts()) == GPUS, seconds=START_SECONDS, what="keepers run"
        )
        yield node


@contextmanager
def connected(machine: FakeCudaNode, node: Node, *, home: int = 0) -> Iterator[aqua_client.Client]:
    """A client whose home is that GPU; when it has gone, nothing of it is left."""
    with machine.in_process():
        client = aqua_client.connect(socket=node.socket, home_gpu=machine.uuids[home])
        with client:
            wait_until(lambda: client.stats()["attached"], what="attached")
            until_lent(client)
            yield client
        assert mapped_by_us(machine) == 0
        wait_until(lambda: not machine.allocations(), what="every byte is given back")


def until_lent(client: aqua_client.Client) -> None:
    """Grants begin when the keepers have reported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        wait_until(
            lambda: client.offload(torch.zeros(8)).tier == "peer",
            seconds=START_SECONDS,
            what="a lease is granted",
        )


def mapped_by_us(machine: FakeCudaNode) -> int:
    return sum(os.getpid() in machine.mapped_by(one.number) for one in machine.allocations())


def lenders(client: aqua_client.Client) -> set[str]:
    leases = client.stats()["leases"]
    assert isinstance(leases, dict)
    return set(leases)


def test_every_dtype_and_layout_comes_back(machine: FakeCudaNode, kind: str) -> None:
    """Bit by bit, and none of it by way of the host."""
    with served(machine, kind) as node, connected(machine, node) as client:
        before = client.stats()["host_out_bytes"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ComplexHalf, which is experimental
            parked = [(tensor, client.offload(tensor)) for _, tensor in every_tensor("cpu")]
            assert {handle.tier for tensor, handle in parked if tensor.numel()} == {"peer"}
            assert all(same_bits(handle.fetch(), tensor) for tensor, handle in parked)
        assert client.stats()["host_out_bytes"] == before


def test_the_client_has_one_context_and_that_at_home(machine: FakeCudaNode, kind: str) -> None:
    """However many GPUs lend to it; a tensor larger than any slab lies on several of them."""
    with served(machine, kind) as node, connected(machine, node, home=2) as client:
        tensor = noise(300 * MIB, seed=1, device="cpu")
        handle = client.offload(tensor)
        assert handle.tier == "peer"
        assert len(machine.allocations()) >= 2
        assert machine.uuids[2] not in lenders(client)
        ours = [one.uuid for one in machine.contexts() if one.pid == os.getpid()]
        assert ours == [machine.uuids[2]]
        assert len(machine.contexts()) == GPUS + 1
        assert torch.equal(handle.fetch(), tensor)
        assert {one.uuid for one in machine.contexts() if one.pid == os.getpid()} == {*ours}


def test_a_revoke_moves_the_bytes_and_gives_the_gpu_back(machine: FakeCudaNode, kind: str) -> None:
    """While others fetch all the time; nothing is freed that is still mapped."""
    with served(machine, kind) as node, connected(machine, node) as client:
        tensors = [noise(2 * MIB + seed, seed=seed, device="cpu") for seed in range(8)]
        handles = [client.offload(tensor) for tensor in tensors]
        (lender,) = lenders(client)
        stop, faults = threading.Event(), list[str]()

        def fetch() -> None:
            while not stop.is_set():
                for handle, tensor in zip(handles, tensors, strict=True):
                    if not torch.equal(handle.fetch(), tensor):
                        faults.append("other bytes")

        threads = [threading.Thread(target=fetch) for _ in range(2)]
        for thread in threads:
            thread.start()
        free = 4 * GIB - machine.used_bytes(lender)
        machine.set_process(lender, 4242, free - 100 * MIB)  # below the reserve
        wait_until(lambda: lender not in lenders(client), seconds=20, what="given back")
        stop.set()
        for thread in threads:
            thread.join()
        assert faults == []
        wait_until(lambda: not held_on(machine, lender), what="freed to the driver")
        assert machine.freed_while_mapped == []
        assert all(torch.equal(h.fetch(), t) for h, t in zip(handles, tensors, strict=True))
        served_revokes = client.stats()["revokes_served"]
        assert isinstance(served_revokes, int)
        assert served_revokes >= 1
        machine.set_process(lender, 4242, 0)


def test_what_found_no_room_is_brought_back(machine: FakeCudaNode, kind: str) -> None:
    """Owners have all GPUs, then they leave: what was parked meanwhile lies on a peer again."""
    tensor = noise(9 * MIB + 1, seed=3, device="cpu")
    with (
        served(machine, kind) as node,
        connected(machine, node) as client,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        for uuid in machine.uuids:
            machine.set_process(uuid, 4242, 4 * GIB - machine.used_bytes(uuid) - 100 * MIB)

        handle = client.offload(tensor)

        def is_parked_in_host() -> bool:
            nonlocal handle
            if handle.tier != "host":
                handle = client.offload(tensor)
            return handle.tier == "host"

        wait_until(is_parked_in_host, what="no room")
        for uuid in machine.uuids:
            machine.set_process(uuid, 4242, 0)
        wait_until(lambda: handle.tier == "peer", seconds=30.0, what="brought back")
        assert torch.equal(handle.fetch(), tensor)
        assert client.stats()["promoted_bytes"] == tensor.nbytes
        assert client.stats()["host_bytes"] == 0


def held_on(machine: FakeCudaNode, uuid: str) -> list[int]:
    return [one.number for one in machine.allocations() if one.uuid == uuid]


def test_a_slab_that_can_not_be_opened_goes_back_and_the_host_is_used(
    machine: FakeCudaNode, kind: str
) -> None:
    """With a reason to count; the server sees a warning and its bytes, no error."""
    tensor = noise(40 * MIB, seed=1, device="cpu")
    opening = "cuIpcOpenMemHandle" if kind == "legacy" else "cuMemImportFromShareableHandle"
    with served(machine, kind) as node, connected(machine, node) as client:
        client.offload(torch.zeros(8)).release()
        machine.fail(opening, int(CUresult.CUDA_ERROR_UNKNOWN))
        held = len(machine.allocations())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", aqua_client.AquaWarning)
            handle = client.offload(tensor)
        assert handle.tier in {"host", "mixed"}
        assert handle.reason == "cuda_open"
        assert torch.equal(handle.fetch(), tensor)
        wait_until(lambda: len(machine.allocations()) == held, what="the slab has gone back")
        machine.fail(opening, None)


def test_a_forked_child_raises_and_touches_nothing(machine: FakeCudaNode, kind: str) -> None:
    """Neither the parent's slabs nor the driver."""
    tensor = noise(MIB, seed=1, device="cpu")
    with served(machine, kind) as node, connected(machine, node) as client:
        handle = client.offload(tensor)
        child = os.fork()
        if child == 0:
            os._exit(_raises_in_child(client, handle, tensor))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(handle.fetch(), tensor)
        assert len(machine.contexts()) == GPUS + 1


def _raises_in_child(
    client: aqua_client.Client, handle: aqua_client.OffloadedTensor, tensor: torch.Tensor
) -> int:
    acts: tuple[Callable[[], object], ...] = (
        handle.fetch,
        handle.wait,
        lambda: client.offload(tensor),
    )
    for number, act in enumerate(acts, 1):
        try:
            act()
        except aqua_client.ForkedChild:
            continue
        except BaseException:  # noqa: BLE001 - told by the exit status
            return 10 + number
        return number
    return 0


def test_two_hundred_cycles_leave_as_many_mappings_as_before(
    machine: FakeCudaNode, kind: str
) -> None:
    """Of slabs that are held; descriptors and contexts too."""
    tensor = noise(MIB, seed=1, device="cpu")
    with served(machine, kind) as node, connected(machine, node) as client:
        client.offload(tensor).release()
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        mapped = mapped_by_us(machine)
        made = machine.contexts_made
        for _ in range(200):
            handle = client.offload(tensor)
            assert torch.equal(handle.fetch(), tensor)
            handle.release()
        assert mapped_by_us(machine) == mapped
        assert machine.contexts_made == made
        assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


def test_the_library_works_on_its_own_device_in_its_own_thread(
    machine: FakeCudaNode, kind: str
) -> None:
    """The thread that serves revokes has a context, the home GPU's; this one has none."""
    with served(machine, kind) as node, connected(machine, node, home=1) as client:
        client.offload(noise(MIB, seed=1, device="cpu"))
        from cuda.bindings import driver

        assert int(driver.cuCtxGetCurrent()[1]) == 0
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        assert int(driver.cuThreadExchangeStreamCaptureMode(mode)[1]) == int(mode)
