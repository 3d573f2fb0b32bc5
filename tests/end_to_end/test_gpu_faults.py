"""GPUs that fail under what is lent there: who is told what, and that everybody else goes on.

Every row of the README's table is a case here, over one node of fake GPUs with real processes, each
of which must heal by itself. A client's own context is `tests/cuda/test_dead_client.py`'s.
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

import aqua_client
from tests.end_to_end.gpu_faults import FAULTS, GpuFault
from tests.end_to_end.test_cuda_node import FIRST_SECONDS, GIB, await_contexts, gpus_of, served
from tests.end_to_end.test_paging import noise
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda.results import CUresult
from tests.fakes.torch_streams import leave_torch_out
from tests.nodes import MIB, REPOSITORY, Node, wait_until

TABLE = "Of GPUs, on a made-up driver"
QUOTA_BYTES = 64 * MIB  # two slabs: what is more goes to the host
HEAL_SECONDS = 60.0


@pytest.fixture(autouse=True)
def no_torch_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that torch may have in this process is none of the fake node's."""
    leave_torch_out(monkeypatch)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> FakeCudaNode:
    return fake_cuda_node(tmp_path_factory.mktemp("machine"), gpus=3, memory=4 * GIB)


@pytest.fixture(scope="module")
def node(machine: FakeCudaNode) -> Iterator[Node]:
    with served(machine, quota_bytes=QUOTA_BYTES) as running:
        await_contexts(machine, 3)
        yield running


@pytest.fixture
def client(machine: FakeCudaNode, node: Node) -> Iterator[aqua_client.Client]:
    """At home on the first GPU; the other two lend to it. Nothing of it is left afterwards."""
    with machine.in_process(), warnings.catch_warnings():
        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        with aqua_client.connect(socket=node.socket, home_gpu=machine.uuids[0]) as connected:
            yield connected
    wait_until(lambda: not machine.allocations(), what="every byte is given back")


@dataclass(frozen=True)
class Parked:
    """A tensor, and what it was parked as."""

    tensor: torch.Tensor
    handle: aqua_client.OffloadedTensor

    @property
    def gpu(self) -> str:
        """Of the lender; empty: it lies in the host."""
        slab = self.handle._stored.places[0].slab
        return slab.lender_gpu if slab is not None else ""

    def is_whole(self) -> bool:
        return torch.equal(self.handle.fetch(), self.tensor)


def parked(client: aqua_client.Client, seed: int, tier: str) -> Parked:
    """As soon as it can be parked there."""
    tensor = noise(30 * MIB, seed=seed)  # a slab each, and no room for a piece beside it
    found: list[aqua_client.OffloadedTensor] = []

    def is_there() -> bool:
        found[:] = [client.offload(tensor)]
        return found[0].tier == tier

    wait_until(is_there, seconds=HEAL_SECONDS, what=f"parked in the tier {tier}")
    return Parked(tensor, found[0])


