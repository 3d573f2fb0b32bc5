"""The driver's handles and structures, with what cuda-bindings lets a caller do with them.

Handles are compared by identity, as those of 12.8 (later ones compare some by value), turn into
integers by `int()`, and support no arithmetic; a struct takes no attribute
that it does not have. `CUipcMemHandle` has no `reserved`: 12.9.10 and 13.5 have dropped it, and
what works with each version is the 64 bytes at `getPtr()`.
"""

from __future__ import annotations

import ctypes
from typing import NoReturn, SupportsInt

from tests.fakes.fake_cuda.enums import (
    CUmemAccess_flags,
    CUmemAllocationHandleType,
    CUmemAllocationType,
    CUmemcpySrcAccessOrder,
    CUmemLocationType,
)

HANDLE_BYTES = 64
_ADDRESS_LIMIT = 1 << 64


class _Handle:
    """A number with a type, kept in memory whose address `getPtr` tells."""

    __slots__ = ("_cell",)

    def __init__(self, init_value: SupportsInt = 0) -> None:
        if isinstance(init_value, str | bytes):
            raise TypeError("an integer is required")
        value = int(init_value)
        if not 0 <= value < _ADDRESS_LIMIT:
            raise OverflowError(f"{value} does not fit in 64 bits")
        self._cell = ctypes.c_uint64(value)

    def __int__(self) -> int:
        return self._cell.value

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {int(self)}>"

    def getPtr(self) -> int:
        """The address of the number itself."""
        return ctypes.addressof(self._cell)


class _IndexHandle(_Handle):
    """What is an index too: contexts, streams and events."""

    __slots__ = ()

    def __index__(self) -> int:
        return int(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {int(self):#x}>"


class CUdevice(_Handle):
    """An ordinal among the visible devices."""

    __slots__ = ()


class CUdeviceptr(_Handle):
    """An address; here it is that of host memory."""

    __slots__ = ()


class CUmemGenericAllocationHandle(_Handle):
    """Physical memory, before it is mapped anywhere."""

    __slots__ = ()


class CUcontext(_IndexHandle):
    """A process's state on a device."""

    __slots__ = ()


class CUstream(_IndexHandle):
    """Work in order."""

    __slots__ = ()


class CUevent(_IndexHandle):
    """A point in a stream."""

    __slots__ = ()


class CUmodule(_IndexHandle):
    """Code, loaded."""

    __slots__ = ()


class CUfunction(_IndexHandle):
    """A kernel of a module."""

    __slots__ = ()


class CUgraph(_IndexHandle):
    """What a capture ended with."""

    __slots__ = ()


class CUuuid:
    """The 16 bytes of a GPU's UUID."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = bytes(16)

    @property
    def bytes(self) -> bytes:
        return self._bytes


def uuid_of(text: str) -> CUuuid:
    """The struct for `GPU-xxxxxxxx-...`."""
    uuid = CUuuid()
    uuid._bytes = bytes.fromhex(text.removeprefix("GPU-").replace("-", ""))
    return uuid


class CUipcMemHandle:
    """64 bytes at `getPtr()`."""

    __slots__ = ("_cell",)

    def __init__(self) -> None:
        self._cell = (ctypes.c_char * HANDLE_BYTES)()

    def getPtr(self) -> int:
        """The address of the 64 bytes."""
        return ctypes.addressof(self._cell)

    def __getattr__(self, name: str) -> NoReturn:
        """Name the way that works with every version of cuda-bindings."""
        hint = "; read and write the 64 bytes at getPtr(), newer cuda-bindings have no `reserved`"
        raise AttributeError(
            f"'CUipcMemHandle' object has no attribute {name!r}{hint * (name == 'reserved')}"
        )


def handle_bytes(handle: CUipcMemHandle) -> bytes:
    return ctypes.string_at(handle.getPtr(), HANDLE_BYTES)


def handle_of(content: bytes) -> CUipcMemHandle:
    handle = CUipcMemHandle()
    ctypes.memmove(handle.getPtr(), content.ljust(HANDLE_BYTES, b"\0"), HANDLE_BYTES)
    return handle


class CUmemLocation:
    """A device by its ordinal, or host memory."""

    __slots__ = ("id", "type")

    def __init__(self) -> None:
        self.type = CUmemLocationType.CU_MEM_LOCATION_TYPE_INVALID
        self.id = 0


class CUmemAllocationFlags:
    """What else is wanted of an allocation; the fake ignores it."""

    __slots__ = ("compressionType", "gpuDirectRDMACapable", "usage")

    def __init__(self) -> None:
        self.compressionType = 0
        self.gpuDirectRDMACapable = 0
        self.usage = 0


class CUmemAllocationProp:
    """What an allocation shall be: kind, place, and what it may be exported as."""

    __slots__ = ("allocFlags", "location", "requestedHandleTypes", "type", "win32HandleMetaData")

    def __init__(self) -> None:
        self.type = CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_INVALID
        self.requestedHandleTypes = CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_NONE
        self.location = CUmemLocation()
        self.win32HandleMetaData = 0
        self.allocFlags = CUmemAllocationFlags()


class CUmemcpyAttributes:
    """How a batch of copies is done; the fake ignores it."""

    __slots__ = ("dstLocHint", "flags", "srcAccessOrder", "srcLocHint")

    def __init__(self) -> None:
        self.srcAccessOrder = CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_INVALID
        self.srcLocHint = CUmemLocation()
        self.dstLocHint = CUmemLocation()
        self.flags = 0


class CUmemAccessDesc:
    """Which device may do what with a mapping."""

    __slots__ = ("flags", "location")

    def __init__(self) -> None:
        self.location = CUmemLocation()
        self.flags = CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_NONE
