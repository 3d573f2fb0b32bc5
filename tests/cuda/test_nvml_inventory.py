"""What a keeper finds out by NVML on recorded nodes: GPUs, links, readings, and its list of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from aqua_daemon.keeper import inventory
from aqua_daemon.keeper.inventory import Identity, Reading
from aqua_daemon.keeper.nvml import Nvml, NvmlError
from tests.cuda.inventories import ANSWER_SECONDS, identities, node_like, reading
from tests.cuda.keepers import MIB
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda.description import NodeDescription
from tests.fakes.topologies import dgx_a100, hgx_h100, mixed_models, one_with_mig, pcie_l40s


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