@contextmanager
def lending_no_more(machine: FakeCudaNode, node: Node, gpu: str) -> Iterator[None]:
    """An owner takes so much that the GPU lends nothing, and so little that it takes nothing back."""
    machine.set_process(gpu, 4242, 4 * GIB - machine.used_bytes(gpu) - GIB // 2)
    wait_until(lambda: counted(node, "lendable_bytes", gpu) == 0, what="it lends no more")
    yield
    machine.set_process(gpu, 4242, 0)


def trouble(node: Node, machine: FakeCudaNode, gpu: str) -> str:
    return str(gpus_of(node, machine)[gpu]["trouble"])


def events_of(node: Node, machine: FakeCudaNode) -> str:
    """What `aquactl events` prints."""
    words = [sys.executable, "-m", "aqua_daemon.ctl", "events", "-n", "500", "--socket"]
    run = subprocess.run(
        [*words, node.socket],
        env=machine.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return run.stdout


def keeper_of(machine: FakeCudaNode, gpu: str, ours: int) -> int:
    (pid,) = {one.pid for one in machine.contexts() if one.uuid == gpu} - {ours}
    return pid


def counted(node: Node, metric: str, gpu: str) -> float:
    return node.scrape()[f'aqua_{metric}{{gpu="{gpu}"}}']


@pytest.mark.limit(180)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what.replace(" ", "-"))
def test_whatever_fails_of_a_gpu_is_told_and_hurts_nothing_else(
    machine: FakeCudaNode, node: Node, client: aqua_client.Client, fault: GpuFault
) -> None:
    """What lay there, what lies elsewhere, status and metrics; and it is lent again by itself."""
    struck = parked(client, 1, "peer")
    gpu = struck.gpu
    with lending_no_more(machine, node, gpu):
        elsewhere = parked(client, 2, "peer")
    hosted = parked(client, 3, "host")
    assert elsewhere.gpu not in {gpu, ""}
    before = [counted(node, name, gpu) for name in ("leases_lost_total", "keeper_ends_total")]
    fault.strike(machine, gpu, keeper_of(machine, gpu, 0))
    if fault.loses:
        wait_until(lambda: struck.handle.tier == "lost", seconds=FIRST_SECONDS, what="told")
        check_lost(client, struck, fault)
        told = events_of(node, machine)
        assert re.search(rf"^.* lost: the keeper of {gpu} .*{fault.words}", told, re.MULTILINE)
        assert re.search(rf"^.*{gpu} lends nothing: .*{fault.words}", told, re.MULTILINE)
        assert [
            counted(node, name, gpu) for name in ("leases_lost_total", "keeper_ends_total")
        ] == [value + 1 for value in before]
        more = noise(MIB, seed=4)
        assert torch.equal(client.offload(more).fetch(), more)  # the server goes on
        assert counted(node, "lendable_bytes", elsewhere.gpu) > 0
    else:
        wait_until(
            lambda: fault.words in trouble(node, machine, gpu),
            seconds=FIRST_SECONDS,
            what="status says why",
        )
        assert counted(node, "lendable_bytes", gpu) == 0
        assert struck.is_whole()
    assert elsewhere.is_whole()
    assert hosted.is_whole()
    fault.mend(machine, gpu)
    wait_until(
        lambda: trouble(node, machine, gpu) == "" and counted(node, "lendable_bytes", gpu) > 0,
        seconds=HEAL_SECONDS,
        what="it is lent again",
    )
    assert counted(node, "gpu_trouble", gpu) == 0
    assert f"{gpu} is well again" in events_of(node, machine)


def check_lost(client: aqua_client.Client, struck: Parked, fault: GpuFault) -> None:
    """The holder is told why, each time it asks; giving it back is no error."""
    assert fault.words in struck.handle.reason
    for _ in range(2):
        with pytest.raises(aqua_client.LeaseLost, match=fault.words):
            struck.handle.fetch()
    assert client.stats()["leases_lost"] == 1
    struck.handle.release()
    struck.handle.release()


def test_a_lost_gpu_is_named_in_status_as_long_as_it_is_lost(
    machine: FakeCudaNode, node: Node
) -> None:
    """By the keeper that waits for it, without a context; the others have no trouble."""
    gpu = machine.uuids[2]
    machine.remove_gpu(gpu)
    wait_until(
        lambda: "GPU is lost" in trouble(node, machine, gpu),
        seconds=FIRST_SECONDS,
        what="NVML's word in status",
    )
    wait_until(lambda: counted(node, "gpu_trouble", gpu) == 1, what="and in the metrics")
    assert {counted(node, "gpu_trouble", one) for one in machine.uuids if one != gpu} == {0}
    machine.return_gpu(gpu)
    wait_until(lambda: not trouble(node, machine, gpu), seconds=HEAL_SECONDS, what="healed")


def test_a_slab_that_the_driver_does_not_free_is_asked_for_again(
    machine: FakeCudaNode, node: Node, client: aqua_client.Client
) -> None:
    """It is counted as coming back meanwhile, lent to nobody, and scrubbed when it can be."""
    held = parked(client, 5, "peer")
    gpu = held.gpu
    scrubbed = node.scrape()["aqua_scrubbed_bytes_total"]
    keeper = keeper_of(machine, gpu, 0)
    machine.fail("cuMemsetD8Async", int(CUresult.CUDA_ERROR_UNKNOWN), pid=keeper)
    held.handle.release()
    client.close()
    returning = f'aqua_pool_bytes{{gpu="{gpu}",state="returning"}}'
    wait_until(lambda: "can't be freed yet" in node.log(), seconds=FIRST_SECONDS, what="refused")
    assert node.scrape()[returning] > 0
    machine.fail("cuMemsetD8Async", None)
    wait_until(lambda: node.scrape()[returning] == 0, seconds=FIRST_SECONDS, what="freed")
    assert node.scrape()["aqua_scrubbed_bytes_total"] > scrubbed
    assert keeper_of(machine, gpu, 0) == keeper


def test_the_readme_has_these_rows() -> None:
    """In this order, word for word; a row that is promised is a row that is shown."""
    section = (REPOSITORY / "README.md").read_text().split(TABLE)[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", section, re.MULTILINE)[2:]
    ]
    assert rows[: len(FAULTS)] == [fault.cells() for fault in FAULTS]
