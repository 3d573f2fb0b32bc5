"""As much of NVML as doctor asks, in two shapes: a GPU that is lost, and a library that hangs."""

# ruff: noqa: N802 - the names are NVML's

from __future__ import annotations

import threading
from types import ModuleType


class Sick(Exception):
    """NVML's base of errors."""


class NotSupported(Sick):
    pass


class FakeNvml(ModuleType):
    """Two GPUs: one with all settings, one that is lost."""

    NVMLError = Sick
    NVMLError_NotSupported = NotSupported

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetUUID(self, device: int) -> str:
        return f"GPU-{device}"

    def nvmlDeviceGetName(self, device: int) -> str:
        if device:
            raise Sick("GPU is lost")
        return "H200"

    def nvmlDeviceGetMigMode(self, _device: int) -> list[int]:
        raise NotSupported

    def nvmlDeviceGetEccMode(self, _device: int) -> list[int]:
        return [1, 0]

    def nvmlDeviceGetComputeMode(self, _device: int) -> int:
        return 3


class HangingNvml(FakeNvml):
    def __init__(self, goes_on: threading.Event) -> None:
        super().__init__("pynvml")
        self.goes_on = goes_on

    def nvmlInit(self) -> None:
        self.goes_on.wait(30)
