"""Device memory of this process: allocated, freed, looked up, filled and copied.

A device address is the real address of a mapped file, so a copy is a memmove. Every device range
is looked up first: what is not mapped, not accessible, or whose GPU is gone is an error here and
not a fault of the process.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import SupportsInt

from tests.fakes.fake_cuda import pages, process, streams
from tests.fakes.fake_cuda.books import Allocation, Books, FreedWhileMapped, Hold
from tests.fakes.fake_cuda.enums import CUmemorytype, CUpointer_attribute
from tests.fakes.fake_cuda.process import Span, call, call_for_one, call_for_two
from tests.fakes.fake_cuda.results import CUresult, Failed
from tests.fakes.fake_cuda.room import free_bytes, require_room
from tests.fakes.fake_cuda.structs import CUdeviceptr

Pointer = SupportsInt | None
_PIECE_WORDS = 1 << 18
_last_freed: dict[int, int] = {}  # bytes -> address, where a node uses addresses again
process.at_end.append(_last_freed.clear)


@call_for_two
def cuMemGetInfo() -> tuple[int, int]:
    gpu = process.gpu_of(process.current_device())
    registry = process.node().registry
    process.require_alive(gpu)
    with registry.books() as books:
        return free_bytes(books, registry.node, gpu.uuid), gpu.memory_bytes


@call_for_one
def cuMemAlloc(bytesize: int) -> CUdeviceptr:
    device = process.current_device()
    streams.forbid_while_capturing()
    if bytesize <= 0:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    node, gpu = process.node(), process.gpu_of(device)
    process.require_alive(gpu)
    nbytes = pages.rounded(bytesize)
    with process.lock, node.registry.books() as books:
        require_room(books, node.registry.node, gpu.uuid, nbytes)
        books.last_number += 1
        number = books.last_number
        near = _last_freed.get(nbytes, 0) if node.registry.node.freed_handle == "aliases" else 0
        address = pages.reserve(nbytes, near=near)
        path = node.registry.make_file(number, uuid=gpu.uuid, nbytes=nbytes)
        pages.map_file(path, address, nbytes)
        books.allocations[number] = Allocation(
            number=number,
            uuid=gpu.uuid,
            nbytes=nbytes,
            requested_bytes=bytesize,
            is_vmm=False,
            exportable=not gpu.mig,
            owner=node.holder,
            owner_pid=os.getpid(),
            address=address,
        )
        books.hold(_hold_of_owner(number, gpu.uuid))
        node.add_span(
            Span(
                address=address,
                nbytes=nbytes,
                requested_bytes=bytesize,
                number=number,
                gpu=gpu,
                device=device,
                kind="own",
            )
        )
    return CUdeviceptr(address)


@call
def cuMemFree(dptr: Pointer) -> None:
    device = process.current_device()
    if int(dptr or 0) == 0:
        return
    span = _span_starting_at(dptr, "own")
    streams.forbid_while_capturing()
    streams.drain(device)
    with process.lock, process.node().registry.books() as books:
        _drop(books, span)


@call_for_two
def cuMemGetAddressRange(dptr: Pointer) -> tuple[CUdeviceptr, int]:
    process.current_device()
    span = process.node().span_at(int(dptr or 0))
    if span is None:
        raise Failed(CUresult.CUDA_ERROR_NOT_FOUND)
    return CUdeviceptr(span.address), span.requested_bytes


@call
def cuMemsetD8(dstDevice: Pointer, uc: int, N: int) -> None:
    streams.drain(process.current_device())
    _fill(dstDevice, uc, N)


@call
def cuMemsetD8Async(dstDevice: Pointer, uc: int, N: int, hStream: Pointer) -> None:
    process.current_device()
    require_range(dstDevice, N, writing=True)
    streams.enqueue(hStream, lambda: _fill(dstDevice, uc, N))


@call
def cuMemsetD32Async(dstDevice: Pointer, ui: int, N: int, hStream: Pointer) -> None:
    process.current_device()
    require_range(dstDevice, 4 * N, writing=True)
    streams.enqueue(hStream, lambda: _fill_words(dstDevice, ui, N))


@call
def cuMemsetD32(dstDevice: Pointer, ui: int, N: int) -> None:
    streams.drain(process.current_device())
    _fill_words(dstDevice, ui, N)


@call_for_one
def cuPointerGetAttribute(attribute: CUpointer_attribute, ptr: Pointer) -> object:
    span = process.node().span_at(int(ptr or 0))
    if span is None:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    name = attribute.name.removeprefix("CU_POINTER_ATTRIBUTE_")
    answers: dict[str, object] = {
        "MEMORY_TYPE": int(CUmemorytype.CU_MEMORYTYPE_HOST),  # the one lie: these bytes are
        "DEVICE_POINTER": CUdeviceptr(int(ptr or 0)),
        "HOST_POINTER": int(ptr or 0),
        "BUFFER_ID": span.number,
        "IS_MANAGED": False,
        "DEVICE_ORDINAL": span.device,
        "IS_LEGACY_CUDA_IPC_CAPABLE": span.kind == "own" and not span.gpu.mig,
        "RANGE_START_ADDR": CUdeviceptr(span.address),
        "RANGE_SIZE": span.requested_bytes,
        "MAPPED": True,
    }
    if name not in answers:
        raise Failed(CUresult.CUDA_ERROR_NOT_SUPPORTED)
    return answers[name]


def require_range(pointer: Pointer, nbytes: int, *, writing: bool) -> Span:
    """The span that all of it lies in, accessible as wanted."""
    address = int(pointer or 0)
    node = process.node()
    span = node.span_at(address)
    if span is None or address + nbytes > span.address + span.nbytes:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    if not (span.writable if writing else span.readable):
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    process.require_alive(span.gpu)
    if span.kind == "import" and node.registry.file_of(span.number).with_suffix(".lost").exists():
        node.faults.dead[None] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        process.raise_sticky()
    return span


def drop_spans_of(books: Books, device: int) -> None:
    """What a context's end takes with it."""
    for span in [span for span in process.node().spans if span.device == device]:
        if span.kind != "vmm":
            _drop(books, span)


