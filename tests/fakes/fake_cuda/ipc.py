"""Legacy handles: 64 bytes that name an allocation by its exporter's pid and its address.

Where the node says "aliases", nothing in them tells a new allocation at a freed address from the
old one, as driver 580 was seen to do; else they also carry the allocation's number.
"""

from __future__ import annotations

import os
import struct

from tests.fakes.fake_cuda import pages, process, streams
from tests.fakes.fake_cuda.books import Allocation, Books, Hold
from tests.fakes.fake_cuda.devices import can_access
from tests.fakes.fake_cuda.enums import CUipcMem_flags
from tests.fakes.fake_cuda.memory import Pointer, close_import
from tests.fakes.fake_cuda.process import Span, call, call_for_one
from tests.fakes.fake_cuda.results import CUresult, Failed
from tests.fakes.fake_cuda.structs import CUdeviceptr, CUipcMemHandle, handle_bytes, handle_of

_LAYOUT = struct.Struct("<8sQQQ")  # magic, pid, address, number or 0
_MAGIC = b"FAKECUDA"


@call_for_one
def cuIpcGetMemHandle(dptr: Pointer) -> CUipcMemHandle:
    process.current_device()
    node = process.node()
    span = node.span_at(int(dptr or 0))
    if span is None or span.kind != "own":
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    if span.gpu.mig:
        raise Failed(CUresult.CUDA_ERROR_NOT_SUPPORTED)
    number = 0 if node.registry.node.freed_handle == "aliases" else span.number
    return handle_of(_LAYOUT.pack(_MAGIC, os.getpid(), span.address, number))


@call_for_one
def cuIpcOpenMemHandle(handle: CUipcMemHandle, Flags: int) -> CUdeviceptr:
    if not isinstance(handle, CUipcMemHandle):
        raise TypeError(f"Argument 'handle' has incorrect type (got {type(handle).__name__})")
    device = process.current_device()
    streams.forbid_while_capturing()
    if int(Flags) != CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    with process.lock, process.node().registry.books() as books:
        allocation = _named_by(handle, books)
        return CUdeviceptr(_opened(books, allocation, device))


@call
def cuIpcCloseMemHandle(dptr: Pointer) -> None:
    process.current_device()
    streams.forbid_while_capturing()
    with process.lock:
        close_import(dptr)


def _named_by(handle: CUipcMemHandle, books: Books) -> Allocation:
    content = handle_bytes(handle)
    magic, pid, address, number = _LAYOUT.unpack_from(content)
    if magic != _MAGIC:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    if pid == os.getpid():
        raise Failed(CUresult.CUDA_ERROR_INVALID_CONTEXT)
    for allocation in books.allocations.values():
        is_named = (allocation.owner_pid, allocation.address) == (pid, address)
        is_owned = not allocation.is_freed and books.holds_of(allocation.number, "owner")
        if is_named and is_owned and number in {0, allocation.number} and not allocation.is_vmm:
            return allocation
    raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)


def _opened(books: Books, allocation: Allocation, device: int) -> int:
    """One mapping a context and allocation, counted."""
    node = process.node()
    for span in node.spans:
        if (span.number, span.device, span.kind) == (allocation.number, device, "import"):
            span.opened += 1
            return span.address
    lender = next(gpu for gpu in node.registry.node.gpus if gpu.uuid == allocation.uuid)
    own = process.gpu_of(device)
    process.require_alive(lender)
    if lender != own and not can_access(own, lender):
        raise Failed(CUresult.CUDA_ERROR_PEER_ACCESS_UNSUPPORTED)
    address = pages.reserve(allocation.nbytes)
    pages.map_file(node.registry.file_of(allocation.number), address, allocation.nbytes)
    books.hold(
        Hold(
            holder=node.holder,
            pid=os.getpid(),
            number=allocation.number,
            kind="import",
            uuid=own.uuid,
        )
    )
    node.add_span(
        Span(
            address=address,
            nbytes=allocation.nbytes,
            requested_bytes=allocation.requested_bytes,
            number=allocation.number,
            gpu=lender,
            device=device,
            kind="import",
        )
    )
    return address
