"""A client whose own CUDA context dies, as a real process beside a node of fake GPUs.

Nothing of it may hang or crash, and nobody else may notice. What copies of CUDA tensors say then is
torch's word, and a real device's to show.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cuda.exporter import KINDS
from tests.end_to_end.borrower import CALL_SECONDS, borrowing
from tests.end_to_end.test_cuda_node import FIRST_SECONDS, GIB, acquire, release, served
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.cuda_program import Program
from tests.fakes.fake_cuda.results import CUresult
from tests.nodes import Node, wait_until

CODE = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
ROOM = 100 * 2**20  # less than the reserve: what is lent is asked back
BEGIN = """
import logging, os, sys, time, torch, warnings
os.dup2(os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
logging.basicConfig(level=logging.WARNING)
warnings.simplefilter("ignore")
import aqua_client
import pytest
from aqua_client import worker
from tests.fakes.torch_streams import leave_torch_out
leave_torch_out(pytest.MonkeyPatch())
worker.STUCK_SECONDS = 0.2
client = aqua_client.connect()
tensor = torch.arange(2**20)
"""

pytestmark = pytest.mark.limit(120)


@pytest.fixture
def machine(tmp_path: Path) -> FakeCudaNode:
    return fake_cuda_node(tmp_path / "node", gpus=3, memory=4 * GIB)


@contextmanager
def parked(machine: FakeCudaNode, node: Node, log: Path) -> Iterator[Program]:
    """A process with a tensor on a peer; it ends with the block, by itself."""
    variables = machine.environment(AQUA_SOCKET=node.socket, AQUA_HOME_GPU=machine.uuids[0])
    with Program(variables, BEGIN.format(log=str(log))) as program:

        def is_parked() -> bool:
            program.run("handle = client.offload(tensor)")
            return bool(program.ask("handle.tier") == "peer")

        wait_until(is_parked, seconds=FIRST_SECONDS, what="a lease is granted")
        yield program


def fill(machine: FakeCudaNode, gpu: str) -> None:
    """An owner needs all of it."""
    machine.set_process(gpu, 4242, 4 * GIB - machine.used_bytes(gpu) - ROOM)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_with_a_dead_context_ends_well_and_its_slab_comes_back(
    machine: FakeCudaNode, tmp_path: Path, kind: str
) -> None:
    """It can't unmap, says so once and why, is quarantined, and gives all back by its end."""
    log = tmp_path / "client.log"
    with served(machine, handles=kind) as node:
        with parked(machine, node, log) as program:
            (lender,) = json.loads(
                program.ask("__import__('json').dumps(client.stats()['leases'])")
            )
            machine.kill_context(int(CODE), pid=program.pid)
            fill(machine, lender)
            wait_until(
                lambda: node.scrape()[f'aqua_quarantined_bytes{{gpu="{lender}"}}'] > 0,
                seconds=FIRST_SECONDS,
                what="what it can't give back is set apart",
            )
            assert program.ask("torch.equal(handle.fetch(), tensor)")
            program.run("handle.release(); began = time.monotonic()")
            program.run("more = client.offload(torch.zeros(20 * 2**20))")
            assert program.ask("more.tier, more.reason")[0] == "host"
            assert program.ask("time.monotonic() - began") < 10 * CALL_SECONDS
            assert program.ask("torch.equal(more.fetch(), torch.zeros(20 * 2**20))")
            machine.set_process(lender, 4242, 0)
            with borrowing(node, home_gpu=machine.uuids[0]) as another:
                grant = acquire(another)  # nobody else notices
                if grant.descriptor is not None:
                    os.close(grant.descriptor)
                release(another, grant)
        assert program.exit_status == 0
        words = log.read_text()
        assert words.count("can't be given back") == 1
        assert f"{CODE.name}: " in words
        assert "context is dead" in words
        assert "Traceback" not in words
        wait_until(lambda: not machine.allocations(), what="every byte is given back")
        wait_until(
            lambda: node.scrape()[f'aqua_quarantined_bytes{{gpu="{lender}"}}'] == 0, what="healed"
        )


def test_a_context_that_dies_first_is_the_reason_that_is_counted(
    machine: FakeCudaNode, tmp_path: Path
) -> None:
    """No slab can be opened: host memory, the reason in the handle, the driver's word in the log."""
    log = tmp_path / "client.log"
    variables = {"AQUA_HOME_GPU": machine.uuids[0]}
    with (
        served(machine) as node,
        Program(machine.environment(AQUA_SOCKET=node.socket, **variables)) as program,
    ):
        program.run(BEGIN.format(log=str(log)))
        machine.kill_context(int(CODE), pid=program.pid, function="cuIpcOpenMemHandle")

        def is_refused() -> bool:
            program.run("handle = client.offload(tensor)")
            return bool(program.ask("handle.reason") == "cuda_open")

        wait_until(is_refused, seconds=FIRST_SECONDS, what="a slab that can't be opened")
        assert program.ask("torch.equal(handle.fetch(), tensor)")
        assert program.ask("client.stats()['fallbacks']['cuda_open']") >= 1
        assert CODE.name in log.read_text()
        wait_until(lambda: not machine.allocations(), what="the slab has gone back")
    assert program.exit_status == 0