def close_import(pointer: Pointer) -> None:
    """One close; the last one unmaps."""
    span = _span_starting_at(pointer, "import")
    span.opened -= 1
    if span.opened == 0:
        with process.node().registry.books() as books:
            _drop(books, span)


def _drop(books: Books, span: Span) -> None:
    node = process.node()
    node.remove_span(span)
    pages.release(span.address, span.nbytes)
    allocation = books.allocations.get(span.number)
    if span.kind == "import":
        gpu = process.gpu_of(span.device).uuid
        hold = Hold(
            holder=node.holder, pid=os.getpid(), number=span.number, kind="import", uuid=gpu
        )
        books.let_go(hold)
    elif allocation is not None:
        _last_freed[span.nbytes] = span.address
        allocation.is_freed = True
        books.let_go(_hold_of_owner(span.number, span.gpu.uuid))
        importers = books.holds_of(span.number, "import")
        if importers:
            books.freed_while_mapped.append(
                FreedWhileMapped(
                    number=span.number,
                    uuid=span.gpu.uuid,
                    nbytes=span.nbytes,
                    mapped_by=tuple(sorted({hold.pid for hold in importers})),
                )
            )


def _fill(pointer: Pointer, value: int, nbytes: int) -> None:
    span = require_range(pointer, nbytes, writing=True)
    _load_what_fills(span.device)
    pages.fill(int(pointer or 0), nbytes, value & 0xFF)


def _load_what_fills(device: int) -> None:
    """The driver's own kernels go to a device when they are first used there."""
    node = process.node()
    more = node.registry.node.first_use_bytes
    if more and device not in node.has_filled:
        node.has_filled.add(device)
        with node.registry.books() as books:
            books.grow_context(node.holder, node.visible[device].uuid, more)


def _fill_words(pointer: Pointer, value: int, count: int) -> None:
    require_range(pointer, 4 * count, writing=True)
    address, word = int(pointer or 0), value.to_bytes(4, sys.byteorder)
    piece = word * min(count, _PIECE_WORDS)
    for offset in range(0, 4 * count, len(piece)):
        ctypes.memmove(address + offset, piece, min(len(piece), 4 * count - offset))


def _span_starting_at(pointer: Pointer, kind: str) -> Span:
    span = process.node().span_at(int(pointer or 0))
    if span is None or span.address != int(pointer or 0) or span.kind != kind:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    return span


def _hold_of_owner(number: int, uuid: str) -> Hold:
    holder = process.node().holder
    return Hold(holder=holder, pid=os.getpid(), number=number, kind="owner", uuid=uuid)
