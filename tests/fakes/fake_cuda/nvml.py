"""The fake NVML: libraries, handles, and what a GPU says of itself and its processes.

Beside it `nvml_links` says how GPUs are connected; `cuda_site/pynvml.py` puts both, with the
constants of the installed module, under its name. GPUs stand in the order of their PCI addresses,
whatever CUDA's order and CUDA_VISIBLE_DEVICES are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from tests.fakes.fake_cuda.description import GpuDescription
from tests.fakes.fake_cuda.nvml_real import fail, real
from tests.fakes.fake_cuda.nvml_state import (
    Device,
    close_library,
    gpu_of,
    of_gpu,
    open_library,
    registry,
)
from tests.fakes.fake_cuda.registry import start_time

_COMPUTE_MODES = {"default": 0, "prohibited": 2, "exclusive_process": 3}
_MIG_MODELS = ("A100", "A30", "H100", "H200", "H800", "A800")
_WATTS_IDLE, _DEGREES_IDLE = 72_000, 34


def nvmlInit() -> None:
    open_library()


def nvmlInitWithFlags(flags: int) -> None:  # noqa: ARG001 - NVML has it
    open_library()


def nvmlShutdown() -> None:
    close_library()


def nvmlSystemGetDriverVersion() -> str:
    return registry().node.driver_version


def nvmlSystemGetNVMLVersion() -> str:
    return f"13.{registry().node.driver_version}"


def nvmlSystemGetCudaDriverVersion() -> int:
    return registry().node.cuda_version


def nvmlSystemGetCudaDriverVersion_v2() -> int:
    return registry().node.cuda_version


def nvmlSystemGetProcessName(pid: int) -> str:
    registry()
    if start_time(pid) is None:
        fail("NOT_FOUND")
    return Path(f"/proc/{pid}/exe").readlink().name


def nvmlDeviceGetCount() -> int:
    return len(registry().node.gpus)


def nvmlDeviceGetHandleByIndex(index: int) -> Device:
    if not 0 <= index < nvmlDeviceGetCount():
        fail("INVALID_ARGUMENT")
    return _handle(index)


def nvmlDeviceGetHandleByUUID(uuid: str | bytes) -> Device:
    wanted = uuid.decode() if isinstance(uuid, bytes) else uuid
    return _found(index for index, gpu in enumerate(registry().node.gpus) if gpu.uuid == wanted)


def nvmlDeviceGetHandleByPciBusId(pciBusId: str | bytes) -> Device:
    text = pciBusId.decode() if isinstance(pciBusId, bytes) else pciBusId
    wanted = text.upper()
    return _found(
        index
        for index, gpu in enumerate(registry().node.gpus)
        if wanted in {gpu.pci_bus_id, gpu.pci_bus_id[4:]}
    )


def nvmlDeviceGetIndex(handle: Device) -> int:
    gpu_of(handle)
    return handle.index


def nvmlDeviceGetMinorNumber(handle: Device) -> int:
    gpu_of(handle)
    return handle.index


@of_gpu
def nvmlDeviceGetUUID(handle: GpuDescription) -> str:
    return handle.uuid


@of_gpu
def nvmlDeviceGetName(handle: GpuDescription) -> str:
    return handle.name


@of_gpu
def nvmlDeviceGetCudaComputeCapability(handle: GpuDescription) -> tuple[int, int]:
    return handle.compute_capability


@of_gpu
def nvmlDeviceGetMemoryInfo(handle: GpuDescription, version: int | None = None) -> object:
    """The first version counts what the system keeps as used, the second names it apart."""
    node = registry().node
    with registry().books() as books:
        used = min(books.used_bytes(handle.uuid), handle.memory_bytes - node.system_bytes)
    memory = real.c_nvmlMemory_v2_t() if version else real.c_nvmlMemory_t()
    memory.total = handle.memory_bytes
    memory.free = handle.memory_bytes - node.system_bytes - used
    if version:
        memory.version, memory.reserved, memory.used = version, node.system_bytes, used
    else:
        memory.used = used + node.system_bytes
    return memory


@of_gpu
def nvmlDeviceGetComputeRunningProcesses_v3(handle: GpuDescription) -> list[object]:
    return _processes(handle, through_mps=False)


@of_gpu
def nvmlDeviceGetMPSComputeRunningProcesses_v3(handle: GpuDescription) -> list[object]:
    return _processes(handle, through_mps=True)


@of_gpu
def nvmlDeviceGetGraphicsRunningProcesses_v3(handle: GpuDescription) -> list[object]:  # noqa: ARG001 - NVML has it
    return []


nvmlDeviceGetComputeRunningProcesses = nvmlDeviceGetComputeRunningProcesses_v3
nvmlDeviceGetMPSComputeRunningProcesses = nvmlDeviceGetMPSComputeRunningProcesses_v3
nvmlDeviceGetGraphicsRunningProcesses = nvmlDeviceGetGraphicsRunningProcesses_v3


@of_gpu
def nvmlDeviceGetComputeMode(handle: GpuDescription) -> int:
    return _COMPUTE_MODES[handle.compute_mode]


@of_gpu
def nvmlDeviceGetPersistenceMode(handle: GpuDescription) -> int:
    return int(handle.persistence)


@of_gpu
def nvmlDeviceGetMigMode(device: GpuDescription) -> list[int]:
    if not any(model in device.name for model in _MIG_MODELS):
        fail("NOT_SUPPORTED")
    return [int(device.mig), int(device.mig)]


@of_gpu
def nvmlDeviceGetMaxMigDeviceCount(device: GpuDescription) -> int:
    return 7 if any(model in device.name for model in _MIG_MODELS) else 0


def nvmlDeviceIsMigDeviceHandle(device: Device) -> int:
    gpu_of(device)
    return 0


@of_gpu
def nvmlDeviceGetEccMode(handle: GpuDescription) -> list[int]:
    if handle.ecc is None:
        fail("NOT_SUPPORTED")
    pending = handle.ecc if handle.ecc_pending is None else handle.ecc_pending
    return [int(handle.ecc), int(pending)]


@of_gpu
def nvmlDeviceGetCurrentEccMode(handle: GpuDescription) -> int:
    if handle.ecc is None:
        fail("NOT_SUPPORTED")
    return int(handle.ecc)


@of_gpu
def nvmlDeviceGetTotalEccErrors(handle: GpuDescription, errorType: int, counterType: int) -> int:  # noqa: ARG001 - NVML has it
    if not handle.ecc:
        fail("NOT_SUPPORTED")
    uncorrected = errorType == real.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    return handle.uncorrected_ecc_errors if uncorrected else 0


@of_gpu
def nvmlDeviceGetRemappedRows(device: GpuDescription) -> tuple[int, int, int, int]:
    if not device.ecc:
        fail("NOT_SUPPORTED")
    errors = device.uncorrected_ecc_errors
    return 0, errors, int(errors > 0), int(device.rows_exhausted)


@of_gpu
def nvmlDeviceGetUtilizationRates(handle: GpuDescription) -> object:
    rates = real.c_nvmlUtilization_t()
    rates.gpu = handle.utilization_percent
    rates.memory = handle.utilization_percent // 2
    return rates


@of_gpu
def nvmlDeviceGetTemperature(handle: GpuDescription, sensor: int) -> int:  # noqa: ARG001 - NVML has it
    return _DEGREES_IDLE


@of_gpu
def nvmlDeviceGetPowerUsage(handle: GpuDescription) -> int:  # noqa: ARG001 - NVML has it
    return _WATTS_IDLE


@of_gpu
def nvmlDeviceGetClockInfo(handle: GpuDescription, type: int) -> int:  # noqa: A002 - NVML's name
    return _clock(handle, type)


@of_gpu
def nvmlDeviceGetMaxClockInfo(handle: GpuDescription, type: int) -> int:  # noqa: A002 - NVML's name
    return _clock(replace(handle, throttle_reasons=0), type)


@of_gpu
def nvmlDeviceGetCurrentClocksEventReasons(handle: GpuDescription) -> int:
    return handle.throttle_reasons


nvmlDeviceGetCurrentClocksThrottleReasons = nvmlDeviceGetCurrentClocksEventReasons


def _found(indices: Iterator[int]) -> Device:
    index = next(indices, None)
    if index is None:
        fail("NOT_FOUND")
    return _handle(index)


def _handle(index: int) -> Device:
    device = Device(index)
    gpu_of(device)
    return device


def _clock(gpu: GpuDescription, kind: int) -> int:
    if kind == real.NVML_CLOCK_MEM:
        return gpu.memory_clock_mhz
    return gpu.sm_clock_mhz // 2 if gpu.throttle_reasons else gpu.sm_clock_mhz


def _processes(gpu: GpuDescription, *, through_mps: bool) -> list[object]:
    with registry().books() as books:
        nbytes_by_pid = books.bytes_by_pid(gpu.uuid)
        in_mps = {
            context.pid
            for context in books.contexts
            if context.uuid == gpu.uuid and context.through_mps
        }
    return [
        SimpleNamespace(
            pid=pid, usedGpuMemory=nbytes, gpuInstanceId=0xFFFFFFFF, computeInstanceId=0xFFFFFFFF
        )
        for pid, nbytes in sorted(nbytes_by_pid.items())
        if (pid in in_mps) == through_mps
    ]
