"""Memory of a CUDA GPU, of a peer, and of the host, to measure links with.

Each is a slab's memory without a lease. What a peer's keeper has offered is opened on this GPU, never
on the peer's: that would build a context there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from aqua_daemon.keeper.cuda_driver import CudaDevice, CudaError
from aqua_daemon.keeper.cuda_memory import CudaMemory, refused
from aqua_daemon.keeper.gpu import Copying, Handle, ProbeMemory

_log = logging.getLogger("aqua.keeper")


class CudaProbe:
    """An address, and what to undo when it is not wanted any more."""

    def __init__(self, address: int, undo: contextlib.ExitStack, memory: CudaMemory | None) -> None:
        self.address = address
        self._undo = undo
        self._memory = memory

    def handle(self) -> Handle:
        """See `OfferedMemory.handle`; of what is this GPU's own."""
        if self._memory is None:
            raise ValueError("what is another's is not handed on")
        return self._memory.handle_for_holder()

    def close(self) -> None:
        """See `ProbeMemory.close`. What the driver refuses to take back goes with the process."""
        undo, self._undo = self._undo, contextlib.ExitStack()
        try:
            undo.close()
        except CudaError as error:
            _log.warning("memory of a measurement is not given back: %s", error)


def own_probe(memory: CudaMemory, undo: contextlib.ExitStack) -> CudaProbe:
    """Memory of this GPU, which *undo* gives back.

    Raises:
        CudaError: the driver failed; nothing is undone.
    """
    memory.zero()
    address = undo.enter_context(memory.reached())
    return CudaProbe(address, undo.pop_all(), memory)


def foreign_probe(device: CudaDevice, handle: Handle, nbytes: int) -> CudaProbe:
    """What another keeper has offered; see `Gpu.foreign_probe_memory`.

    Raises:
        CudaError: it can't be opened here; nothing is left behind.
    """
    with contextlib.ExitStack() as undo:
        if handle.descriptor is None:
            address = device.open_ipc(handle.cuda_ipc)
            undo.callback(device.close_ipc, address)
        else:
            memory = device.imported(handle.descriptor)
            undo.callback(device.release, memory)
            address = device.map(memory, nbytes)
            undo.callback(device.unmap, address, nbytes)
        return CudaProbe(address, undo.pop_all(), None)


def host_probe(device: CudaDevice, nbytes: int) -> CudaProbe:
    """Pinned host memory. Raises CudaError: there is none."""
    with contextlib.ExitStack() as undo:
        address = device.allocate_host(nbytes)
        undo.callback(device.free_host, address)
        return CudaProbe(address, undo.pop_all(), None)


@contextlib.contextmanager
def copying(device: CudaDevice) -> Iterator[Copying]:
    """See `Gpu.copying`."""
    with _refusing(), device.timed_copies() as timed:

        def copy_seconds(source: ProbeMemory, target: ProbeMemory, nbytes: int) -> float:
            return timed(target.address, source.address, nbytes)

        yield copy_seconds


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except CudaError as error:
        raise refused(error) from error
