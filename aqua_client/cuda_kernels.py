"""The one kernel of the library's own: copies many pieces at once, each between two addresses.

Compiled on the device's machine, by the NVRTC that comes with torch; where there is none, or the
driver does not take what it makes, there is no kernel and other ways are used.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from aqua_client import cuda_driver
from aqua_client.cuda_driver import call
from aqua_client.cuda_errors import CudaError

NAME = b"aqua_copy_pieces"
THREADS = 512
CHUNK_BYTES = 32 * 2**10  # of a piece, for one block of threads: four loads of 16 bytes by each

# Loads come before stores, four at a time: what is waited for is the memory, not each load.
SOURCE = b"""
extern "C" __global__ void aqua_copy_pieces(
    const unsigned long long* __restrict__ pieces,
    unsigned long long chunks, unsigned long long chunk_bytes)
{
    const unsigned long long* piece = pieces + 3 * (blockIdx.x / chunks);
    const unsigned long long begin = (blockIdx.x % chunks) * chunk_bytes, nbytes = piece[2];
    if (begin >= nbytes) return;
    const unsigned long long length = min(nbytes - begin, chunk_bytes);
    char* __restrict__ to = reinterpret_cast<char*>(piece[0] + begin);
    const char* __restrict__ from = reinterpret_cast<const char*>(piece[1] + begin);
    unsigned long long done = 0;
    if (((piece[0] | piece[1]) & 15) == 0) {
        uint4* __restrict__ wide_to = reinterpret_cast<uint4*>(to);
        const uint4* __restrict__ wide_from = reinterpret_cast<const uint4*>(from);
        const unsigned long long count = length / 16, step = blockDim.x;
        unsigned long long at = threadIdx.x;
        for (; at + 3 * step < count; at += 4 * step) {
            const uint4 a = wide_from[at], b = wide_from[at + step];
            const uint4 c = wide_from[at + 2 * step], d = wide_from[at + 3 * step];
            wide_to[at] = a;
            wide_to[at + step] = b;
            wide_to[at + 2 * step] = c;
            wide_to[at + 3 * step] = d;
        }
        for (; at < count; at += step) wide_to[at] = wide_from[at];
        done = count * 16;
    }
    for (unsigned long long at = done + threadIdx.x; at < length; at += blockDim.x)
        to[at] = from[at];
}
"""


class Kernel:
    """Loaded on one device, for good."""

    def __init__(self, function: Any) -> None:  # noqa: ANN401 - cuda-bindings has no types
        """Made by `load`."""
        self._function = function

    def launch(self, pieces: int, count: int, longest_bytes: int, stream: int) -> None:
        """Copy *count* pieces, whose records lie at the device's address *pieces*.

        Raises:
            CudaError: the driver refuses.
        """
        chunks = -(-longest_bytes // CHUNK_BYTES)
        values = np.array([pieces, chunks, CHUNK_BYTES], dtype=np.uint64)
        addresses = values.ctypes.data + np.arange(3, dtype=np.uint64) * 8
        call(
            "cuLaunchKernel",
            self._function,
            *(count * chunks, 1, 1),
            *(THREADS, 1, 1),
            0,
            stream,
            addresses.ctypes.data,
            0,
        )


def load(ordinal: int) -> Kernel:
    """Compile it for the device, at the first call; to be called while acting on that.

    Raises:
        CudaError: it can't be compiled, or the driver does not take it.
    """
    with _lock:
        if ordinal not in _loaded:
            module = call("cuModuleLoadData", compiled(cuda_driver.architecture(ordinal)))
            _loaded[ordinal] = Kernel(call("cuModuleGetFunction", module, NAME))
        return _loaded[ordinal]


def compiled(architecture: int) -> bytes:
    """What the driver loads, for devices of an architecture: 90 is Hopper.

    Raises:
        CudaError: there is no NVRTC, or it refuses.
    """
    try:
        from cuda.bindings import nvrtc

        program = _taken(nvrtc.nvrtcCreateProgram(SOURCE, NAME + b".cu", 0, [], []))
        options = [f"--gpu-architecture=sm_{architecture}".encode(), b"--std=c++17"]
        _taken(nvrtc.nvrtcCompileProgram(program, len(options), options))
        image: bytes = b" " * _taken(nvrtc.nvrtcGetCUBINSize(program))
        _taken(nvrtc.nvrtcGetCUBIN(program, image))
        _taken(nvrtc.nvrtcDestroyProgram(program))
    except (ImportError, RuntimeError) as error:  # the second is how a missing library is told
        raise CudaError("NVRTC_MISSING", str(error)) from error
    return image


def _taken(result: tuple[Any, ...]) -> Any:  # noqa: ANN401 - cuda-bindings has no types
    code, *values = result
    if int(code):
        raise CudaError("NVRTC_REFUSED", f"code {int(code)}")
    return values[0] if values else None


def _forget_in_child() -> None:
    """A child has no context, and perhaps no thread that would give up the lock."""
    global _lock  # noqa: PLW0603 - one table a process
    _lock = threading.Lock()
    _loaded.clear()


_loaded: dict[int, Kernel] = {}
_lock = threading.Lock()

os.register_at_fork(after_in_child=_forget_in_child)
