"""What a keeper finds out by NVML on recorded nodes, and what it makes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from aqua_daemon.keeper import inventory
from aqua_daemon.keeper.inventory import Identity, Reading
from aqua_daemon.keeper.nvml import Nvml, NvmlError
from aqua_daemon.keeper.nvml_reader import NvmlReader
from tests.cuda.keepers import MIB, SLAB_BYTES, running_keeper, tenant
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda.description import NodeDescription
from tests.fakes.topologies import dgx_a100, hgx_h100, mixed_models, one_with_mig, pcie_l40s
from tests.keeper.peers import Peer
from tests.nodes import wait_until

THERMAL = 0x40  # nvmlClocksThrottleReasonHwThermalSlowdown
IDLE = 0x1
OTHER_USER = 65534
ANSWER_SECONDS = 20.0


def node_like(directory: Path, description: NodeDescription) -> FakeCudaNode:
    return fake_cuda_node(directory, topology=description)


def identities(node: FakeCudaNode) -> list[Identity]:
    with node.in_process(), Nvml() as nvml:
        return [nvml.identity(uuid) for uuid in nvml.uuids()]


def reading(node: FakeCudaNode, index: int = 0) -> Reading:
    with node.in_process(), Nvml() as nvml:
        return nvml.reading(node.uuids[index])


def matrix(found: Sequence[Identity]) -> list[list[str]]:
    """As nvidia-smi draws it: NV18, PIX, ...; X for a GPU and itself."""
    rows = []
    for each in found:
        to = {link.peer: f"{link.kind}{link.count or ''}" for link in each.links}
        rows.append([to.get(other.uuid, "X") for other in found])
    return rows


@pytest.mark.parametrize(
    ("description", "linked"),
    [
        (hgx_h100(), "NV18"),
        (hgx_h100(gpus=4), "NV18"),
        (dgx_a100(), "NV12"),
        (mixed_models(), "PHB"),
    ],
    ids=["hgx-h100", "half-an-hgx", "dgx-a100", "mixed"],
)
def test_every_pair_of_a_recorded_node_is_linked_as_it_was(
    tmp_path: Path, description: NodeDescription, linked: str
) -> None:
    """GPUs by UUID in NVML's order, with their models, and each link both ways."""
    found = identities(node_like(tmp_path, description))
    assert [each.uuid for each in found] == [gpu.uuid for gpu in description.gpus]
    assert [each.model for each in found] == [gpu.name for gpu in description.gpus]
    assert [each.numa_node for each in found] == [gpu.numa_node for gpu in description.gpus]
    count = len(found)
    assert matrix(found) == [
        ["X" if row == column else linked for column in range(count)] for row in range(count)
    ]


def test_pcie_distances_differ_by_pair(tmp_path: Path) -> None:
    """Two sockets with two GPUs each: near within one, far across."""
    found = identities(node_like(tmp_path, pcie_l40s()))
    assert matrix(found) == [
        ["X", "NODE", "SYS", "SYS"],
        ["NODE", "X", "SYS", "SYS"],
        ["SYS", "SYS", "X", "NODE"],
        ["SYS", "SYS", "NODE", "X"],
    ]
    assert all(link.count == 0 and link.has_peer_access for each in found for link in each.links)


def test_peer_access_is_told_pair_by_pair(tmp_path: Path) -> None:
    """On a node of mixed models only those of one model reach each other."""
    found = identities(node_like(tmp_path, mixed_models()))
    models = {each.uuid: each.model for each in found}
    for each in found:
        for link in each.links:
            assert link.has_peer_access == (models[link.peer] == each.model)


def test_a_reading_has_what_all_use(tmp_path: Path) -> None:
    """The driver's own share and each process's; nothing that would keep it from being lent."""
    node = fake_cuda_node(tmp_path, gpus=2, memory=1024 * MIB, system_bytes=10 * MIB)
    node.set_process(node.uuids[0], 4242, 64 * MIB)
    found = reading(node)
    assert (found.total_bytes, found.used_bytes) == (1024 * MIB, 74 * MIB)
    assert found.process_bytes == {4242: 64 * MIB}
    assert (found.has_mig, found.compute_mode, found.has_ecc) == (False, "DEFAULT", True)
    assert (found.sm_clock_mhz, found.memory_clock_mhz) == (1980, 2619)
    assert not inventory.not_lending(found)
    assert not inventory.warnings(found)


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


