"""The fake NVML: PCIe, NVLink, who is near whom, and which CPUs are near a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from tests.fakes.fake_cuda.description import GpuDescription
from tests.fakes.fake_cuda.nvml_real import fail, real
from tests.fakes.fake_cuda.nvml_state import Device, gpu_of, of_gpu, registry

_LEVELS = {"PIX": 10, "PXB": 20, "PHB": 30, "NODE": 40, "SYS": 50}
_STATUSES = {"OK": 0, "CNS": 1, "GNS": 2, "TNS": 3, "DR": 4, "NS": 5}
_SWITCH_BUS_ID = "00000000:05:00.0"
_PCI_DEVICE_IDS = {"H100": 0x233010DE, "A100": 0x20B210DE, "L40S": 0x26B910DE}
_LINK_MBPS = {2: 25781, 3: 25000, 4: 26562}
_LINK_COUNTS = {2: 6, 3: 12, 4: 18}
_BITS = 64


@of_gpu
def nvmlDeviceGetPciInfo_v3(handle: GpuDescription) -> object:
    return _pci_info(handle.pci_bus_id, handle.name)


nvmlDeviceGetPciInfo = nvmlDeviceGetPciInfo_v3


@of_gpu
def nvmlDeviceGetCurrPcieLinkGeneration(handle: GpuDescription) -> int:
    return handle.pcie_generation


@of_gpu
def nvmlDeviceGetMaxPcieLinkGeneration(handle: GpuDescription) -> int:
    return handle.pcie_generation


@of_gpu
def nvmlDeviceGetCurrPcieLinkWidth(handle: GpuDescription) -> int:  # noqa: ARG001 - NVML has it
    return 16


@of_gpu
def nvmlDeviceGetMaxPcieLinkWidth(handle: GpuDescription) -> int:  # noqa: ARG001 - NVML has it
    return 16


@of_gpu
def nvmlDeviceGetNumaNodeId(handle: GpuDescription) -> int:  # noqa: ARG001 - NVML has it
    """Only for GPUs that are NUMA nodes themselves, which none of these is."""
    fail("NOT_SUPPORTED")


@of_gpu
def nvmlDeviceGetMemoryAffinity(
    handle: GpuDescription,
    nodeSetSize: int,
    scope: int,  # noqa: ARG001 - NVML has it
) -> ctypes.Array[ctypes.c_ulonglong]:
    return _bit_set([handle.numa_node], nodeSetSize)


@of_gpu
def nvmlDeviceGetCpuAffinity(
    handle: GpuDescription, cpuSetSize: int
) -> ctypes.Array[ctypes.c_ulonglong]:
    return _bit_set(_cpus(handle.cpus), cpuSetSize)


def nvmlDeviceGetTopologyCommonAncestor(device1: Device, device2: Device) -> int:
    one, other = gpu_of(device1), gpu_of(device2)
    if device1 == device2:
        return int(real.NVML_TOPOLOGY_INTERNAL)
    kind = registry().node.links[device1.index][device2.index]
    across = "NODE" if one.numa_node == other.numa_node else "SYS"
    return _LEVELS[across if kind.startswith("NV") else kind]


def nvmlDeviceGetTopologyNearestGpus(device: Device, level: int) -> list[Device]:
    gpu_of(device)
    others = [Device(index) for index in range(len(registry().node.gpus)) if index != device.index]
    return [one for one in others if nvmlDeviceGetTopologyCommonAncestor(device, one) == level]


def nvmlDeviceGetP2PStatus(device1: Device, device2: Device, p2pIndex: int) -> int:
    gpu_of(device1)
    gpu_of(device2)
    if not isinstance(p2pIndex, int):  # NVML_P2P_CAPS_INDEX_READ of the real module is a tuple
        raise ctypes.ArgumentError("argument 3: TypeError: Don't know how to convert parameter 3")
    if device1 == device2:
        fail("INVALID_ARGUMENT")
    node = registry().node
    has_nvlink = node.links[device1.index][device2.index].startswith("NV")
    if p2pIndex == real.NVML_P2P_CAPS_INDEX_NVLINK and not has_nvlink:
        return int(real.NVML_P2P_STATUS_NOT_SUPPORTED)
    return _STATUSES[node.peers[device1.index][device2.index]]


def nvmlDeviceGetNvLinkState(device: Device, link: int) -> int:
    return int(_far_end(device, link) is not None)


def nvmlDeviceGetNvLinkVersion(device: Device, link: int) -> int:
    _far_end(device, link)
    return gpu_of(device).nvlink_version


def nvmlDeviceGetNvLinkRemoteDeviceType(handle: Device, link: int) -> int:
    if _active_end(handle, link) == _SWITCH_BUS_ID:
        return int(real.NVML_NVLINK_DEVICE_TYPE_SWITCH)
    return int(real.NVML_NVLINK_DEVICE_TYPE_GPU)


def nvmlDeviceGetNvLinkRemotePciInfo(device: Device, link: int) -> object:
    return _pci_info(_active_end(device, link), "")


def nvmlDeviceGetNvLinkCapability(device: Device, link: int, capability: int) -> int:
    _far_end(device, link)
    return int(capability == real.NVML_NVLINK_CAP_P2P_SUPPORTED)


@of_gpu
def nvmlDeviceGetGpuFabricInfo(device: GpuDescription, gpuFabricInfo: object) -> int:
    state = registry().node.fabric_state
    if not device.nvlink_version or not state:
        fail("NOT_SUPPORTED")
    gpuFabricInfo._obj.state = state  # type: ignore[attr-defined]  # what `byref` gave
    return 0


def nvmlDeviceGetFieldValues(
    handle: Device, fieldIds: Sequence[int | tuple[int, int]]
) -> ctypes.Array[ctypes.Structure]:
    gpu = gpu_of(handle)
    known = {
        real.NVML_FI_DEV_NVLINK_LINK_COUNT: _LINK_COUNTS.get(gpu.nvlink_version),
        real.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON: _LINK_MBPS.get(gpu.nvlink_version),
    }
    values: ctypes.Array[ctypes.Structure] = (real.c_nvmlFieldValue_t * len(fieldIds))()
    for value, wanted in zip(values, fieldIds, strict=True):
        field, scope = wanted if isinstance(wanted, tuple) else (wanted, 0)
        answer = known.get(field)
        value.fieldId, value.scopeId = field, scope
        value.nvmlReturn = 0 if answer is not None else real.NVML_ERROR_NOT_SUPPORTED
        value.valueType = real.NVML_VALUE_TYPE_UNSIGNED_INT
        value.value.uiVal = answer or 0
    return values


def _active_end(device: Device, link: int) -> str:
    end = _far_end(device, link)
    if end is None:
        fail("NOT_SUPPORTED")
    return end


def _far_end(device: Device, link: int) -> str | None:
    """The bus id of what the NVLink leads to; None for one that leads nowhere."""
    gpu, node = gpu_of(device), registry().node
    count = _LINK_COUNTS.get(gpu.nvlink_version)
    if count is None:
        fail("NOT_SUPPORTED")
    if not 0 <= link < count:
        fail("INVALID_ARGUMENT")
    if link in gpu.nvlinks_down:
        return None
    row = node.links[device.index]
    bonded = {peer: int(kind[2:]) for peer, kind in enumerate(row) if kind.startswith("NV")}
    if node.nvswitch:
        return _SWITCH_BUS_ID if link < max(bonded.values(), default=0) else None
    ends = [node.gpus[peer].pci_bus_id for peer, links in bonded.items() for _ in range(links)]
    return ends[link] if link < len(ends) else None


def _pci_info(bus_id: str, name: str) -> object:
    domain, bus, place = bus_id.split(":")
    pci = real.nvmlPciInfo_t()
    pci.domain, pci.bus, pci.device = (
        int(domain, 16),
        int(bus, 16),
        int(place.partition(".")[0], 16),
    )
    pci.busId, pci.busIdLegacy = bus_id.encode(), bus_id[4:].encode()
    pci.pciDeviceId = next((each for key, each in _PCI_DEVICE_IDS.items() if key in name), 0x10DE)
    return pci


def _cpus(text: str) -> list[int]:
    spans = [part.partition("-") for part in text.split(",")]
    return [cpu for low, _, high in spans for cpu in range(int(low), int(high or low) + 1)]


def _bit_set(numbers: Sequence[int], size: int) -> ctypes.Array[ctypes.c_ulonglong]:
    bits = (ctypes.c_ulonglong * size)()
    for number in numbers:
        if number // _BITS < size:
            bits[number // _BITS] |= 1 << (number % _BITS)
    return bits
