"""Why a GPU is not lent by what NVML says of it, and of what its owner is only warned."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aqua_daemon.keeper import inventory
from aqua_daemon.keeper.inventory import Reading
from tests.cuda.inventories import ANSWER_SECONDS, node_like, reading
from tests.cuda.keepers import MIB
from tests.fakes.cuda_node import fake_cuda_node
from tests.fakes.topologies import one_with_mig
from tests.nodes import wait_until

THERMAL = 0x40  # nvmlClocksThrottleReasonHwThermalSlowdown
IDLE = 0x1
OTHER_USER = 65534


def test_a_gpu_cut_by_mig_is_refused_and_its_neighbours_are_not(tmp_path: Path) -> None:
    """With the command that would change it."""
    node = node_like(tmp_path, one_with_mig())
    refusals = [inventory.not_lending(reading(node, index)) for index in range(8)]
    assert "MIG is enabled" in refusals[2]
    assert "nvidia-smi -mig 0" in refusals[2]
    assert not any(refusals[:2] + refusals[3:])


@pytest.mark.parametrize("mode", ["exclusive_process", "prohibited"])
def test_a_compute_mode_that_keeps_others_out_is_refused(tmp_path: Path, mode: str) -> None:
    """It is named as nvidia-smi names it."""
    node = fake_cuda_node(tmp_path, gpus=1)
    node.change_gpu(node.uuids[0], compute_mode=mode)
    refusal = inventory.not_lending(reading(node))
    assert f"compute mode is {mode.upper()}" in refusal
    assert "nvidia-smi -c 0" in refusal


def test_ecc_off_and_heat_are_warned_of(tmp_path: Path) -> None:
    """An idle clock is none, nor is a model without ECC."""
    node = fake_cuda_node(tmp_path, gpus=3)
    node.change_gpu(node.uuids[0], ecc=False, throttle_reasons=THERMAL | IDLE)
    node.change_gpu(node.uuids[1], ecc=None, throttle_reasons=IDLE)
    ecc, heat = inventory.warnings(reading(node))
    assert ecc.startswith("ECC is off")
    assert heat == "it is slowed by heat (SM clock 990 MHz)"
    assert not inventory.warnings(reading(node, 1))
    assert not inventory.not_lending(reading(node))


def test_memory_that_waits_for_a_repair_is_warned_of_and_what_has_none_left_is_refused(
    tmp_path: Path,
) -> None:
    """The driver keeps what has failed out of use; where it can't any more nothing is lent."""
    node = fake_cuda_node(tmp_path, gpus=1)
    assert not inventory.warnings(reading(node))
    node.change_gpu(node.uuids[0], uncorrected_ecc_errors=2)
    assert not inventory.not_lending(reading(node))
    assert "waits for a repair" in inventory.warnings(reading(node))[0]
    node.change_gpu(node.uuids[0], uncorrected_ecc_errors=2, rows_exhausted=True)
    assert "have it replaced" in inventory.not_lending(reading(node))


@contextmanager
def process_named(directory: Path, name: str, *, user: int | None = None) -> Iterator[int]:
    """The pid of a process of that name that does nothing."""
    program = directory / name
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    process = subprocess.Popen([str(program), "600"], user=user, cwd="/")
    try:
        link = Path(f"/proc/{process.pid}/exe")
        wait_until(lambda: link.readlink().name == name, what=f"{name} runs")
        yield process.pid
    finally:
        process.kill()
        process.wait(ANSWER_SECONDS)


def test_an_mps_server_of_one_user_is_warned_of(tmp_path: Path) -> None:
    """Its clients share one fate, but they are one tenant."""
    node = fake_cuda_node(tmp_path, gpus=1)
    with (
        process_named(tmp_path, "nvidia-cuda-mps-server") as server,
        process_named(tmp_path, "engine") as engine,
    ):
        node.set_process(node.uuids[0], server, 30 * MIB)
        node.set_process(node.uuids[0], engine, 30 * MIB)
        found = reading(node)
    assert found.mps_users == frozenset([os.getuid()])
    assert not inventory.not_lending(found)
    assert "an MPS server runs there" in inventory.warnings(found)[0]


def test_an_mps_server_of_several_users_is_refused(tmp_path: Path) -> None:
    """So is one with a client that can't be seen."""
    tmp_path.chmod(0o755)
    node = fake_cuda_node(tmp_path, gpus=1)
    with process_named(tmp_path, "nvidia-cuda-mps-server") as server:
        node.set_process(node.uuids[0], server, 30 * MIB)
        with process_named(tmp_path, "engine") as engine:
            node.set_process(node.uuids[0], engine, 30 * MIB)
            unseen = 4_194_305  # above the highest pid there can be
            node.set_process(node.uuids[0], unseen, 30 * MIB)
            found = reading(node)
    assert found.mps_users == frozenset([os.getuid(), None])
    assert "clients of several users" in inventory.not_lending(found)


@pytest.mark.parametrize(
    ("users", "is_refused"),
    [
        (None, False),
        (frozenset[int | None](), False),
        (frozenset[int | None]({1000}), False),
        (frozenset[int | None]({1000, OTHER_USER}), True),
        (frozenset[int | None]({None}), True),
    ],
)
def test_mps_is_refused_for_strangers_only(
    users: frozenset[int | None] | None, *, is_refused: bool
) -> None:
    """A fault of one client ends all of them: that may be one tenant's risk, never two's."""
    found = Reading(total_bytes=1, used_bytes=0, process_bytes={}, mps_users=users)
    assert bool(inventory.not_lending(found)) == is_refused
