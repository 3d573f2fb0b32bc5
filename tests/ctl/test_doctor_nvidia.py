"""What doctor writes down of GPUs: by a child that asks a made-up NVML of recorded nodes, and in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aqua_daemon.ctl.doctor import nvml_asking
from aqua_daemon.ctl.doctor.findings import Finding, Level
from aqua_daemon.ctl.doctor.nvidia import examine_nvidia
from aqua_daemon.ctl.doctor.nvidia_facts import DeviceNode, Nvidia, ServiceUser
from aqua_daemon.ctl.doctor.report import diagnosed
from aqua_daemon.ctl.doctor.surroundings import Namespaces, NumaNode, namespaces, numa_nodes
from tests.ctl.machines import HEALTHY
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda.description import NodeDescription
from tests.fakes.topologies import (
    a800,
    dgx_a100,
    four_h100,
    hgx_h100,
    hgx_h100_four_numa,
    mixed_models,
    one_with_mig,
    pcie_l40s,
    two_rtx_5090,
)

VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Release Build\n"
SECONDS = 20.0  # for a child to start on two cores that others use too

Examine = Callable[[FakeCudaNode, float], Nvidia]


@pytest.fixture
def examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """The facts of a made-up node, with its driver in a /proc of its own."""
    version = tmp_path / "proc" / "driver" / "nvidia" / "version"
    version.parent.mkdir(parents=True)
    version.write_text(VERSION)

    def examine(node: FakeCudaNode, seconds: float) -> Nvidia:
        for name, value in node.environment().items():
            monkeypatch.setenv(name, value)
        return examine_nvidia(seconds=seconds, proc=tmp_path / "proc", dev=tmp_path)

    return examine


def test_each_gpu_is_asked_for_its_settings(tmp_path: Path, examined: Examine) -> None:
    """Those in force, not those pending; one that is lost is named, and hides no other."""
    node = fake_cuda_node(tmp_path / "node", gpus=3)
    node.change_gpu(
        node.uuids[1],
        compute_mode="exclusive_process",
        ecc=False,
        ecc_pending=True,
        persistence=False,
    )
    node.remove_gpu(node.uuids[2])
    found = examined(node, SECONDS)
    assert (found.driver, found.library, found.cuda_version) == ("580.95.05", "580.95.05", 13000)
    assert found.nvml_trouble == ""
    well, other, lost = found.gpus
    assert (well.uuid, well.model) == (node.uuids[0], "NVIDIA H100 80GB HBM3")
    assert (well.mig, well.ecc, well.compute_mode, well.persistence) == (
        False,
        True,
        "default",
        True,
    )
    assert (well.minor, well.numa_node, well.nvlinks, well.nvlinks_to_switch) == (0, 0, 18, 18)
    assert (other.compute_mode, other.ecc, other.persistence) == ("exclusive", False, False)
    assert (lost.uuid, lost.trouble) == ("number 2", "NVML: GPU is lost")
    assert [(link.peer, link.kind, link.access) for link in well.links] == [
        (other.uuid, "NV", "OK")
    ]


def test_a_setting_that_a_gpu_does_not_have_is_neither_on_nor_off(
    tmp_path: Path, examined: Examine
) -> None:
    """NVML says that it is not supported, which is no trouble."""
    node = fake_cuda_node(tmp_path / "node", topology=pcie_l40s())
    node.change_gpu(node.uuids[0], ecc=None)
    gpu = examined(node, SECONDS).gpus[0]
    assert (gpu.mig, gpu.ecc, gpu.trouble) == (None, None, "")


def test_errors_of_memory_and_repairs_are_written_down(tmp_path: Path, examined: Examine) -> None:
    """As counted since the driver was loaded; a repair that waits, and one that can't be."""
    node = fake_cuda_node(tmp_path / "node", gpus=2)
    node.change_gpu(node.uuids[1], uncorrected_ecc_errors=3, rows_exhausted=True)
    well, bad = examined(node, SECONDS).gpus
    assert (well.uncorrected_errors, well.repair_pending, well.repair_failed) == (0, False, False)
    assert (bad.uncorrected_errors, bad.repair_pending, bad.repair_failed) == (3, True, True)


