"""Bytes of device memory as this process sees them: fill, read, and count them."""

from __future__ import annotations

import numpy as np

from tests.gpu.probe.driver import call

_CHUNK_BYTES = 64 * 2**20


def fill(pointer: int, nbytes: int, value: int) -> None:
    """Every byte becomes *value*; returns when they are."""
    call("cuMemsetD8", pointer, value, nbytes)
    call("cuCtxSynchronize")


def read(pointer: int, nbytes: int) -> bytes:
    """The bytes now."""
    buffer = np.empty(nbytes, dtype=np.uint8)
    call("cuMemcpyDtoH", buffer.ctypes.data, pointer, nbytes)
    return buffer.tobytes()


def write(pointer: int, content: bytes) -> None:
    """Put *content* there; returns when it is there."""
    buffer = np.frombuffer(content, dtype=np.uint8).copy()
    call("cuMemcpyHtoD", pointer, buffer.ctypes.data, len(content))
    call("cuCtxSynchronize")


def count(pointer: int, nbytes: int, value: int) -> int:
    """How many bytes equal *value*."""
    buffer = np.empty(min(nbytes, _CHUNK_BYTES), dtype=np.uint8)
    found = 0
    for begin in range(0, nbytes, _CHUNK_BYTES):
        length = min(_CHUNK_BYTES, nbytes - begin)
        call("cuMemcpyDtoH", buffer.ctypes.data, pointer + begin, length)
        found += int(np.count_nonzero(buffer[:length] == value))
    return found