def refusing(node: FakeCudaNode, code: str, *names: str) -> tuple[Identity, Reading]:
    """The first GPU by an NVML whose functions of these names fail."""
    with node.in_process(), Nvml() as nvml:
        import pynvml

        def refuse(*_arguments: object) -> NoReturn:
            if code == "MISMATCH":
                raise pynvml.NVMLLibraryMismatchError("versions differ")
            raise pynvml.NVMLError(getattr(pynvml, f"NVML_ERROR_{code}"))

        for name in names:
            setattr(pynvml, name, refuse)
        return nvml.identity(node.uuids[0]), nvml.reading(node.uuids[0])


def test_what_decides_nothing_may_fail(tmp_path: Path) -> None:
    """A link that is down or a sensor that is not there keeps no GPU from being lent."""
    node = fake_cuda_node(tmp_path, gpus=2)
    hints = (
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetP2PStatus",
        "nvmlDeviceGetTopologyCommonAncestor",
        "nvmlDeviceGetMemoryAffinity",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetEccMode",
        "nvmlSystemGetProcessName",
    )
    node.set_process(node.uuids[0], 4242, MIB)
    found, now = refusing(node, "UNKNOWN", *hints)
    assert [(link.kind, link.has_peer_access) for link in found.links] == [("SYS", False)]
    assert (found.numa_node, now.has_ecc, now.sm_clock_mhz, now.slowed_by) == (None, None, 0, ())
    assert not inventory.not_lending(now)


def test_what_decides_must_be_known(tmp_path: Path) -> None:
    """Whether a GPU may be lent is not guessed."""
    node = fake_cuda_node(tmp_path, gpus=1)
    for name in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMigMode", "nvmlDeviceGetComputeMode"):
        with pytest.raises(NvmlError, match="Unknown"):
            refusing(node, "UNKNOWN", name)


def test_an_older_library_without_lists_of_processes_is_read(tmp_path: Path) -> None:
    """The module says so by an error that is none of NVML's."""
    node = fake_cuda_node(tmp_path, gpus=1)
    lists = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
    _, now = refusing(node, "MISMATCH", *lists)
    assert now.process_bytes == {}


def test_a_gpu_that_is_gone_is_an_error_and_the_others_are_read(tmp_path: Path) -> None:
    """In NVML's words."""
    node = fake_cuda_node(tmp_path, gpus=2)
    node.remove_gpu(node.uuids[0])
    with pytest.raises(NvmlError, match="GPU is lost"):
        reading(node)
    assert reading(node, 1).total_bytes == 80 * 2**30


def test_the_list_names_every_gpu_and_why_it_is_not_lent(tmp_path: Path) -> None:
    """As JSON, by a process that ends; one that is lost is counted, and no context is made."""
    node = node_like(tmp_path, one_with_mig())
    node.remove_gpu(node.uuids[5])
    words = [sys.executable, "-m", "aqua_daemon", "keeper", "--list"]
    done = subprocess.run(
        words, env=node.environment(), capture_output=True, timeout=ANSWER_SECONDS, check=False
    )
    listed = json.loads(done.stdout)
    gpus = listed["gpus"]
    assert [gpu["uuid"] for gpu in gpus] == node.uuids[:5] + node.uuids[6:]
    assert listed["lost"] == 1
    assert "MIG" in gpus[2]["not_lending"]
    assert gpus[0]["not_lending"] == ""
    assert (gpus[0]["model"], gpus[0]["links"][0]["count"]) == ("NVIDIA H100 80GB HBM3", 18)
    assert node.contexts_made == 0


