"""Maps CUDA slabs into this process, by either kind of handle, on its own device.

A legacy handle is 64 bytes; a VMM allocation comes as a descriptor, which stays the caller's. Both
are opened in the primary context of the process's *own* device, never on the lender's ordinal,
where that would build a context of half a GiB. Does not cover which device that is
(`own_device`), nor whether the memory is the slab that was granted (`opening`).

Opening the same handle twice gives one mapping, and closing it twice is a fault, so all mappings
of the process are in one table. Its lock is held across the driver's calls, against this project's
habit: an opening that races with the closing of the same lease is just what it has to prevent, and
nothing but opening and closing takes it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from aqua_client import dlpack
from aqua_client.cuda_driver import acting_on, call, driver, is_host_memory, known_bytes, read_bytes
from aqua_client.cuda_errors import CONTEXT_GONE, CudaError

HANDLE_BYTES = 64  # CU_IPC_HANDLE_SIZE

logger = logging.getLogger("aqua")


class CudaMapping:
    """A slab in this process, until `close`. It is not closed by garbage collection."""

    def __init__(self, key: _Key, opened: _Opened) -> None:
        """Made by `open_legacy` and `open_vmm`."""
        self._key = key
        self._opened: _Opened | None = opened
        # Every view, whatever its dtype, keeps its storage alive: so that tells of views.
        self._storages: list[weakref.ref[torch.UntypedStorage]] = []

    @property
    def ordinal(self) -> int | None:
        """The device of its tensors; None: the driver says that they are in the host's memory."""
        return None if self._live().is_host else self._key.ordinal

    @property
    def opened_on(self) -> int:
        """The device in whose context it is open."""
        return self._key.ordinal

    def whole(self) -> torch.Tensor:
        """All bytes. Whoever keeps it, or a view of it, keeps `close` from working.

        Raises:
            RuntimeError: torch has no such device.
        """
        opened = self._live()
        tensor = dlpack.tensor_at(opened.address, opened.nbytes, ordinal=self.ordinal)
        self._storages.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    def first_bytes(self, nbytes: int) -> bytes:
        """Copied out, and waited for.

        Raises:
            CudaError: the driver can't read there.
        """
        with acting_on(self._key.ordinal):
            return read_bytes(self._live().address, nbytes)

    def enlarge(self, nbytes: int) -> bool:  # noqa: ARG002 - a slab's pages are the device's affair
        """Nothing to do."""
        return False

    def close(self) -> None:
        """Unmap, if nobody else in the process has it open. Idempotent.

        Raises:
            BufferError: somebody still has a view, or the driver refused; it may be tried again.
        """
        if self._opened is None:
            return
        self._storages = [one for one in self._storages if one() is not None]
        if self._storages:
            raise BufferError("the mapping is still in use: a view of it is alive")
        with _lock:
            if self._opened.holders == 1:
                self._unmap(self._opened)
                del _table[self._key]
            self._opened.holders -= 1
            self._opened = None

    def _unmap(self, opened: _Opened) -> None:
        try:
            with acting_on(self._key.ordinal):
                opened.unmap()
        except CudaError as error:
            if error.name not in CONTEXT_GONE:
                raise BufferError(f"the driver does not unmap it: {error}") from error

    def _live(self) -> _Opened:
        if self._opened is None:
            raise ValueError("the mapping is closed")
        return self._opened


def open_legacy(handle: bytes, *, lease_id: str, ordinal: int, nbytes: int) -> CudaMapping:
    """Open the 64 bytes of a legacy handle.

    Raises:
        CudaError: it can't be opened, or has fewer bytes.
    """
    if len(handle) != HANDLE_BYTES:
        message = f"a handle of {len(handle)} bytes, not {HANDLE_BYTES}"
        raise CudaError("CUDA_ERROR_INVALID_HANDLE", message)
    return _open(_Key(lease_id, ordinal), nbytes, lambda: _legacy(handle, nbytes))


def open_vmm(descriptor: int, *, lease_id: str, ordinal: int, nbytes: int) -> CudaMapping:
    """Import a descriptor, and map it for this device alone.

    Raises:
        CudaError: it is none of CUDA's, or has fewer bytes.
    """
    return _open(_Key(lease_id, ordinal), nbytes, lambda: _virtual(descriptor, ordinal, nbytes))


@dataclass(frozen=True, slots=True)
class _Key:
    lease_id: str
    ordinal: int


@dataclass(slots=True)
class _Opened:
    """One mapping of the driver's, and how many of ours share it."""

    address: int
    nbytes: int
    unmap: Callable[[], None]
    is_host: bool  # as the driver says: then torch finds it on the CPU
    holders: int = 1


def _open(key: _Key, nbytes: int, make: Callable[[], _Opened]) -> CudaMapping:
    with _lock:
        opened = _table.get(key)
        if opened is not None and opened.nbytes != nbytes:
            raise CudaError("CUDA_ERROR_INVALID_VALUE", f"open with {opened.nbytes} bytes already")
        if opened is not None:
            opened.holders += 1
        else:
            with acting_on(key.ordinal):
                opened = make()
            _table[key] = opened
        return CudaMapping(key, opened)


def _legacy(handle: bytes, nbytes: int) -> _Opened:
    cuda = driver()
    token = cuda.CUipcMemHandle()
    # By address: some releases of cuda-bindings have no attribute for the bytes.
    ctypes.memmove(token.getPtr(), handle, len(handle))
    pointer = call(
        "cuIpcOpenMemHandle", token, int(cuda.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
    )
    with ExitStack() as undo:
        undo.callback(call, "cuIpcCloseMemHandle", pointer)
        size = known_bytes(int(pointer))
        if size is not None and size < nbytes:
            message = f"the memory has {size} bytes, not the {nbytes} that were granted"
            raise CudaError("CUDA_ERROR_INVALID_VALUE", message)
        is_host = is_host_memory(int(pointer))
        undo.pop_all()

    def unmap() -> None:
        call("cuIpcCloseMemHandle", pointer)

    return _Opened(int(pointer), nbytes, unmap, is_host)


def _virtual(descriptor: int, ordinal: int, nbytes: int) -> _Opened:
    cuda = driver()
    kind = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    access = cuda.CUmemAccessDesc()
    access.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    access.location.id = ordinal
    access.flags = cuda.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    with ExitStack() as release, ExitStack() as undo:
        memory = call("cuMemImportFromShareableHandle", descriptor, kind)
        # The mapping keeps the memory: the handle goes in any case.
        release.callback(call, "cuMemRelease", memory)
        pointer = call("cuMemAddressReserve", nbytes, 0, cuda.CUdeviceptr(0), 0)
        undo.callback(call, "cuMemAddressFree", pointer, nbytes)
        call("cuMemMap", pointer, nbytes, 0, memory, 0)
        undo.callback(call, "cuMemUnmap", pointer, nbytes)
        call("cuMemSetAccess", pointer, nbytes, [access], 1)
        is_host = is_host_memory(int(pointer))
        undo.pop_all()

    def unmap() -> None:
        call("cuMemUnmap", pointer, nbytes)
        try:
            call("cuMemAddressFree", pointer, nbytes)
        except CudaError as error:
            logger.warning("a range of addresses stays reserved: %s", error)

    return _Opened(int(pointer), nbytes, unmap, is_host)


def _forget_in_child() -> None:
    """What the parent has mapped is not here, and its lock may be held by a thread that is not."""
    global _lock  # noqa: PLW0603 - one table a process
    _lock = threading.Lock()
    _table.clear()


_table: dict[_Key, _Opened] = {}
_lock = threading.Lock()

os.register_at_fork(after_in_child=_forget_in_child)
