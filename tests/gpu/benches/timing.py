"""Clocks for what a device does and for what a call costs its caller, and where it was measured.

A GPU that lends to itself has slabs nearer than any neighbour's: what is *paced* has copies as slow as
over NVLink 4, at 375 GB/s as somebody measured it between two H100.
"""

from __future__ import annotations

import datetime as dt
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata

import torch

from tests.gpu.probe.plan import GIB, KIB, MIB

PACKAGES = ("torch", "cuda-bindings", "nvidia-ml-py", "numpy", "grpcio", "protobuf", "transformers")
LINK_GB_PER_SECOND = 375.0
PACED = f"*paced* to {LINK_GB_PER_SECOND:g} GB/s"
Seconds = dict[str, float]


class Taken(defaultdict[str, list[float]]):
    """Seconds of each round, by what was done in it."""

    def __init__(self) -> None:
        super().__init__(list)


@contextmanager
def until_done(taken: list[float]) -> Iterator[None]:
    """Until the last byte has arrived: what a caller who needs it waits."""
    synchronize()
    begun = time.perf_counter()
    yield
    synchronize()
    taken.append(time.perf_counter() - begun)


@contextmanager
def until_back(taken: list[float], host: list[float]) -> Iterator[None]:
    """The same, and beside it how long the caller was held up, which is all that it costs a server."""
    synchronize()
    begun = time.perf_counter()
    yield
    host.append(time.perf_counter() - begun)
    synchronize()
    taken.append(time.perf_counter() - begun)


def synchronize() -> None:
    """The device; nothing on stand-in GPUs."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def medians(taken: Mapping[str, list[float]], *, warm: int = 1) -> Seconds:
    """Without the first rounds, which borrow slabs and warm up the rest."""
    return {name: statistics.median(seconds[warm:]) for name, seconds in taken.items()}


def median_of(repeats: int, work: Callable[[], object]) -> float:
    """The median of so many rounds, each until it is done, after one that is not counted."""
    taken: list[float] = []
    for _ in range(repeats + 1):
        with until_done(taken):
            work()
    return statistics.median(taken[1:])


def size(nbytes: int) -> str:
    """In the largest unit that it has one of."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if nbytes >= unit:
            return f"{nbytes // unit} {name}"
    return f"{nbytes // KIB} KiB"


def machine(device: str) -> dict[str, object]:
    """What is kept beside the figures: date, GPU, driver and versions."""
    found = {name: _version(name) for name in PACKAGES}
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else "stand-in",
        "driver": _driver() if device.startswith("cuda") else "none",
        "cuda of torch": str(torch.version.cuda),
        "python": platform.python_version(),
        "packages": {name: version for name, version in found.items() if version},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _driver() -> str:
    import pynvml

    pynvml.nvmlInit()
    version = pynvml.nvmlSystemGetDriverVersion()
    return version.decode() if isinstance(version, bytes) else str(version)
