"""Where and when figures were measured: what every result file begins with."""

from __future__ import annotations

import datetime as dt
import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("aqua-broker", "torch", "numpy", "grpcio", "protobuf")


def description() -> dict[str, object]:
    """The machine, its software and the date, without anything that names its owner."""
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "level": "shm GPUs",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": round(os.getloadavg()[0], 2),
        "huge_pages_of_shared_memory": _huge_pages(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _huge_pages() -> str:
    """`advise`: slabs of shm GPUs are of them. The one that is chosen stands in brackets."""
    try:
        said = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text()
    except OSError:
        return "none"
    return said.partition("[")[2].partition("]")[0]


def _version(name: str) -> str:
    try:
        return metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:  # a bare checkout
        return "not installed"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
