"""Modules and the one kernel that the fake knows: the library's own, which copies pieces.

An image is what the fake NVRTC makes; what a kernel does is done in Python, in the stream's order, on
ranges that are looked at as those of any copy.
"""

from __future__ import annotations

import ctypes
from typing import SupportsInt

from tests.fakes.fake_cuda import process, streams
from tests.fakes.fake_cuda.memory import require_range
from tests.fakes.fake_cuda.process import call, call_for_one
from tests.fakes.fake_cuda.results import CUresult, Failed
from tests.fakes.fake_cuda.structs import CUfunction, CUmodule

IMAGE = b"\x7fELF a made-up image of sm_"
KERNELS = (b"aqua_copy_pieces",)
_FIRST_FUNCTION = 0x5F0000000  # any number that is no index


@call_for_one
def cuModuleLoadData(image: bytes) -> CUmodule:
    """The number is the architecture: a module has nothing else."""
    gpu = process.gpu_of(process.current_device())
    if not image.startswith(IMAGE):
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    architecture = int(image.removeprefix(IMAGE))
    if architecture // 10 != gpu.compute_capability[0]:
        raise Failed(CUresult.CUDA_ERROR_NOT_SUPPORTED)
    return CUmodule(architecture)


@call_for_one
def cuModuleGetFunction(hmod: SupportsInt, name: bytes) -> CUfunction:
    if not int(hmod) or name not in KERNELS:
        raise Failed(CUresult.CUDA_ERROR_NOT_FOUND)
    return CUfunction(_FIRST_FUNCTION + KERNELS.index(name))


@call
def cuLaunchKernel(
    f: SupportsInt,
    gridDimX: int,
    gridDimY: int,
    gridDimZ: int,
    blockDimX: int,
    blockDimY: int,
    blockDimZ: int,
    sharedMemBytes: int,  # noqa: ARG001 - the driver has it
    hStream: int,
    kernelParams: int,
    extra: int,  # noqa: ARG001 - the driver has it
) -> None:
    process.current_device()
    is_known = 0 <= int(f) - _FIRST_FUNCTION < len(KERNELS)
    if not is_known or blockDimX * blockDimY * blockDimZ > 1024 or gridDimY * gridDimZ > 1:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    # Read at the launch: afterwards they are the caller's again.
    addresses = (ctypes.c_uint64 * 3).from_address(kernelParams)
    pieces, chunks, chunk_bytes = (ctypes.c_uint64.from_address(one).value for one in addresses)
    count = gridDimX // chunks

    def copy() -> None:
        numbers = iter((ctypes.c_uint64 * (3 * count)).from_address(pieces))
        for to, source, nbytes in zip(numbers, numbers, numbers, strict=True):
            length = min(nbytes, chunks * chunk_bytes)
            for address, is_writing in ((to, True), (source, False)):
                if process.node().span_at(address) is not None:
                    require_range(address, length, writing=is_writing)
            ctypes.memmove(to, source, length)

    streams.enqueue(hStream, copy)
