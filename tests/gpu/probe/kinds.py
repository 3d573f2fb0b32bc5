"""Device memory that another process can map, in the two kinds that CUDA has, behind one door.

`legacy` is cuMemAlloc and 64 bytes of handle; `vmm` is cuMemCreate and a descriptor. Each step of
an operation is timed apart, because their costs differ by orders of magnitude.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

from tests.gpu.probe.driver import call, enum, struct, timed
from tests.gpu.probe.names import LEGACY, Times

HANDLE_BYTES = 64


@dataclass(slots=True, kw_only=True)
class Held:
    """Memory that this process made, or opened."""

    kind: str
    nbytes: int
    pointer: int  # 0: made without a mapping here
    handle: Any = None  # of the driver, vmm only


def allocate(kind: str, nbytes: int, ordinal: int, times: Times, *, mapped: bool = True) -> Held:
    """New memory on a device. Only vmm memory can be had unmapped, and needs no context then."""
    if kind == LEGACY:
        with timed(times, "allocate"):
            pointer = int(call("cuMemAlloc", nbytes))
        return Held(kind=kind, nbytes=nbytes, pointer=pointer)
    with timed(times, "allocate"):
        handle = call("cuMemCreate", nbytes, _properties(ordinal), 0)
    pointer = _map(handle, nbytes, ordinal, times) if mapped else 0
    return Held(kind=kind, nbytes=nbytes, pointer=pointer, handle=handle)


def export(held: Held, times: Times) -> tuple[bytes, int | None]:
    """What another process opens it by: 64 bytes, or a descriptor that the caller closes."""
    if held.kind == LEGACY:
        with timed(times, "export"):
            token = call("cuIpcGetMemHandle", held.pointer)
        return ctypes.string_at(int(token.getPtr()), HANDLE_BYTES), None
    with timed(times, "export"):
        return b"", int(call("cuMemExportToShareableHandle", held.handle, _posix(), 0))


def open_exported(
    kind: str, nbytes: int, handle: bytes, descriptor: int | None, ordinal: int, times: Times
) -> Held:
    """Map what another process exported. The descriptor stays the caller's."""
    if kind == LEGACY:
        token = struct("CUipcMemHandle")
        # Some releases of the bindings name the bytes `reserved`, others do not.
        ctypes.memmove(int(token.getPtr()), handle, HANDLE_BYTES)
        lazily = int(enum("CUipcMem_flags", "CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS"))
        with timed(times, "open"):
            pointer = int(call("cuIpcOpenMemHandle", token, lazily))
        return Held(kind=kind, nbytes=nbytes, pointer=pointer)
    assert descriptor is not None, "vmm memory comes as a descriptor"
    with timed(times, "open"):
        imported = call("cuMemImportFromShareableHandle", descriptor, _posix())
    pointer = _map(imported, nbytes, ordinal, times)
    return Held(kind=kind, nbytes=nbytes, pointer=pointer, handle=imported)


def close(held: Held, times: Times) -> None:
    """Unmap what was opened."""
    if held.kind == LEGACY:
        with timed(times, "close"):
            call("cuIpcCloseMemHandle", held.pointer)
        return
    _unmap(held, times)
    with timed(times, "close"):
        call("cuMemRelease", held.handle)


def free(held: Held, times: Times) -> None:
    """Give back what was allocated here."""
    if held.kind == LEGACY:
        with timed(times, "free"):
            call("cuMemFree", held.pointer)
        return
    if held.pointer:
        _unmap(held, times)
    with timed(times, "free"):
        call("cuMemRelease", held.handle)


def close_descriptor(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _posix() -> object:
    kind = "CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR"
    return enum("CUmemAllocationHandleType", kind)


def _location(ordinal: int) -> Any:  # noqa: ANN401 - the bindings have no types
    location = struct("CUmemLocation")
    location.type = enum("CUmemLocationType", "CU_MEM_LOCATION_TYPE_DEVICE")
    location.id = ordinal
    return location


def _properties(ordinal: int) -> object:
    properties = struct("CUmemAllocationProp")
    properties.type = enum("CUmemAllocationType", "CU_MEM_ALLOCATION_TYPE_PINNED")
    properties.location = _location(ordinal)
    properties.requestedHandleTypes = _posix()
    return properties


def _map(handle: object, nbytes: int, ordinal: int, times: Times) -> int:
    access = struct("CUmemAccessDesc")
    access.location = _location(ordinal)
    access.flags = enum("CUmemAccess_flags", "CU_MEM_ACCESS_FLAGS_PROT_READWRITE")
    with timed(times, "reserve"):
        pointer = call("cuMemAddressReserve", nbytes, 0, 0, 0)
    with timed(times, "map"):
        call("cuMemMap", pointer, nbytes, 0, handle, 0)
    with timed(times, "set_access"):
        call("cuMemSetAccess", pointer, nbytes, [access], 1)
    return int(pointer)


def _unmap(held: Held, times: Times) -> None:
    with timed(times, "unmap"):
        call("cuMemUnmap", held.pointer, held.nbytes)
    with timed(times, "unreserve"):
        call("cuMemAddressFree", held.pointer, held.nbytes)
    held.pointer = 0
