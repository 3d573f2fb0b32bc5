"""Makes a torch tensor of memory that has an address: a DLPack capsule around a pointer.

What the capsule points to is a C structure that torch frees when the last alias of the tensor has
gone. It is freed by the C library's own `free`, not by Python, so that this may happen at any
time: in any thread, and after the interpreter has ended. The memory itself is the caller's.
"""

from __future__ import annotations

import ctypes
from typing import Final

import torch

CPU: Final = 1  # kDLCPU
CUDA: Final = 2  # kDLCUDA
_UNSIGNED: Final = 1  # kDLUInt

# torch keeps a pointer to the name, so it lives as long as this module.
_NAME: Final = b"dltensor"


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("device_kind", ctypes.c_int32),
        ("device_ordinal", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("element_kind", ctypes.c_uint8),
        ("element_bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("offset_bytes", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor, and behind it the shape that it points to."""

    _fields_ = (
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("length", ctypes.c_int64),
    )


def tensor_at(address: int, nbytes: int, *, ordinal: int | None) -> torch.Tensor:
    """The bytes at *address* as a tensor on that CUDA device, or the CPU (None).

    Raises:
        RuntimeError: torch can't have tensors there.
    """
    block = _libc.malloc(ctypes.sizeof(_Managed))
    if not block:
        raise MemoryError("no memory for a tensor's description")
    _describe(block, address, nbytes, ordinal)
    capsule = _new_capsule(block, _NAME, None)
    try:
        # Otherwise a slab that is opened in inference mode can't be written outside of it.
        with torch.inference_mode(mode=False):
            return torch.utils.dlpack.from_dlpack(capsule)
    except AssertionError as error:  # how a torch without CUDA says so
        raise RuntimeError(str(error)) from error
    finally:
        if _is_valid(capsule, _NAME):  # torch did not take it, and will not free it
            _libc.free(block)


def _describe(block: int, address: int, nbytes: int, ordinal: int | None) -> None:
    ctypes.memset(block, 0, ctypes.sizeof(_Managed))
    managed = _Managed.from_address(block)
    managed.deleter = ctypes.cast(_libc.free, ctypes.c_void_p).value
    managed.length = nbytes
    tensor = managed.tensor
    tensor.address = address
    tensor.device_kind = CPU if ordinal is None else CUDA
    tensor.device_ordinal = ordinal or 0
    tensor.dimensions = 1
    tensor.element_kind, tensor.element_bits, tensor.lanes = _UNSIGNED, 8, 1
    tensor.shape = block + _Managed.length.offset


# The deleter is called as deleter(block): just what `free` wants.
_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.restype = None
_libc.free.argtypes = [ctypes.c_void_p]

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]
