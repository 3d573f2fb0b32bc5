"""Copies between device and host, at once or in a stream, and pinned host memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from tests.fakes.fake_cuda import pages, process, streams
from tests.fakes.fake_cuda.memory import Pointer, require_range
from tests.fakes.fake_cuda.process import call, call_for_one
from tests.fakes.fake_cuda.results import CUresult, Failed
from tests.fakes.fake_cuda.structs import CUdeviceptr, CUmemcpyAttributes

HostPointer = int | ctypes.c_void_p | bytes | bytearray | memoryview | None
_pinned: dict[int, int] = {}  # registered address -> bytes
_allocated: dict[int, int] = {}
process.at_end.extend([_pinned.clear, _allocated.clear])


@call
def cuMemcpy(dst: Pointer, src: Pointer, ByteCount: int) -> None:
    _now(_unified(dst, src, ByteCount))


@call
def cuMemcpyAsync(dst: Pointer, src: Pointer, ByteCount: int, hStream: Pointer) -> None:
    _in_order(_unified(dst, src, ByteCount), hStream)


@call
def cuMemcpyBatchAsync(
    dsts: Sequence[Pointer],
    srcs: Sequence[Pointer],
    sizes: Sequence[int],
    count: int,
    attrs: Sequence[CUmemcpyAttributes],
    attrsIdxs: Sequence[int],
    numAttrs: int,
    hStream: Pointer,
) -> None:
    if not all(isinstance(pointer, CUdeviceptr) for pointer in (*dsts, *srcs)):
        raise TypeError("'dsts' and 'srcs' are lists of CUdeviceptr, here alone")
    process.current_device()
    if not count or not numAttrs or len(attrs) < numAttrs or list(attrsIdxs)[:1] != [0]:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    if int(hStream or 0) == 0:  # the driver takes no null stream here
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    triples = list(zip(dsts, srcs, sizes, strict=True))[:count]
    for copy in [_unified(to, source, nbytes) for to, source, nbytes in triples]:
        streams.enqueue(hStream, copy)


@call
def cuMemcpyDtoD(dstDevice: Pointer, srcDevice: Pointer, ByteCount: int) -> None:
    _now(_between_devices(dstDevice, srcDevice, ByteCount))


@call
def cuMemcpyDtoDAsync(
    dstDevice: Pointer,
    srcDevice: Pointer,
    ByteCount: int,
    hStream: Pointer,
) -> None:
    _in_order(_between_devices(dstDevice, srcDevice, ByteCount), hStream)


@call
def cuMemcpyDtoH(dstHost: HostPointer, srcDevice: Pointer, ByteCount: int) -> None:
    _now(_to_host(dstHost, srcDevice, ByteCount))


@call
def cuMemcpyDtoHAsync(
    dstHost: HostPointer,
    srcDevice: Pointer,
    ByteCount: int,
    hStream: Pointer,
) -> None:
    _in_order(_to_host(dstHost, srcDevice, ByteCount), hStream)


@call
def cuMemcpyHtoD(dstDevice: Pointer, srcHost: HostPointer, ByteCount: int) -> None:
    _now(_to_device(dstDevice, srcHost, ByteCount))


@call
def cuMemcpyHtoDAsync(
    dstDevice: Pointer,
    srcHost: HostPointer,
    ByteCount: int,
    hStream: Pointer,
) -> None:
    _in_order(_to_device(dstDevice, srcHost, ByteCount), hStream)


@call_for_one
def cuMemHostAlloc(bytesize: int, Flags: int) -> int:  # noqa: ARG001 - the driver has it
    process.current_device()
    if bytesize <= 0:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    address = pages.host_memory(bytesize)
    _allocated[address] = bytesize
    return address


@call
def cuMemFreeHost(p: HostPointer) -> None:
    process.current_device()
    address = _host_address(p)
    if address not in _allocated:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    pages.release(address, pages.rounded(_allocated.pop(address), pages.PAGE_BYTES))


@call
def cuMemHostRegister(p: HostPointer, bytesize: int, Flags: int) -> None:  # noqa: ARG001 - the driver has it
    process.current_device()
    address = _host_address(p)
    if bytesize <= 0 or not address:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    pinned = {**_pinned, **_allocated}
    if any(start < address + bytesize and address < start + size for start, size in pinned.items()):
        raise Failed(CUresult.CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED)
    _pinned[address] = bytesize


@call
def cuMemHostUnregister(p: HostPointer) -> None:
    process.current_device()
    if _pinned.pop(_host_address(p), None) is None:
        raise Failed(CUresult.CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED)


def _now(copy: Callable[[], None]) -> None:
    streams.drain(process.current_device())
    copy()


def _in_order(copy: Callable[[], None], stream: Pointer) -> None:
    process.current_device()
    streams.enqueue(stream, copy)


def _unified(to: Pointer, source: Pointer, nbytes: int) -> Callable[[], None]:
    """Either end may be host memory; what lies in a span is checked as device memory."""
    target, origin = int(to or 0), int(source or 0)
    is_device = [process.node().span_at(address) is not None for address in (target, origin)]
    return _checked(target, origin, nbytes, into_device=is_device[0], from_device=is_device[1])


def _between_devices(to: Pointer, source: Pointer, nbytes: int) -> Callable[[], None]:
    return _checked(int(to or 0), int(source or 0), nbytes, into_device=True, from_device=True)


def _to_host(to: HostPointer, source: Pointer, nbytes: int) -> Callable[[], None]:
    target = _host_address(to)
    return _checked(target, int(source or 0), nbytes, into_device=False, from_device=True)


def _to_device(to: Pointer, source: HostPointer, nbytes: int) -> Callable[[], None]:
    origin = _host_address(source)
    return _checked(int(to or 0), origin, nbytes, into_device=True, from_device=False)


def _checked(
    target: int, origin: int, nbytes: int, *, into_device: bool, from_device: bool
) -> Callable[[], None]:
    """A copy that looks at its device ranges when it is asked for and again when it is done."""
    process.current_device()

    def check() -> None:
        if into_device:
            require_range(target, nbytes, writing=True)
        if from_device:
            require_range(origin, nbytes, writing=False)

    def copy() -> None:
        check()
        ctypes.memmove(target, origin, nbytes)

    check()
    return copy


def _host_address(pointer: HostPointer) -> int:
    """An address, or that of a buffer's first byte."""
    if pointer is None:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    if isinstance(pointer, bytes):
        return ctypes.cast(ctypes.c_char_p(pointer), ctypes.c_void_p).value or 0
    if isinstance(pointer, int):
        return pointer
    if isinstance(pointer, ctypes.c_void_p):
        return pointer.value or 0
    return ctypes.addressof(ctypes.c_char.from_buffer(pointer))
