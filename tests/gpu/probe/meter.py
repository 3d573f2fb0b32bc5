"""What NVML says of a GPU's memory: the only witness that neither party of a question can fool."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

from tests.gpu.probe.driver import uuid_of

POLL_SECONDS = 0.0005


class Meter:
    """The memory of the device that CUDA numbers *ordinal* in this process."""

    def __init__(self, ordinal: int) -> None:
        pynvml.nvmlInit()
        self.handle: Any = pynvml.nvmlDeviceGetHandleByUUID(uuid_of(ordinal))

    def used(self) -> int:
        """Bytes in use by anybody."""
        return int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used)

    def total(self) -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).total)

    def charged(self, pid: int) -> str:
        """What NVML charges to a process, or why it does not say."""
        try:
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
        except pynvml.NVMLError as error:
            return str(error)
        for process in processes:
            if process.pid == pid:
                bytes_known = process.usedGpuMemory is not None
                return f"{process.usedGpuMemory / 2**20:.0f} MiB" if bytes_known else "not told"
        return "not listed"

    def settle(self, *, seconds: float = 0.3, within: float = 5.0) -> int:
        """Bytes in use once they have not changed for *seconds*."""
        deadline, seen, since = time.monotonic() + within, self.used(), time.monotonic()
        while time.monotonic() < deadline and time.monotonic() - since < seconds:
            time.sleep(0.01)
            now = self.used()
            if now != seen:
                seen, since = now, time.monotonic()
        return seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """How NVML's figure came down."""

    seconds: float  # until it was down, or how long was waited
    nbytes: int  # by how much
    complete: bool

    def __str__(self) -> str:
        amount = f"{self.nbytes / 2**20:.0f} MiB"
        if self.complete:
            return f"{amount} after {self.seconds * 1e3:.1f} ms"
        return f"only {amount} in {self.seconds:.1f} s"


def fall_after(
    meter: Meter, act: Callable[[], object], *, wanted_bytes: int, within: float = 3.0
) -> Fall:
    """Do *act*, then watch until NVML's figure has come down by *wanted_bytes*."""
    before, begun = meter.used(), time.monotonic()
    act()
    while True:
        fallen = before - meter.used()
        seconds = time.monotonic() - begun
        if fallen >= wanted_bytes or seconds > within:
            return Fall(seconds=seconds, nbytes=fallen, complete=fallen >= wanted_bytes)
        time.sleep(POLL_SECONDS)
