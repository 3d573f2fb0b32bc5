"""The memory of one CUDA slab: an allocation of its own, of either kind.

Covers making it zero with a canary, handing it out, scrubbing it, giving it back. Does not cover
room and figures (`cuda_gpu`).

CUDA can't be asked who maps an allocation. So these are freed on the daemon's word alone (its holder
acknowledged, or is proved gone), and whether the driver got the bytes back is seen afterwards, in
what the device counts as used.
"""

from __future__ import annotations

import contextlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from aqua_protos.keeper_pb2 import DESCRIPTOR_KIND_CUDA_VMM

from aqua_daemon.keeper.cuda_driver import CudaDevice, CudaError
from aqua_daemon.keeper.gpu import CANARY_BYTES, Handle, ScrubFailed
from aqua_daemon.keeper.mappings import Mapped
from aqua_daemon.keeper.refusal import Refused

_SAMPLE_BYTES = 4096
_SAMPLES = 8


def refused(error: CudaError) -> Refused:
    """What a keeper answers when the driver has failed."""
    code = "RESOURCE_EXHAUSTED" if error.is_out_of_memory else "INTERNAL"
    return Refused(code, str(error))


@dataclass(slots=True, kw_only=True)
class CudaMemory(ABC):
    """What both kinds have in common. Whoever made it closes it."""

    device: CudaDevice
    nbytes: int
    canary: bytes = b""

    def mapped(self, *, likely_pid: int) -> Mapped:
        """It can't be asked; see above."""
        del likely_pid
        return Mapped.NO

    def scrub(self) -> int:
        """Zero all of it; see `SlabMemory.scrub`."""
        try:
            with self._address() as address:
                self._zero(address)
        except CudaError as error:
            raise refused(error) from error
        return self.nbytes

    def prepare(self) -> None:
        """Make it zero but for a new canary at its start.

        Raises:
            CudaError: the driver failed.
            ScrubFailed: it is not zero after that.
        """
        with self._address() as address:
            self._zero(address)
            self.canary = secrets.token_bytes(CANARY_BYTES)
            self.device.write(address, self.canary)

    def reached(self) -> contextlib.AbstractContextManager[int]:
        """Its address meanwhile, for copies of the keeper's own. Raises CudaError."""
        return self._address()

    def zero(self) -> None:
        """Have nothing in it that was there before. Raises CudaError."""
        with self._address() as address:
            self.device.fill_zero(address, self.nbytes)

    def _zero(self, address: int) -> None:
        self.device.fill_zero(address, self.nbytes)
        for sample in range(_SAMPLES):
            offset = (self.nbytes - _SAMPLE_BYTES) * sample // (_SAMPLES - 1)
            if any(self.device.read(address + offset, _SAMPLE_BYTES)):
                msg = f"it is not zero at byte {offset} after a scrub"
                raise ScrubFailed(msg)

    @abstractmethod
    def handle_for_holder(self) -> Handle:
        """See `SlabMemory.handle_for_holder`."""

    @abstractmethod
    def close(self) -> None:
        """See `SlabMemory.close`."""

    @abstractmethod
    def _address(self) -> contextlib.AbstractContextManager[int]:
        """Where the bytes can be reached meanwhile."""


@dataclass(slots=True, kw_only=True)
class LegacyMemory(CudaMemory):
    """From cuMemAlloc, opened by others through the 64 bytes of a CUDA IPC handle."""

    address: int

    @classmethod
    def made(cls, device: CudaDevice, nbytes: int) -> LegacyMemory:
        """New memory, not prepared yet.

        Raises:
            CudaError: there is none to be had.
        """
        return cls(device=device, nbytes=nbytes, address=device.allocate(nbytes))

    def handle_for_holder(self) -> Handle:
        """See `SlabMemory.handle_for_holder`."""
        try:
            return Handle(cuda_ipc=self.device.ipc_handle(self.address))
        except CudaError as error:
            raise refused(error) from error

    def close(self) -> None:
        """See `SlabMemory.close`."""
        if self.address:
            try:
                self.device.free(self.address)
            except CudaError as error:
                raise refused(error) from error
            self.address = 0

    @contextlib.contextmanager
    def _address(self) -> Iterator[int]:
        yield self.address


@dataclass(slots=True, kw_only=True)
class VmmMemory(CudaMemory):
    """From cuMemCreate, passed on as a descriptor; it has an address here only to be scrubbed."""

    memory: int
    mapped_at: int = 0  # also where the driver did not take it away: a mapping keeps the memory

    @classmethod
    def made(cls, device: CudaDevice, nbytes: int) -> VmmMemory:
        """New memory, not prepared yet.

        Raises:
            CudaError: there is none to be had.
        """
        return cls(device=device, nbytes=nbytes, memory=device.create(nbytes))

    def handle_for_holder(self) -> Handle:
        """See `SlabMemory.handle_for_holder`."""
        try:
            descriptor = self.device.export(self.memory)
        except CudaError as error:
            raise refused(error) from error
        return Handle(descriptor=descriptor, descriptor_kind=DESCRIPTOR_KIND_CUDA_VMM)

    def close(self) -> None:
        """See `SlabMemory.close`."""
        if self.memory:
            try:
                self._unmap()
                self.device.release(self.memory)
            except CudaError as error:
                raise refused(error) from error
            self.memory = 0

    @contextlib.contextmanager
    def _address(self) -> Iterator[int]:
        if not self.mapped_at:
            self.mapped_at = self.device.map(self.memory, self.nbytes)
        try:
            yield self.mapped_at
        finally:
            self._unmap()

    def _unmap(self) -> None:
        if self.mapped_at:
            self.device.unmap(self.mapped_at, self.nbytes)
            self.mapped_at = 0
