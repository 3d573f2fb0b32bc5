"""Devices by ordinal: how many, which, what they can, and who can reach whom."""

from __future__ import annotations

from typing import SupportsInt

from tests.fakes.fake_cuda import process
from tests.fakes.fake_cuda.description import GpuDescription
from tests.fakes.fake_cuda.enums import CUdevice_attribute, CUdevice_P2PAttribute
from tests.fakes.fake_cuda.process import call, call_for_one
from tests.fakes.fake_cuda.results import CUresult, Failed
from tests.fakes.fake_cuda.structs import CUdevice, CUuuid, uuid_of

_COMPUTE_MODES = {"default": 0, "prohibited": 2, "exclusive_process": 3}
_ALWAYS = {
    "MAX_THREADS_PER_BLOCK": 1024,
    "WARP_SIZE": 32,
    "GPU_OVERLAP": 1,
    "MULTIPROCESSOR_COUNT": 132,
    "CAN_MAP_HOST_MEMORY": 1,
    "CONCURRENT_KERNELS": 1,
    "GLOBAL_MEMORY_BUS_WIDTH": 5120,
    "L2_CACHE_SIZE": 50 << 20,
    "ASYNC_ENGINE_COUNT": 3,
    "UNIFIED_ADDRESSING": 1,
    "STREAM_PRIORITIES_SUPPORTED": 1,
    "MANAGED_MEMORY": 1,
    "CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM": 1,
    "HOST_REGISTER_SUPPORTED": 1,
    "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED": 1,
    "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED": 1,
    "GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED": 1,
    "MEMORY_POOLS_SUPPORTED": 1,
    "IPC_EVENT_SUPPORTED": 1,
    "NUMA_ID": -1,
}


@call
def cuInit(Flags: int) -> None:
    if Flags:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    process.initialise()


@call_for_one
def cuDriverGetVersion() -> int:
    return process.described().cuda_version


@call_for_one
def cuDeviceGetCount() -> int:
    return len(process.node().visible)


@call_for_one
def cuDeviceGet(ordinal: int) -> CUdevice:
    process.gpu_of(ordinal)
    return CUdevice(ordinal)


@call_for_one
def cuDeviceGetUuid(dev: SupportsInt) -> CUuuid:
    return uuid_of(process.gpu_of(dev).uuid)


@call_for_one
def cuDeviceGetName(length: int, dev: SupportsInt) -> bytes:
    return _text(process.gpu_of(dev).name, length)


@call_for_one
def cuDeviceGetPCIBusId(length: int, dev: SupportsInt) -> bytes:
    return _text(process.gpu_of(dev).pci_bus_id[4:], length)


@call_for_one
def cuDeviceGetByPCIBusId(pciBusId: bytes) -> CUdevice:
    wanted = pciBusId.decode().upper().rstrip("\0")
    for ordinal, gpu in enumerate(process.node().visible):
        if wanted in {gpu.pci_bus_id.upper(), gpu.pci_bus_id[4:].upper()}:
            return CUdevice(ordinal)
    raise Failed(CUresult.CUDA_ERROR_INVALID_DEVICE)


@call_for_one
def cuDeviceTotalMem(dev: SupportsInt) -> int:
    return process.gpu_of(dev).memory_bytes


@call_for_one
def cuDeviceGetAttribute(attrib: CUdevice_attribute, dev: SupportsInt) -> int:
    gpu = process.gpu_of(dev)
    name = attrib.name.removeprefix("CU_DEVICE_ATTRIBUTE_")
    domain, bus, place = gpu.pci_bus_id.split(":")
    own = {
        "COMPUTE_MODE": _COMPUTE_MODES[gpu.compute_mode],
        "ECC_ENABLED": int(bool(gpu.ecc)),
        "COMPUTE_CAPABILITY_MAJOR": gpu.compute_capability[0],
        "COMPUTE_CAPABILITY_MINOR": gpu.compute_capability[1],
        "CLOCK_RATE": gpu.sm_clock_mhz * 1000,
        "MEMORY_CLOCK_RATE": gpu.memory_clock_mhz * 1000,
        "PCI_DOMAIN_ID": int(domain, 16),
        "PCI_BUS_ID": int(bus, 16),
        "PCI_DEVICE_ID": int(place.partition(".")[0], 16),
        "HOST_NUMA_ID": gpu.numa_node,
    }
    return own.get(name, _ALWAYS.get(name, 0))


@call_for_one
def cuDeviceCanAccessPeer(dev: SupportsInt, peerDev: SupportsInt) -> int:
    return int(can_access(process.gpu_of(dev), process.gpu_of(peerDev)))


@call_for_one
def cuDeviceGetP2PAttribute(
    attrib: CUdevice_P2PAttribute,
    srcDevice: SupportsInt,
    dstDevice: SupportsInt,
) -> int:
    source, target = process.gpu_of(srcDevice), process.gpu_of(dstDevice)
    if int(srcDevice) == int(dstDevice):
        raise Failed(CUresult.CUDA_ERROR_INVALID_DEVICE)
    if attrib is CUdevice_P2PAttribute.CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK:
        return 0 if link(source, target).startswith("NV") else 1
    if attrib is CUdevice_P2PAttribute.CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED:
        return int(link(source, target).startswith("NV"))
    return int(can_access(source, target))


def can_access(one: GpuDescription, other: GpuDescription) -> bool:
    """Whether *one* can reach memory of *other*; a device is not its own peer."""
    node = process.node().registry.node
    return node.peers[node.index_of(one.uuid)][node.index_of(other.uuid)] == "OK"


def link(one: GpuDescription, other: GpuDescription) -> str:
    node = process.node().registry.node
    return node.links[node.index_of(one.uuid)][node.index_of(other.uuid)]


def _text(value: str, length: int) -> bytes:
    """A C string at the head of a buffer that cuda-bindings hands over whole."""
    return (value.encode() + b"\0").ljust(length, b" ")[:length]
