"""Which of NVML's answers can be had here: what inventory, accounting and warnings build on."""

from __future__ import annotations

import os
from collections.abc import Callable

import pynvml

from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import Devices, started


def answer(_plan: Plan, where: Devices, findings: Findings) -> None:
    handle = where.meter.handle
    pynvml.nvmlInit()
    told = {name: _asked(ask) for name, ask in _questions(handle).items()}
    with started(where.lender) as actor:
        where.meter.settle()
        told["memory of a process of ours"] = where.meter.charged(actor.pid)
        told["of how many processes"] = _asked(
            lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
        )
    findings.figures("nvml", told)
    for name, said in told.items():
        findings.row(name, said)


def _questions(handle: object) -> dict[str, Callable[[], object]]:
    """By what they are for."""
    return {
        "memory: used, free, reserved": lambda: _memory(handle),
        "MIG mode (now, after a reset)": lambda: pynvml.nvmlDeviceGetMigMode(handle),
        "compute mode": lambda: pynvml.nvmlDeviceGetComputeMode(handle),
        "ECC mode (now, after a reset)": lambda: pynvml.nvmlDeviceGetEccMode(handle),
        "ECC errors, uncorrected": lambda: pynvml.nvmlDeviceGetTotalEccErrors(
            handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        ),
        "clocks: SM, memory": lambda: (
            pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        ),
        "throttle reasons": lambda: hex(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        "PCIe generation, width": lambda: (
            pynvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),
            pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
        ),
        "NVLinks up": lambda: _links(handle),
        "nearest to another GPU": lambda: _levels(handle),
        "CPUs near it": lambda: [
            hex(word) for word in pynvml.nvmlDeviceGetCpuAffinity(handle, _words())
        ],
        "NUMA node": lambda: pynvml.nvmlDeviceGetNumaNodeId(handle),
        "addressing mode": lambda: pynvml.nvmlDeviceGetAddressingMode(handle),
        "power, temperature": lambda: (
            pynvml.nvmlDeviceGetPowerUsage(handle),
            pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        ),
    }


def _asked(ask: Callable[[], object]) -> str:
    try:
        said = ask()
    except (AttributeError, TypeError, pynvml.NVMLError) as error:
        return f"{type(error).__name__}: {error}"
    return str(said)[:120]


def _memory(handle: object) -> str:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return f"{memory.used}, {memory.free}, {memory.reserved} of {memory.total}"


def _links(handle: object) -> int:
    up = 0
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            up += int(pynvml.nvmlDeviceGetNvLinkState(handle, link) == pynvml.NVML_FEATURE_ENABLED)
        except pynvml.NVMLError:
            break
    return up


def _levels(handle: object) -> list[int]:
    count = pynvml.nvmlDeviceGetCount()
    others = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    mine = pynvml.nvmlDeviceGetIndex(handle)
    return [
        pynvml.nvmlDeviceGetTopologyCommonAncestor(handle, other)
        for index, other in enumerate(others)
        if index != mine
    ]


def _words() -> int:
    return -(-(os.cpu_count() or 1) // 64)
