"""The fake NVML: recorded nodes as it tells them, what changes, what stalls, and its names."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.cuda_program import Program
from tests.fakes.fake_cuda.description import GIB, MIB, NodeDescription
from tests.fakes.fake_cuda.nvml_names import answered
from tests.fakes.fake_cuda.nvml_real import real
from tests.fakes.topologies import (
    dgx_a100,
    hgx_h100,
    mixed_models,
    one_with_mig,
    pcie_l40s,
    two_rtx_5090,
)

NODE, SYS, PHB = 40, 50, 30


@contextmanager
def nvml_of(directory: Path, topology: NodeDescription | None = None) -> Iterator[ModuleType]:
    """The module, initialised, of a node that is this process's meanwhile."""
    node = fake_cuda_node(directory, topology=topology)
    with node.in_process():
        import pynvml

        pynvml.nvmlInit()
        yield pynvml


@pytest.fixture
def node(tmp_path: Path) -> FakeCudaNode:
    return fake_cuda_node(tmp_path, gpus=2, memory=80 * GIB, system_bytes=600 * MIB)


@pytest.fixture
def nvml(node: FakeCudaNode) -> Iterator[ModuleType]:
    with node.in_process():
        import pynvml

        pynvml.nvmlInit()
        yield pynvml


def test_every_function_is_called_as_the_real_one() -> None:
    """Each name exists in the installed module, with the same parameters."""
    for name, function in answered().items():
        assert inspect.signature(function).parameters.keys() == (
            inspect.signature(getattr(real, name)).parameters.keys()
        ), name
    assert len(answered()) > 50


def test_its_constants_and_errors_are_the_real_ones(nvml: ModuleType) -> None:
    """All public names are there; a function without an answer is not supported."""
    missing = [name for name in vars(real) if name[0] != "_" and not hasattr(nvml, name)]
    assert missing == []
    assert nvml.NVMLError_GpuIsLost is real.NVMLError_GpuIsLost
    assert nvml.NVML_TOPOLOGY_SYSTEM == real.NVML_TOPOLOGY_SYSTEM
    with pytest.raises(nvml.NVMLError_NotSupported, match="Not Supported"):
        nvml.nvmlDeviceGetSerial(nvml.nvmlDeviceGetHandleByIndex(0))


def test_it_is_initialised_as_often_as_it_is_shut_down(nvml: ModuleType) -> None:
    """Uninitialised it answers nothing."""
    nvml.nvmlInitWithFlags(0)
    nvml.nvmlShutdown()
    assert nvml.nvmlDeviceGetCount() == 2
    nvml.nvmlShutdown()
    for call in (nvml.nvmlDeviceGetCount, nvml.nvmlShutdown, nvml.nvmlSystemGetDriverVersion):
        with pytest.raises(nvml.NVMLError_Uninitialized):
            call()


def test_handles_are_found_by_index_uuid_and_bus(nvml: ModuleType, node: FakeCudaNode) -> None:
    """They tell the same GPU; unknown ones are not found."""
    handle = nvml.nvmlDeviceGetHandleByIndex(1)
    assert nvml.nvmlDeviceGetUUID(handle) == node.uuids[1]
    assert nvml.nvmlDeviceGetHandleByUUID(node.uuids[1]) == handle
    bus = nvml.nvmlDeviceGetPciInfo(handle).busId
    assert nvml.nvmlDeviceGetHandleByPciBusId(bus) == handle
    assert nvml.nvmlDeviceGetIndex(handle) == 1
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(2)
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetHandleByUUID("GPU-none")


def test_memory_is_what_the_driver_gave(nvml: ModuleType, node: FakeCudaNode) -> None:
    """Contexts, allocations and other processes, each charged to its pid; the system's apart."""
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    node.set_process(node.uuids[0], 4242, 3 * GIB)
    with Program(node.environment(), "use_device(0); ok(d.cuMemAlloc(1 << 30))") as program:
        theirs = GIB + 500 * MIB
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        assert (memory.total, memory.used) == (80 * GIB, theirs + 3 * GIB + 600 * MIB)
        assert memory.free == memory.total - memory.used
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        assert (memory.used, memory.reserved) == (theirs + 3 * GIB, 600 * MIB)
        assert memory.free == memory.total - memory.used - memory.reserved
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        assert {each.pid: each.usedGpuMemory for each in processes} == {
            4242: 3 * GIB,
            program.pid: theirs,
        }
        assert program.ask("ok(d.cuMemGetInfo())[0]") == memory.free
    node.set_process(node.uuids[0], 4242, 0)
    assert nvml.nvmlDeviceGetComputeRunningProcesses(handle) == []


