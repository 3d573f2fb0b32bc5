"""The keeper's door to CUDA: the driver's calls on one device, from one thread.

The only importer of `cuda.bindings` in the daemon, and late, so that nothing else needs it. Driver
calls only: no kernel, no runtime library, nothing that makes a context larger than it has to be. Does
not cover what is done with them (`cuda_memory`, `cuda_gpu`).

1. `CUDA_MPS_PIPE_DIRECTORY` names an empty directory before the driver wakes up: a keeper that
   became a client of MPS would die with every other client's fault.
2. The primary context, with blocking waits: one context, about 0.5 GB of the GPU, and no core that
   spins for it. All that it will ever take it takes at once.
3. A failed call leaves the context usable or broken for good ("sticky"). Which it is, the driver
   says when it is asked to do nothing: `ailment`; what follows from it is `health`'s.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

IPC_HANDLE_BYTES = 64
_PIECE_BYTES = 64 * 2**20  # of a scrub: what else runs on the GPU gets its turn in between
_WARM_UP_BYTES = 2 * 2**20  # the least that the driver deals in
_OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"


class CudaError(Exception):
    """A call of the driver failed: `NAME: explanation`."""

    def __init__(self, name: str, explanation: str) -> None:
        super().__init__(f"{name}: {explanation}")
        self.name = name
        self.is_out_of_memory = name == _OUT_OF_MEMORY


class CudaDevice:
    """One device with its primary context current on this thread. Close it there too."""

    def __init__(self, uuid: str, *, no_mps: Path) -> None:
        """Find the device by its UUID (`GPU-...`) and make a context there.

        Raises:
            CudaError: there is no driver, no such device, or no context to be had.
        """
        with contextlib.ExitStack() as undo:
            no_mps.mkdir(mode=0o700, exist_ok=True)
            os.putenv("CUDA_MPS_PIPE_DIRECTORY", str(no_mps))
            self._driver = _driver()
            _checked(self._driver, self._call("cuInit", 0))
            self._device = self._found(uuid)
            flags = self._driver.CUctx_flags.CU_CTX_SCHED_BLOCKING_SYNC
            self._do("cuDevicePrimaryCtxSetFlags", self._device, int(flags))
            self._context = self._do("cuDevicePrimaryCtxRetain", self._device)
            undo.callback(self._call, "cuDevicePrimaryCtxRelease", self._device)
            self._do("cuCtxSetCurrent", self._context)
            undo.callback(self._call, "cuCtxSetCurrent", self._driver.CUcontext(0))
            non_blocking = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            self._stream = self._do("cuStreamCreate", int(non_blocking))
            undo.callback(self._call, "cuStreamDestroy", self._stream)
            self._warm_up()
            self._undo = undo.pop_all()

    def free_bytes(self) -> int:
        """What nobody uses on the device, this process's context not counted as free either."""
        free_bytes, _total_bytes = self._do("cuMemGetInfo")
        return int(free_bytes)

    def ailment(self) -> CudaError | None:
        """What the driver says when it is asked to do nothing, if that fails."""
        try:
            self._do("cuCtxSynchronize")
            self.free_bytes()  # with nothing to wait for, the call above may not reach the GPU
        except CudaError as error:
            return error
        return None

    # Legacy CUDA IPC

    def allocate(self, nbytes: int) -> int:
        """The address of new memory."""
        return int(self._do("cuMemAlloc", nbytes))

    def free(self, address: int) -> None:
        """Give it back; what importers have mapped stays used until they close it."""
        self._do("cuMemFree", address)

    def ipc_handle(self, address: int) -> bytes:
        """The 64 bytes that another process opens it by."""
        handle = self._do("cuIpcGetMemHandle", address)
        # By address: cuda-bindings has no name for the bytes that all its versions share.
        return ctypes.string_at(handle.getPtr(), IPC_HANDLE_BYTES)

    def open_ipc(self, handle: bytes) -> int:
        """The address here of what another process made, on whichever device; undo it with `close_ipc`."""
        wanted = self._driver.CUipcMemHandle()
        ctypes.memmove(wanted.getPtr(), handle, IPC_HANDLE_BYTES)
        lazy = self._driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        return int(self._do("cuIpcOpenMemHandle", wanted, int(lazy)))

    def close_ipc(self, address: int) -> None:
        """Take the address away."""
        self._do("cuIpcCloseMemHandle", address)

    # Virtual memory management

    def create(self, nbytes: int) -> int:
        """Physical memory that can be exported as a descriptor; it has no address yet.

        Raises:
            CudaError: no memory, or *nbytes* is not a multiple of what the driver deals in.
        """
        properties = self._properties()
        minimum = self._driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        granule = int(self._do("cuMemGetAllocationGranularity", properties, minimum))
        if nbytes % granule:
            text = f"{nbytes} bytes are no multiple of {granule}, this driver's granule"
            raise CudaError("CUDA_ERROR_INVALID_VALUE", text)
        return int(self._do("cuMemCreate", nbytes, properties, 0))

    def export(self, memory: int) -> int:
        """A descriptor of it, the caller's to close; each keeps the memory alive."""
        kinds = self._driver.CUmemAllocationHandleType
        kind = kinds.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        descriptor = int(self._do("cuMemExportToShareableHandle", self._generic(memory), kind, 0))
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - the standard library's signature
        return descriptor

    def imported(self, descriptor: int) -> int:
        """The memory that another process exported; undo it with `release`."""
        kinds = self._driver.CUmemAllocationHandleType
        kind = kinds.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        return int(self._do("cuMemImportFromShareableHandle", descriptor, kind))

    def map(self, memory: int, nbytes: int) -> int:
        """Give it an address here, to be read and written; undo it with `unmap`."""
        with contextlib.ExitStack() as undo:
            address = int(self._do("cuMemAddressReserve", nbytes, 0, 0, 0))
            undo.callback(self._call, "cuMemAddressFree", address, nbytes)
            self._do("cuMemMap", address, nbytes, 0, self._generic(memory), 0)
            undo.callback(self._call, "cuMemUnmap", address, nbytes)
            self._do("cuMemSetAccess", address, nbytes, [self._access()], 1)
            undo.pop_all()
        return address

    def unmap(self, address: int, nbytes: int) -> None:
        """Take the address away; the memory stays."""
        self._do("cuMemUnmap", address, nbytes)
        self._call("cuMemAddressFree", address, nbytes)  # if not, some of many addresses are lost

    def release(self, memory: int) -> None:
        """Give it back; what importers have stays used until they let go of it."""
        self._do("cuMemRelease", self._generic(memory))

    # Bytes

    def fill_zero(self, address: int, nbytes: int) -> None:
        """Zero all of it; done when this returns."""
        for offset in range(0, nbytes, _PIECE_BYTES):
            piece_bytes = min(_PIECE_BYTES, nbytes - offset)
            self._do("cuMemsetD8Async", address + offset, 0, piece_bytes, self._stream)
        self._do("cuStreamSynchronize", self._stream)

    def read(self, address: int, nbytes: int) -> bytes:
        """What is there."""
        there = ctypes.create_string_buffer(nbytes)
        self._do("cuMemcpyDtoH", ctypes.addressof(there), address, nbytes)
        return there.raw

    def write(self, address: int, content: bytes) -> None:
        """Put *content* there; done when this returns."""
        here = ctypes.create_string_buffer(content, len(content))
        self._do("cuMemcpyHtoD", address, ctypes.addressof(here), len(content))
        # A small copy from pageable memory returns when it is staged, not when it has arrived.
        self._do("cuCtxSynchronize")

    # Host memory, and copies on threads of their own

    def allocate_host(self, nbytes: int) -> int:
        """The address of new host memory, pinned."""
        return int(self._do("cuMemHostAlloc", nbytes, 0))

    def free_host(self, address: int) -> None:
        """Give it back."""
        self._do("cuMemFreeHost", address)

    @contextlib.contextmanager
    def timed_copies(self) -> Iterator[Callable[[int, int, int], float]]:
        """Seconds that a copy takes by the device's own clock: to, from, bytes.

        On the thread that enters this, which need not be that of the other calls.
        """
        with contextlib.ExitStack() as undo:
            self._do("cuCtxSetCurrent", self._context)
            undo.callback(self._call, "cuCtxSetCurrent", self._driver.CUcontext(0))
            non_blocking = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            stream = self._do("cuStreamCreate", int(non_blocking))
            undo.callback(self._call, "cuStreamDestroy", stream)
            began, ended = self._timer(undo), self._timer(undo)

            def copy_seconds(to: int, source: int, nbytes: int) -> float:
                self._do("cuEventRecord", began, stream)
                self._do("cuMemcpyAsync", to, source, nbytes, stream)
                self._do("cuEventRecord", ended, stream)
                self._do("cuEventSynchronize", ended)
                return float(self._do("cuEventElapsedTime", began, ended)) / 1e3

            yield copy_seconds

    def _timer(self, undo: contextlib.ExitStack) -> Any:  # noqa: ANN401 - a CUevent
        blocking = self._driver.CUevent_flags.CU_EVENT_BLOCKING_SYNC
        event = self._do("cuEventCreate", int(blocking))
        undo.callback(self._call, "cuEventDestroy", event)
        return event

    def close(self) -> None:
        """Give the context back. May be called twice."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _warm_up(self) -> None:
        """What the driver loads into the device at a first fill or copy is to be there from now on.

        Else it would be counted as free until some slab is made.
        """
        try:
            address = self.allocate(_WARM_UP_BYTES)
        except CudaError as error:
            if error.is_out_of_memory:  # a full GPU may be looked at all the same
                return
            raise
        try:
            self.fill_zero(address, _WARM_UP_BYTES)
            self.write(address, self.read(address, IPC_HANDLE_BYTES))
        finally:
            self.free(address)

    def _found(self, uuid: str) -> Any:  # noqa: ANN401 - a CUdevice
        count = int(self._do("cuDeviceGetCount"))
        wanted = uuid.removeprefix("GPU-").replace("-", "")
        for ordinal in range(count):
            device = self._do("cuDeviceGet", ordinal)
            if bytes(self._do("cuDeviceGetUuid", device).bytes).hex() == wanted:
                return device
        text = f"{uuid} is not among the {count} devices that CUDA shows this process"
        raise CudaError("CUDA_ERROR_NO_DEVICE", text)

    def _properties(self) -> Any:  # noqa: ANN401 - a CUmemAllocationProp
        driver = self._driver
        properties = driver.CUmemAllocationProp()
        properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        kinds = driver.CUmemAllocationHandleType
        properties.requestedHandleTypes = kinds.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = int(self._device)
        return properties

    def _access(self) -> Any:  # noqa: ANN401 - a CUmemAccessDesc
        access = self._driver.CUmemAccessDesc()
        access.location.type = self._driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = int(self._device)
        access.flags = self._driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        return access

    def _generic(self, memory: int) -> Any:  # noqa: ANN401 - a CUmemGenericAllocationHandle
        return self._driver.CUmemGenericAllocationHandle(memory)

    def _do(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 - as the driver has it
        return _checked(self._driver, self._call(name, *arguments))

    def _call(self, name: str, *arguments: object) -> tuple[Any, ...]:
        try:
            result: tuple[Any, ...] = getattr(self._driver, name)(*arguments)
        except RuntimeError as error:  # the first call looks for the driver's library
            raise CudaError("CUDA_ERROR_NOT_FOUND", str(error)) from error
        return result


def _driver() -> Any:  # noqa: ANN401 - a module without annotations
    try:
        from cuda.bindings import driver
    except ImportError as error:
        text = f"{error}; install cuda-bindings of the driver's major version"
        raise CudaError("CUDA_ERROR_NOT_FOUND", text) from error
    return driver


def _checked(driver: Any, result: tuple[Any, ...]) -> Any:  # noqa: ANN401 - as the driver has it
    """What a call returned, without its code: one value, or a tuple where there are more.

    Raises:
        CudaError: the code is not success.
    """
    code, *values = result
    if code != driver.CUresult.CUDA_SUCCESS:
        raise CudaError(*_explained(driver, code))
    return values[0] if len(values) == 1 else tuple(values)


def _explained(driver: Any, code: Any) -> tuple[str, str]:  # noqa: ANN401 - a CUresult
    _, name = driver.cuGetErrorName(code)
    _, text = driver.cuGetErrorString(code)
    return (name or b"CUDA_ERROR_UNKNOWN").decode(), (text or str(code).encode()).decode()
