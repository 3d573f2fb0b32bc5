"""What this process has of NVML: whether it is initialised, and its handles."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from tests.fakes.fake_cuda.description import GpuDescription
from tests.fakes.fake_cuda.nvml_real import fail
from tests.fakes.fake_cuda.registry import Registry

P = ParamSpec("P")
R = TypeVar("R")
_STALL_LOOK_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Device:
    """NVML's opaque handle."""

    index: int


_registry: Registry | None = None
_opened = 0


def open_library() -> None:
    global _registry, _opened  # noqa: PLW0603 - NVML has one state a process
    folder = os.environ.get("FAKE_CUDA_NODE")
    if folder is None:
        fail("LIBRARY_NOT_FOUND")
    _registry = Registry(Path(folder))
    _opened += 1


def close_library() -> None:
    global _registry, _opened  # noqa: PLW0603 - NVML has one state a process
    registry()
    _opened -= 1
    if _opened == 0:
        _registry = None


def forget() -> None:
    """Begin anew, as a new process would."""
    global _registry, _opened
    _registry, _opened = None, 0


def registry() -> Registry:
    if _registry is None:
        fail("UNINITIALIZED")
    return _registry


def gpu_of(handle: Device) -> GpuDescription:
    """The GPU as it is now, once it is not stalled; a GPU that is gone is lost."""
    found = registry()
    if not isinstance(handle, Device):
        fail("INVALID_ARGUMENT")
    gpu = found.gpu(handle.index)
    stall = found.directory / "stalled" / gpu.uuid
    while stall.exists():
        threading.Event().wait(_STALL_LOOK_SECONDS)
    if found.is_lost(gpu.uuid) or (found.directory / "lost" / gpu.uuid).exists():
        fail("GPU_IS_LOST")
    return gpu


def of_gpu(
    function: Callable[Concatenate[GpuDescription, P], R],
) -> Callable[Concatenate[Device, P], R]:
    """A function of a handle, written as one of the GPU behind it."""

    @functools.wraps(function)
    def called(handle: Device, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return function(gpu_of(handle), *args, **kwargs)

    return called