def test_an_orphaned_mapping_is_charged_to_its_importer(
    nvml: ModuleType, node: FakeCudaNode
) -> None:
    """Once the exporter is gone."""
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    begin = "use_device(0); p = ok(d.cuMemAlloc(1 << 30)); h = handle_of(p)"
    with (
        Program(node.environment(), begin) as exporter,
        Program(node.environment(), "use_device(1)") as importer,
    ):
        importer.run(f"ok(open_handle({exporter.ask('h')!r}))")
        pids = [each.pid for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        assert pids == [exporter.pid]
        exporter.kill()
        [process] = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        assert (process.pid, process.usedGpuMemory) == (importer.pid, GIB)


def test_clients_of_mps_are_listed_apart(tmp_path: Path) -> None:
    """As NVML does."""
    node = fake_cuda_node(tmp_path, gpus=1, mps=True)
    with node.in_process(), Program(node.environment(), "use_device(0)") as program:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle) == []
        [client] = pynvml.nvmlDeviceGetMPSComputeRunningProcesses(handle)
        assert client.pid == program.pid


def test_an_nvswitch_server(tmp_path: Path) -> None:
    """HGX H100: 18 links into the switch, all peers, two NUMA nodes with their CPUs."""
    with nvml_of(tmp_path, hgx_h100()) as nvml:
        gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(8)]
        for handle in gpus:
            states = [nvml.nvmlDeviceGetNvLinkState(handle, link) for link in range(18)]
            kinds = {nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) for link in range(18)}
            assert (states, kinds) == ([1] * 18, {nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH})
        with pytest.raises(nvml.NVMLError_InvalidArgument):
            nvml.nvmlDeviceGetNvLinkState(gpus[0], 18)
        assert nvml.nvmlDeviceGetTopologyCommonAncestor(gpus[0], gpus[3]) == NODE
        assert nvml.nvmlDeviceGetTopologyCommonAncestor(gpus[0], gpus[4]) == SYS
        assert len(nvml.nvmlDeviceGetTopologyNearestGpus(gpus[0], NODE)) == 3
        assert list(nvml.nvmlDeviceGetMemoryAffinity(gpus[5], 1, 0)) == [2]
        cpus = list(nvml.nvmlDeviceGetCpuAffinity(gpus[0], 3))
        assert cpus == [(1 << 48) - 1, 0xFFFFFFFF << 32, (1 << 16) - 1]
        with pytest.raises(nvml.NVMLError_NotSupported):
            nvml.nvmlDeviceGetNumaNodeId(gpus[0])
        status = nvml.nvmlDeviceGetP2PStatus(gpus[0], gpus[7], nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        assert status == nvml.NVML_P2P_STATUS_OK
        [count] = nvml.nvmlDeviceGetFieldValues(gpus[0], [nvml.NVML_FI_DEV_NVLINK_LINK_COUNT])
        assert (count.nvmlReturn, count.value.uiVal) == (0, 18)


def test_directly_bonded_gpus_name_each_other(tmp_path: Path) -> None:
    """Four H100 with NV6 between each pair: 18 links, 6 to each."""
    plain = hgx_h100(gpus=4)
    links = tuple(tuple(kind.replace("NV18", "NV6") for kind in row) for row in plain.links)
    with nvml_of(tmp_path, replace(plain, links=links, nvswitch=False)) as nvml:
        handle = nvml.nvmlDeviceGetHandleByIndex(1)
        ends = [nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId for link in range(18)]
        assert {end: ends.count(end) for end in ends} == {
            gpu.pci_bus_id: 6 for gpu in plain.gpus if gpu != plain.gpus[1]
        }


def test_a_dgx_a100(tmp_path: Path) -> None:
    """12 links each; GPUs 0 and 1 on NUMA node 3, 2 and 3 on node 1."""
    with nvml_of(tmp_path, dgx_a100()) as nvml:
        gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(8)]
        assert nvml.nvmlDeviceGetNvLinkState(gpus[0], 11) == 1
        nodes = [nvml.nvmlDeviceGetMemoryAffinity(handle, 1, 0)[0] for handle in gpus]
        assert nodes == [8, 8, 2, 2, 128, 128, 32, 32]
        assert nvml.nvmlDeviceGetCudaComputeCapability(gpus[0]) == (8, 0)
        assert nvml.nvmlDeviceGetMigMode(gpus[0]) == [0, 0]


