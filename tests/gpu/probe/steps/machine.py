"""The first record: date, GPU, driver, CUDA, packages, and what the driver says it can do."""

from __future__ import annotations

import datetime as dt
import platform
from importlib import metadata

import pynvml

from tests.gpu.probe.driver import DriverError, attribute, call, device_count
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import Devices

PACKAGES = (
    "cuda-bindings", "cupy-cuda12x", "cupy-cuda13x", "grpcio", "numpy", "nvidia-ml-py", "protobuf",
    "torch",
)  # fmt: skip
ATTRIBUTES = (
    "COMPUTE_CAPABILITY_MAJOR",
    "COMPUTE_CAPABILITY_MINOR",
    "COMPUTE_MODE",
    "UNIFIED_ADDRESSING",
    "ASYNC_ENGINE_COUNT",
    "L2_CACHE_SIZE",
    "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED",
    "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED",
    "HANDLE_TYPE_FABRIC_SUPPORTED",
    "HOST_REGISTER_SUPPORTED",
    "IPC_EVENT_SUPPORTED",
)


def answer(_plan: Plan, where: Devices, findings: Findings) -> None:
    names = _device_names()
    version = int(call("cuDriverGetVersion"))
    record = {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "gpus": names,
        "gpu_bytes": where.meter.total(),
        "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
        "cuda": f"{version // 1000}.{version % 1000 // 10}",
        "python": platform.python_version(),
        "kernel": platform.release().split("-")[0],
        "packages": _packages(),
        "attributes": {name: _attribute(name, where.lender) for name in ATTRIBUTES},
        "peer_access": _peer_access(),
        "layout": where.words,
    }
    findings.figures("machine", record)
    findings.row("GPU", f"{len(names)} x {names[0]}" if len(set(names)) == 1 else ", ".join(names))
    findings.row("driver, CUDA", f"{record['driver']}, {record['cuda']}")
    findings.row("date, kernel", f"{record['date']}, {record['kernel']}")
    findings.row("lender and borrower", where.words)
    vmm = _attribute("HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED", where.lender)
    findings.row("driver says it exports descriptors", "yes" if vmm == 1 else f"no ({vmm})")


def _device_names() -> list[str]:
    names = [call("cuDeviceGetName", 64, call("cuDeviceGet", n)) for n in range(device_count())]
    return [_text(name) for name in names]


def _text(raw: bytes | str) -> str:
    return (raw.decode() if isinstance(raw, bytes) else raw).partition("\0")[0]


def _attribute(name: str, ordinal: int) -> int | str:
    try:
        return attribute(name, ordinal)
    except (AttributeError, DriverError) as error:
        return f"unknown: {error}"


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


def _peer_access() -> list[list[int]]:
    """Row reads column: 1 where CUDA lets one device reach the other's memory."""
    numbers = range(device_count())
    handles = [call("cuDeviceGet", number) for number in numbers]
    return [
        [int(one != other and call("cuDeviceCanAccessPeer", handles[one], handles[other]))
         for other in numbers]
        for one in numbers
    ]  # fmt: skip
