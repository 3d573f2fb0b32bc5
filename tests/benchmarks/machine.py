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
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "packages": {name: metadata.version(name).split("+")[0] for name in PACKAGES},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