@pytest.mark.parametrize(
    ("topology", "kinds", "refusals"),
    [
        (hgx_h100, {"NV"}, set()),
        (pcie_l40s, {"NODE", "SYS"}, set()),
        (mixed_models, {"PHB"}, {"CNS"}),
        (one_with_mig, {"NV"}, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_links_are_those_of_the_recorded_node(
    tmp_path: Path,
    examined: Examine,
    topology: Callable[[], NodeDescription],
    kinds: set[str],
    refusals: set[str],
) -> None:
    """Every pair in both directions, by what, and why not."""
    node = fake_cuda_node(tmp_path / "node", topology=topology())
    gpus = examined(node, SECONDS).gpus
    links = [link for gpu in gpus for link in gpu.links]
    assert len(links) == len(gpus) * (len(gpus) - 1)
    assert {link.kind for link in links} == kinds
    assert {link.access for link in links} == {"OK", *refusals}
    assert [gpu.mig for gpu in gpus].count(True) == (1 if topology is one_with_mig else 0)


@pytest.mark.parametrize(
    ("topology", "peers", "nvlink"),
    [
        (hgx_h100, Level.OK, "18 a GPU"),
        (hgx_h100_four_numa, Level.OK, "18 a GPU"),
        (dgx_a100, Level.OK, "12 a GPU"),
        (a800, Level.OK, "8 a GPU"),
        (four_h100, Level.OK, "18 a GPU"),
        (pcie_l40s, Level.WARN, "there is none"),
        (mixed_models, Level.WARN, "there is none"),
        (two_rtx_5090, Level.FAIL, "there is none"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_said_of_recorded_nodes(
    tmp_path: Path,
    examined: Examine,
    topology: Callable[[], NodeDescription],
    peers: Level,
    nvlink: str,
) -> None:
    """Those with NVLink lend, by PCIe alone a warning, without any peer access none can."""
    node = fake_cuda_node(tmp_path / "node", topology=topology(), fabric_state=3)
    said = said_of(examined(node, SECONDS))
    assert said["P2P"].level is peers
    assert said["NVLink"].level is Level.OK
    assert nvlink in said["NVLink"].sentence
    assert "fabric manager" not in said or said["fabric manager"].level is Level.OK
    assert not any(name.startswith("GPU") and one.level for name, one in said.items())


def test_links_that_are_down_and_a_fabric_that_is_not_there_are_said(
    tmp_path: Path, examined: Examine
) -> None:
    """On the recorded node where all were up: which GPU, and how many of how many."""
    node = fake_cuda_node(tmp_path / "node", gpus=3, fabric_state=1)
    node.change_gpu(node.uuids[1], nvlinks_down=[3, 7])
    said = said_of(examined(node, SECONDS))
    assert said["NVLink"].level is Level.WARN
    assert f"{node.uuids[1][:12]} has 16 of 18" in said["NVLink"].sentence
    assert said["fabric manager"].level is Level.FAIL
    assert "not started" in said["fabric manager"].sentence


def said_of(nvidia: Nvidia) -> dict[str, Finding]:
    """Doctor's lines, on an else healthy machine."""
    return {one.check: one for one in diagnosed(replace(HEALTHY, nvidia=nvidia))}


def test_a_gpu_that_hangs_is_named_and_the_others_are_told_of(
    tmp_path: Path, examined: Examine
) -> None:
    """It costs the limit, not for ever, and nobody waits for the child."""
    node = fake_cuda_node(tmp_path / "node", gpus=3)
    node.stall_nvml(node.uuids[1])
    began = time.monotonic()
    try:
        found = examined(node, 2.0)
    finally:
        node.resume_nvml(node.uuids[1])
    assert time.monotonic() - began < SECONDS
    assert found.nvml_trouble == ""
    first, hanging, last = found.gpus
    assert hanging.trouble == "NVML has not answered within 2 s for it"
    assert [link.peer for link in first.links] == [last.uuid]


def test_an_nvml_that_hangs_is_not_waited_for(
    tmp_path: Path, examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that never says a word is left; doctor says so and goes on."""
    monkeypatch.setattr(nvml_asking, "COMMAND", ("sleep", "60"))
    monkeypatch.setattr(nvml_asking, "WAKE_SECONDS", 0.05)
    found = examined(fake_cuda_node(tmp_path / "node", gpus=1), 0.05)
    assert found.nvml_trouble == "NVML has not answered within 0.05 s"
    assert found.gpus == ()


def test_a_driver_that_talks_on_stdout_is_overheard(
    tmp_path: Path, examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library may print what it likes there: what is none of the child's words is left out."""
    words = """echo 'no json'; echo '7'; echo '{"library": "580.1", "cuda_version": 13000}'"""
    monkeypatch.setattr(nvml_asking, "COMMAND", ("sh", "-c", words))
    found = examined(fake_cuda_node(tmp_path / "node", gpus=1), SECONDS)
    assert (found.nvml_trouble, found.library) == ("", "580.1")


def test_an_nvml_that_fails_is_quoted(tmp_path: Path, examined: Examine) -> None:
    """Without a library, and where the child itself fails."""
    node = fake_cuda_node(tmp_path / "node", gpus=1)
    (tmp_path / "node" / "node.json").write_text("{}")
    found = examined(node, SECONDS)
    assert found.nvml_trouble.startswith("NVML can't be asked: ")
    assert "\n" not in found.nvml_trouble


def test_what_runs_of_nvidias_is_found_among_the_processes(
    tmp_path: Path, examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names that they were started under; the pipe by its directory."""
    for pid, words in (
        (11, b"/usr/bin/nvidia-cuda-mps-control\0-d\0"),
        (12, b"nv-fabricmanager\0"),
    ):
        (tmp_path / "proc" / str(pid)).mkdir(parents=True)
        (tmp_path / "proc" / str(pid) / "cmdline").write_bytes(words)
    (tmp_path / "control").touch()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    found = examined(fake_cuda_node(tmp_path / "node", gpus=1), SECONDS)
    assert (found.mps_pids, found.fabric_manager_pid) == ((11,), 12)
    assert found.mps_pipes == str(tmp_path)


@pytest.mark.parametrize(
    ("mode", "may"), [(0o666, True), (0o660, True), (0o600, False), (0o640, False)]
)
def test_who_may_use_a_node_is_in_its_mode(mode: int, *, may: bool) -> None:
    """For a member of its group; root always may, its owner by its own bits."""
    node = DeviceNode(path="/dev/nvidia0", mode=mode, owner=7, group=44)
    assert ServiceUser(name="aqua", uid=990, groups=frozenset({44})).may_use(node) == may
    assert ServiceUser(name="root", uid=0, groups=frozenset()).may_use(node)
    assert ServiceUser(name="owner", uid=7, groups=frozenset()).may_use(node)
    assert ServiceUser(name="other", uid=8, groups=frozenset()).may_use(node) == (mode == 0o666)


def test_namespaces_are_told_by_their_numbers(tmp_path: Path) -> None:
    """The first of a machine, another one, the daemon's, and what can't be read."""
    for process, number in (("self", 4026531836), ("42", 4026533000)):
        places = tmp_path / "proc" / process / "ns"
        places.mkdir(parents=True)
        (places / "pid").symlink_to(f"pid:[{number}]")
    (tmp_path / "proc" / "self" / "ns" / "ipc").symlink_to("ipc:[4026533001]")
    (tmp_path / ".dockerenv").touch()
    assert namespaces(daemon_pid=42, root=tmp_path) == Namespaces(
        is_hosts_pid=True, is_hosts_ipc=False, is_daemons_pid=False, container="docker"
    )
    assert namespaces(daemon_pid=0, root=tmp_path).is_daemons_pid is None
    assert namespaces(daemon_pid=0, root=tmp_path / "none").is_hosts_pid is None


def test_numa_nodes_are_read_with_their_memory(tmp_path: Path) -> None:
    """What files take can be had again; a machine without any has none."""
    place = tmp_path / "node1"
    place.mkdir()
    (place / "meminfo").write_text(
        "Node 1 MemTotal:  1000 kB\nNode 1 MemFree:  100 kB\nNode 1 FilePages:  50 kB\n"
    )
    assert numa_nodes(tmp_path) == (NumaNode(number=1, total_bytes=1024000, free_bytes=153600),)
    assert numa_nodes(tmp_path / "none") == ()
