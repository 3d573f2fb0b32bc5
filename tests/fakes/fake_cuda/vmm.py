"""Virtual memory management: physical memory, addresses, and the mappings between the two.

Needs no context. An exported descriptor is one of the allocation's file; all its copies, also
those on their way through a socket, share a lock by which the registry knows that they exist.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsInt

from tests.fakes.fake_cuda import pages, process
from tests.fakes.fake_cuda.books import Allocation, Hold, HoldKind
from tests.fakes.fake_cuda.description import GpuDescription
from tests.fakes.fake_cuda.devices import can_access
from tests.fakes.fake_cuda.enums import (
    CUmemAccess_flags,
    CUmemAllocationGranularity_flags,
    CUmemAllocationHandleType,
    CUmemAllocationType,
    CUmemLocationType,
)
from tests.fakes.fake_cuda.memory import Pointer
from tests.fakes.fake_cuda.process import Span, call, call_for_one
from tests.fakes.fake_cuda.results import CUresult, Failed
from tests.fakes.fake_cuda.room import require_room
from tests.fakes.fake_cuda.structs import (
    CUdeviceptr,
    CUmemAccessDesc,
    CUmemAllocationProp,
    CUmemGenericAllocationHandle,
)

_INVALID = CUresult.CUDA_ERROR_INVALID_VALUE
_DESCRIPTOR = CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


@dataclass(frozen=True, kw_only=True)
class _Physical:
    number: int
    nbytes: int
    gpu: GpuDescription
    device: int


_numbers = itertools.count(0x10)
_handles: dict[int, _Physical] = {}
_reserved: dict[int, int] = {}  # address -> bytes


def _forget() -> None:
    for address, size in _reserved.items():
        pages.release(address, size)
    _reserved.clear()
    _handles.clear()


process.at_end.append(_forget)


@call_for_one
def cuMemGetAllocationGranularity(
    prop: CUmemAllocationProp,
    option: CUmemAllocationGranularity_flags,  # noqa: ARG001 - both are the same here
) -> int:
    _gpu_at(prop.location.type, prop.location.id)
    return pages.GRANULE_BYTES


@call_for_one
def cuMemCreate(size: int, prop: CUmemAllocationProp, flags: int) -> CUmemGenericAllocationHandle:
    gpu = _gpu_at(prop.location.type, prop.location.id)
    pinned = CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    if flags or size <= 0 or size % pages.GRANULE_BYTES or prop.type != pinned:
        raise Failed(_INVALID)
    process.require_alive(gpu)
    node = process.node()
    with process.lock, node.registry.books() as books:
        require_room(books, node.registry.node, gpu.uuid, size)
        books.last_number += 1
        number = books.last_number
        node.registry.make_file(number, uuid=gpu.uuid, nbytes=size)
        books.allocations[number] = Allocation(
            number=number,
            uuid=gpu.uuid,
            nbytes=size,
            requested_bytes=size,
            is_vmm=True,
            exportable=bool(prop.requestedHandleTypes & _DESCRIPTOR),
            owner=node.holder,
            owner_pid=os.getpid(),
        )
        books.hold(_hold("handle", number, gpu.uuid))
    return _new_handle(_Physical(number=number, nbytes=size, gpu=gpu, device=prop.location.id))


@call
def cuMemRelease(handle: SupportsInt) -> None:
    with process.lock:
        physical = _physical(handle)
        del _handles[int(handle)]
        with process.node().registry.books() as books:
            books.let_go(_hold("handle", physical.number, physical.gpu.uuid))


@call_for_one
def cuMemExportToShareableHandle(
    handle: SupportsInt,
    handleType: CUmemAllocationHandleType,
    flags: int,
) -> int:
    physical = _physical(handle)
    if flags or handleType != _DESCRIPTOR:
        raise Failed(_INVALID)
    registry = process.node().registry
    with registry.books() as books:
        allocation = books.allocations[physical.number]
        if not allocation.exportable:
            raise Failed(_INVALID)
        descriptor = os.open(registry.file_of(physical.number), os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        allocation.has_descriptors = True
    return descriptor


@call_for_one
def cuMemImportFromShareableHandle(
    osHandle: SupportsInt,
    shHandleType: CUmemAllocationHandleType,
) -> CUmemGenericAllocationHandle:
    node = process.node()
    if shHandleType != _DESCRIPTOR:
        raise Failed(_INVALID)
    try:
        path = Path(f"/proc/self/fd/{int(osHandle)}").readlink()
    except OSError:
        raise Failed(_INVALID) from None
    if path.parent != node.registry.file_of(0).parent.resolve() or not path.name.isdigit():
        raise Failed(_INVALID)
    number = int(path.name)
    with process.lock, node.registry.books() as books:
        allocation = books.allocations.get(number)
        if allocation is None or not allocation.is_vmm:
            raise Failed(_INVALID)
        gpu = next(gpu for gpu in node.registry.node.gpus if gpu.uuid == allocation.uuid)
        books.hold(_hold("handle", number, gpu.uuid))
    device = node.visible.index(gpu) if gpu in node.visible else -1
    return _new_handle(_Physical(number=number, nbytes=allocation.nbytes, gpu=gpu, device=device))


@call_for_one
def cuMemAddressReserve(size: int, alignment: int, addr: Pointer, flags: int) -> CUdeviceptr:
    process.node()
    if flags or size <= 0 or size % pages.GRANULE_BYTES:
        raise Failed(_INVALID)
    if alignment & (alignment - 1):
        raise Failed(_INVALID)
    wanted = max(alignment, pages.GRANULE_BYTES)
    with process.lock:
        address = pages.reserve(size, alignment=wanted, near=int(addr or 0))
        _reserved[address] = size
    return CUdeviceptr(address)


@call
def cuMemAddressFree(ptr: Pointer, size: int) -> None:
    address = int(ptr or 0)
    with process.lock:
        if _reserved.get(address) != size or _mapped_in(address, size):
            raise Failed(_INVALID)
        del _reserved[address]
        pages.release(address, size)


@call
def cuMemMap(ptr: Pointer, size: int, offset: int, handle: SupportsInt, flags: int) -> None:
    address, physical = int(ptr or 0), _physical(handle)
    if flags or offset or size % pages.GRANULE_BYTES or not 0 < size <= physical.nbytes:
        raise Failed(_INVALID)
    with process.lock:
        if not _is_reserved(address, size) or _mapped_in(address, size):
            raise Failed(_INVALID)
        node = process.node()
        with node.registry.books() as books:
            books.hold(_hold("mapping", physical.number, physical.gpu.uuid))
        path = node.registry.file_of(physical.number)
        pages.map_file(path, address, size, readable=False)
        node.add_span(
            Span(
                address=address,
                nbytes=size,
                requested_bytes=size,
                number=physical.number,
                gpu=physical.gpu,
                device=physical.device,
                kind="vmm",
                readable=False,
                writable=False,
            )
        )


@call
def cuMemUnmap(ptr: Pointer, size: int) -> None:
    address = int(ptr or 0)
    with process.lock:
        spans = _mapped_in(address, size)
        if not spans or spans[0].address != address or sum(span.nbytes for span in spans) != size:
            raise Failed(_INVALID)
        with process.node().registry.books() as books:
            for span in spans:
                pages.unmap_file(span.address, span.nbytes)
                process.node().remove_span(span)
                books.let_go(_hold("mapping", span.number, span.gpu.uuid))


@call
def cuMemSetAccess(ptr: Pointer, size: int, desc: Sequence[CUmemAccessDesc], count: int) -> None:
    if len(desc) < count:
        raise RuntimeError(f"List is too small: {len(desc)} < {count}")
    with process.lock:
        spans = _mapped_in(int(ptr or 0), size)
        if not spans or sum(span.nbytes for span in spans) != size:
            raise Failed(_INVALID)
        for access in desc[:count]:
            gpu = _gpu_at(access.location.type, access.location.id)
            for span in spans:
                if gpu != span.gpu and not can_access(gpu, span.gpu):
                    raise Failed(CUresult.CUDA_ERROR_INVALID_DEVICE)
                _give(span, access.flags)


def _give(span: Span, flags: CUmemAccess_flags) -> None:
    span.readable = flags != CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_NONE
    span.writable = flags == CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    pages.protect(span.address, span.nbytes, readable=span.readable, writable=span.writable)


def _gpu_at(kind: CUmemLocationType, ordinal: int) -> GpuDescription:
    if kind != CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE:
        raise Failed(_INVALID)
    return process.gpu_of(ordinal)


def _new_handle(physical: _Physical) -> CUmemGenericAllocationHandle:
    number = next(_numbers)
    _handles[number] = physical
    return CUmemGenericAllocationHandle(number)


def _physical(handle: SupportsInt) -> _Physical:
    process.node()
    if int(handle) not in _handles:
        raise Failed(_INVALID)
    return _handles[int(handle)]


def _hold(kind: HoldKind, number: int, uuid: str) -> Hold:
    return Hold(holder=process.node().holder, pid=os.getpid(), number=number, kind=kind, uuid=uuid)


def _mapped_in(address: int, size: int) -> list[Span]:
    return [
        span
        for span in process.node().spans
        if span.kind == "vmm"
        and span.address < address + size
        and address < span.address + span.nbytes
    ]


def _is_reserved(address: int, size: int) -> bool:
    return any(
        start <= address and address + size <= start + reserved
        for start, reserved in _reserved.items()
    )