def test_pcie_only_gpus_have_no_nvlink(tmp_path: Path) -> None:
    """Pairs (0,1) and (2,3) on a node, the others across the system; no MIG."""
    with nvml_of(tmp_path, pcie_l40s()) as nvml:
        gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(4)]
        ancestors = [nvml.nvmlDeviceGetTopologyCommonAncestor(gpus[0], gpu) for gpu in gpus]
        assert ancestors == [0, NODE, SYS, SYS]
        with pytest.raises(nvml.NVMLError_NotSupported):
            nvml.nvmlDeviceGetMigMode(gpus[0])
        with pytest.raises(nvml.NVMLError_NotSupported):
            nvml.nvmlDeviceGetNvLinkState(gpus[0], 0)
        status = nvml.nvmlDeviceGetP2PStatus(gpus[0], gpus[1], nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        assert status == nvml.NVML_P2P_STATUS_NOT_SUPPORTED


def test_peers_within_a_model_only(tmp_path: Path) -> None:
    """Three models; most pairs cannot; the index that the real module has wrong is refused."""
    with nvml_of(tmp_path, mixed_models()) as nvml:
        gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(7)]
        writes = [
            nvml.nvmlDeviceGetP2PStatus(gpus[0], gpu, nvml.NVML_P2P_CAPS_INDEX_WRITE)
            for gpu in gpus[1:]
        ]
        assert writes == [0, 0, 1, 1, 1, 1]
        assert nvml.nvmlDeviceGetTopologyCommonAncestor(gpus[0], gpus[6]) == PHB
        with pytest.raises(nvml.NVMLError_NotSupported):
            nvml.nvmlDeviceGetEccMode(gpus[0])
        assert nvml.nvmlDeviceGetEccMode(gpus[6]) == [1, 1]
        with pytest.raises(Exception, match="convert"):
            nvml.nvmlDeviceGetP2PStatus(gpus[0], gpus[1], nvml.NVML_P2P_CAPS_INDEX_READ)


def test_consumer_cards_refuse_peers_although_they_are_alike(tmp_path: Path) -> None:
    """Two RTX 5090 on one host bridge: not supported by the GPU."""
    with nvml_of(tmp_path, two_rtx_5090()) as nvml:
        one, other = (nvml.nvmlDeviceGetHandleByIndex(index) for index in range(2))
        status = nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_WRITE)
        assert status == nvml.NVML_P2P_STATUS_GPU_NOT_SUPPORTED


def test_a_gpu_with_mig(tmp_path: Path) -> None:
    """Its mode says so."""
    with nvml_of(tmp_path, one_with_mig()) as nvml:
        modes = [
            nvml.nvmlDeviceGetMigMode(nvml.nvmlDeviceGetHandleByIndex(index))[0]
            for index in range(8)
        ]
        assert modes == [0, 0, 1, 0, 0, 0, 0, 0]


def test_a_gpu_that_disappears_is_lost(nvml: ModuleType, node: FakeCudaNode) -> None:
    """Its handles, old and new; the other goes on, and the count stays."""
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    node.remove_gpu(node.uuids[0])
    for name, argument in (
        ("nvmlDeviceGetMemoryInfo", handle),
        ("nvmlDeviceGetHandleByUUID", node.uuids[0]),
        ("nvmlDeviceGetComputeRunningProcesses", handle),
    ):
        with pytest.raises(nvml.NVMLError_GpuIsLost):
            getattr(nvml, name)(argument)
    assert nvml.nvmlDeviceGetCount() == 2
    assert nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(1)) == node.uuids[1]


def test_health_changes_while_it_is_watched(nvml: ModuleType, node: FakeCudaNode) -> None:
    """ECC off, errors, throttling and compute mode, from one call to the next."""
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == 1980
    slowed = nvml.nvmlClocksThrottleReasonHwSlowdown
    node.change_gpu(node.uuids[0], throttle_reasons=slowed, uncorrected_ecc_errors=3)
    assert nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == slowed
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == 990
    errors = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    assert nvml.nvmlDeviceGetTotalEccErrors(handle, *errors) == 3
    node.change_gpu(node.uuids[0], ecc=False, compute_mode="exclusive_process")
    assert nvml.nvmlDeviceGetEccMode(handle) == [0, 0]
    assert nvml.nvmlDeviceGetComputeMode(handle) == nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS


def test_a_sick_gpu_stalls_its_caller_alone(nvml: ModuleType, node: FakeCudaNode) -> None:
    """The call comes back when the GPU does."""
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    node.stall_nvml(node.uuids[0])
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(nvml.nvmlDeviceGetUUID(handle)))
    asking.start()
    assert nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(1)) == node.uuids[1]
    assert answers == []
    node.resume_nvml(node.uuids[0])
    asking.join(10)
    assert answers == [node.uuids[0]]


def test_processes_have_names(nvml: ModuleType) -> None:
    """Those that are alive."""
    assert "python" in nvml.nvmlSystemGetProcessName(os.getpid())
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlSystemGetProcessName(2**22 + 1)
