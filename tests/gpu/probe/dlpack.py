"""A tensor over a bare pointer, by a DLPack capsule made with ctypes.

The capsule names a device and borrows the memory: whoever makes it keeps the memory mapped.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPU, CUDA = 1, 2
_UINT8 = 1  # the code of unsigned integers
_NAME = b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("ordinal", ctypes.c_int32))


class _Dtype(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("dimensions", ctypes.c_int32),
        ("dtype", _Dtype),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_kept: list[object] = []  # a capsule's parts live as long as the process: this makes a handful


def _free_nothing(_managed: object) -> None:
    """The parts are in `_kept`, and the memory is not the capsule's."""


_keep_everything = _Deleter(_free_nothing)


def tensor(capsule: object) -> torch.Tensor:
    """The tensor of unsigned bytes that a capsule describes, without a copy."""
    from torch.utils.dlpack import from_dlpack

    made: torch.Tensor = from_dlpack(capsule)
    return made


def capsule(pointer: int, nbytes: int, *, kind: int, ordinal: int) -> object:
    """*nbytes* of unsigned bytes at *pointer*, for `tensor`."""
    shape = (ctypes.c_int64 * 1)(nbytes)
    managed = _Managed()
    managed.tensor = _Tensor(
        data=pointer,
        device=_Device(kind=kind, ordinal=ordinal),
        dimensions=1,
        dtype=_Dtype(code=_UINT8, bits=8, lanes=1),
        shape=ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)),
        strides=None,
        offset=0,
    )
    managed.deleter = _keep_everything
    _kept.extend((shape, managed))
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    made: object = make(ctypes.addressof(managed), _NAME, None)
    return made
