"""All shm GPUs of one keeper: allocate, free, owners.

Every verb here is done or refused at once and leaves nothing half done; what has to wait (a free
while mapped) says so, and is asked again. Does not cover connections and timers: that is `server`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from dataclasses import dataclass
from typing import Self

from aqua_protos.keeper_pb2 import Allocate, Free, GpuReport, RegisterOwner

from aqua_daemon.keeper.gpu import ShmGpu, Slab
from aqua_daemon.keeper.mappings import Mapped
from aqua_daemon.keeper.memory import ScrubFailed, make_slab_memory
from aqua_daemon.keeper.proofs import Proof, Proofs, check_proof
from aqua_daemon.keeper.refusal import Refused, exhausted, invalid
from aqua_daemon.keeper.requests import check_allocate, check_gpu, check_id, check_owner

_log = logging.getLogger("aqua.keeper")


@dataclass(frozen=True, slots=True, kw_only=True)
class FreedSlab:
    """What came of a free."""

    scrubbed_bytes: int = 0
    while_mapped: bool = False


class ShmNode:
    """Owns every slab's memory and every holder's proof."""

    def __init__(
        self, *, gpus: int, gpu_bytes: int, smallest_slab_bytes: int, largest_slab_bytes: int
    ) -> None:
        sizes_fit = 0 < smallest_slab_bytes <= min(largest_slab_bytes, gpu_bytes)
        if gpus < 1 or not sizes_fit:
            msg = (
                f"{gpus} GPUs of {gpu_bytes} bytes with slabs of {smallest_slab_bytes} to "
                f"{largest_slab_bytes}: give at least 1 GPU, with room for one of the smallest slabs"
            )
            raise ValueError(msg)
        names = tuple(f"SHM-{number}" for number in range(gpus))
        self._gpus = {name: ShmGpu(name=name, total_bytes=gpu_bytes) for name in names}
        self._proofs = Proofs()
        self.gpus = names
        self.smallest_slab_bytes = smallest_slab_bytes
        self.largest_slab_bytes = largest_slab_bytes

    def allocate(self, request: Allocate, *, pidfd: int, sentinel: int) -> Slab:
        """Make a slab for the lease; takes ownership of both descriptors.

        Raises:
            Refused: nothing has changed, and both descriptors are closed.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, pidfd)
            undo.callback(os.close, sentinel)
            gpu = self._gpu_for(request)
            lease_id = request.tag.lease_id
            try:
                check_proof(pidfd=pidfd, sentinel=sentinel)
                memory = make_slab_memory(f"aqua-{lease_id}", request.nbytes)
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "?")
                raise exhausted(f"the kernel gave no memory: {name}: {error.strerror}") from error
            except ScrubFailed as error:
                raise Refused("INTERNAL", str(error)) from error
            undo.pop_all()
        self._proofs.keep(request.tag.session_id, pidfd=pidfd, sentinel=sentinel)
        slab = gpu.slabs[lease_id] = Slab(tag=request.tag, memory=memory)
        return slab

    def free(self, request: Free) -> FreedSlab | None:
        """Scrub the slab and give its memory back; None while somebody may still map it.

        Raises:
            Refused: the request is malformed, or the slab is on another GPU.
        """
        check_gpu(request.gpu, self.gpus)
        check_id("lease_id", request.lease_id)
        holding = self._holding(request.lease_id)
        if holding is None:
            return FreedSlab()
        if holding.name != request.gpu:
            raise invalid(f"lease {request.lease_id} is on {holding.name}, not on {request.gpu}")
        slab = holding.slabs[request.lease_id]
        scrubbed_bytes = self._scrubbed_bytes(holding, slab)
        if scrubbed_bytes is None:
            return None
        del holding.slabs[request.lease_id]
        slab.memory.close()
        self._proofs.drop(slab.tag.session_id)
        return FreedSlab(scrubbed_bytes=scrubbed_bytes, while_mapped=slab.was_mapped_at_free)

    def set_owner(self, request: RegisterOwner, *, pid: int) -> int:
        """Set what *pid* uses on a GPU; what it has there now.

        Raises:
            Refused: malformed, or more than is free; nothing has changed.
        """
        check_gpu(request.gpu, self.gpus)
        check_owner(request)
        gpu = self._gpus[request.gpu]
        return gpu.set_owner(pid, request.nbytes, what_fits=request.what_fits)

    def end_owner(self, pid: int) -> None:
        """The process has ended, and what it used is free. Idempotent."""
        for gpu in self._gpus.values():
            gpu.owner_bytes.pop(pid, None)

    def has_owner(self, pid: int | None = None) -> bool:
        """Whether *pid* (None: anybody) uses any GPU."""
        owners = (gpu.owner_bytes for gpu in self._gpus.values())
        return any(pid in by_pid if pid is not None else by_pid for by_pid in owners)

    def has_living_holders(self) -> bool:
        """Whether a process that lives may still hold a slab."""
        return any(not proof.has_ended() for proof in self._proofs.all())

    def proofs(self) -> tuple[Proof, ...]:
        """Of every session that holds a slab."""
        return self._proofs.all()

    def reports(self) -> list[GpuReport]:
        """Every GPU as it is now."""
        return [gpu.report() for gpu in self._gpus.values()]

    def close(self) -> None:
        """Give everything back to the kernel. May be called twice."""
        for gpu in self._gpus.values():
            for slab in gpu.slabs.values():
                slab.memory.close()
            gpu.slabs.clear()
        self._proofs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _gpu_for(self, request: Allocate) -> ShmGpu:
        check_gpu(request.gpu, self.gpus)
        check_allocate(
            request,
            smallest_bytes=self.smallest_slab_bytes,
            largest_bytes=self.largest_slab_bytes,
        )
        lease_id = request.tag.lease_id
        holding = self._holding(lease_id)
        if holding is not None:
            message = f"lease {lease_id} has a slab on {holding.name}: lease ids are never reused"
            raise Refused("ALREADY_EXISTS", message)
        gpu = self._gpus[request.gpu]
        gpu.check_room(request.nbytes)
        return gpu

    def _holding(self, lease_id: str) -> ShmGpu | None:
        return next((gpu for gpu in self._gpus.values() if lease_id in gpu.slabs), None)

    def _scrubbed_bytes(self, gpu: ShmGpu, slab: Slab) -> int | None:
        """How many bytes were scrubbed; None while a living process may hold the slab."""
        mapped = slab.memory.mapped(likely_pid=slab.tag.holder_pid)
        if mapped is Mapped.UNKNOWN and self._proofs.of(slab.tag.session_id).has_ended():
            mapped = Mapped.NO
        if mapped is Mapped.YES:
            self._note_mapped(gpu, slab)
        if mapped is not Mapped.NO:
            return None
        try:
            return slab.memory.scrub()
        except ScrubFailed as error:
            # Only a living holder can have done this, to its own bytes: they stay counted.
            if not self._proofs.of(slab.tag.session_id).has_ended():
                return None
            _log.warning("lease %s was freed unscrubbed: %s", slab.tag.lease_id, error)
            return 0

    def _note_mapped(self, gpu: ShmGpu, slab: Slab) -> None:
        if not slab.was_mapped_at_free:
            slab.was_mapped_at_free = True
            gpu.freed_while_mapped += 1
            _log.warning(
                "lease %s of process %d is to be freed and is still mapped: its %d bytes stay held",
                slab.tag.lease_id,
                slab.tag.holder_pid,
                slab.memory.nbytes,
            )