def test_without_a_driver_the_list_fails_with_the_reason(tmp_path: Path) -> None:
    """NVML's own word for it, on stderr."""
    node = fake_cuda_node(tmp_path, gpus=1)
    environment = node.environment()
    del environment["FAKE_CUDA_NODE"]
    words = [sys.executable, "-m", "aqua_daemon", "keeper", "--list"]
    done = subprocess.run(
        words, env=environment, capture_output=True, timeout=ANSWER_SECONDS, check=False, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "NVML can't start: NVML Shared Library Not Found" in done.stderr


def test_a_reading_during_a_change_is_not_believed(tmp_path: Path) -> None:
    """What others use is never what the keeper itself is making right now."""
    node = fake_cuda_node(tmp_path, gpus=1)
    with node.in_process():
        reader = NvmlReader(node.uuids[0])
        try:
            reader.wait_for_first(ANSWER_SECONDS)
            before = reader.latest
            with reader.held.changing():
                node.set_process(node.uuids[0], 4242, SLAB_BYTES)  # the slab, made
                reader.wake()
                assert reader.latest == before
                reader.held.nbytes += SLAB_BYTES
            reader.wake()
            wait_until(lambda: reader.latest is not before, what="it is read again")
            assert reader.latest is not None
            assert reader.latest.others_bytes == 0
        finally:
            reader.close()


def awaited_refusal(daemon: Peer, gpu: str, words: str) -> None:
    daemon.report_that(gpu, lambda report: words in report.not_lending)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"compute_mode": "exclusive_process"}, "EXCLUSIVE_PROCESS"), ({"mig": True}, "MIG")],
    ids=["exclusive", "mig"],
)
def test_a_refused_gpu_gets_no_context_until_it_may_be_lent(
    tmp_path: Path, fields: dict[str, str | bool], words: str
) -> None:
    """Its owner would be kept out by one; it is lent as soon as the mode is changed."""
    node = fake_cuda_node(tmp_path, gpus=2)
    gpu = node.uuids[0]
    node.change_gpu(gpu, **fields)
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon, tenant(node) as user:
        awaited_refusal(daemon, gpu, words)
        failed = daemon.answer(daemon.ask_for_slab(user, gpu=gpu, nbytes=SLAB_BYTES)).failed
        assert failed.code == "FAILED_PRECONDITION"
        assert words in failed.message
        assert {context.pid for context in node.contexts()} == {user.pid}
        node.change_gpu(gpu)
        daemon.report_that(gpu, lambda report: not report.not_lending)
        wait_until(lambda: len(node.contexts()) == 2, what="the keeper makes its context")
        daemon.allocate(user, gpu=gpu, nbytes=SLAB_BYTES, lease=2)


def test_a_stalled_nvml_holds_nothing_up_and_stops_lending(tmp_path: Path) -> None:
    """Slabs are freed and reports come meanwhile; old figures are told as old."""
    node = fake_cuda_node(tmp_path, gpus=2)
    gpu = node.uuids[0]
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon, tenant(node) as user:
        slab = daemon.allocate(user, gpu=gpu, nbytes=SLAB_BYTES)
        daemon.report_that(gpu, lambda report: report.other_bytes == 500 * MIB)
        node.stall_nvml(gpu)
        assert daemon.free(slab).freed.scrubbed_bytes == SLAB_BYTES
        awaited_refusal(daemon, gpu, "NVML has not answered for")
        failed = daemon.answer(daemon.ask_for_slab(user, gpu=gpu, nbytes=SLAB_BYTES, lease=2))
        assert failed.failed.code == "FAILED_PRECONDITION"
        node.resume_nvml(gpu)
        daemon.report_that(gpu, lambda report: not report.not_lending)


def test_a_gpu_that_disappears_ends_its_keeper_with_the_reason(tmp_path: Path) -> None:
    """What it held is lost with it; a keeper started again stays and says why nothing is lent."""
    node = fake_cuda_node(tmp_path, gpus=2)
    gpu = node.uuids[0]
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon:
        daemon.report_that(gpu, lambda report: not report.not_lending)
        node.remove_gpu(gpu)
        daemon.report_that(gpu, lambda report: bool(report.not_lending))
        assert daemon.has_ended()
        assert keeper.wait_for_end() == 1
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon:
        awaited_refusal(daemon, gpu, "GPU is lost")
