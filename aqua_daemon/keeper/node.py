"""All GPUs of one keeper: allocate, free, owners.

Every verb here is done or refused at once and leaves nothing half done; what has to wait (a free
while mapped) says so, and is asked again. Does not cover connections and timers: that is `server`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from aqua_protos.keeper_pb2 import Allocate, Free, GpuReport, RegisterOwner

from aqua_daemon.keeper.gpu import Gpu, ScrubFailed, Slab
from aqua_daemon.keeper.mappings import Mapped
from aqua_daemon.keeper.proofs import Proof, Proofs, check_proof
from aqua_daemon.keeper.refusal import Refused, invalid
from aqua_daemon.keeper.requests import check_allocate, check_gpu, check_id, check_owner

_log = logging.getLogger("aqua.keeper")


@dataclass(frozen=True, slots=True, kw_only=True)
class FreedSlab:
    """What came of a free."""

    scrubbed_bytes: int = 0
    while_mapped: bool = False
    unreturned_bytes: int = 0  # which the driver counts as used all the same


class KeptGpus:
    """Owns every slab's memory and every holder's proof."""

    def __init__(
        self, gpus: Sequence[Gpu], *, smallest_slab_bytes: int, largest_slab_bytes: int
    ) -> None:
        self._gpus = {gpu.name: gpu for gpu in gpus}
        self._proofs = Proofs()
        self.gpus = tuple(self._gpus)
        self.smallest_slab_bytes = smallest_slab_bytes
        self.largest_slab_bytes = largest_slab_bytes

    def allocate(self, request: Allocate, *, pidfd: int, sentinel: int) -> Slab:
        """Make a slab for the lease; takes ownership of both descriptors.

        Raises:
            Refused: nothing has changed, and both descriptors are closed.
        """
        try:
            gpu = self._gpu_for(request)
            if not self._proofs.knows(request.tag.session_id):
                check_proof(pidfd=pidfd, sentinel=sentinel)
            memory = gpu.make(request.tag.lease_id, request.nbytes)
        except BaseException:
            os.close(pidfd)
            os.close(sentinel)
            raise
        self._proofs.keep(request.tag.session_id, pidfd=pidfd, sentinel=sentinel)
        slab = gpu.slabs[request.tag.lease_id] = Slab(tag=request.tag, memory=memory)
        return slab

    def free(self, request: Free) -> FreedSlab | None:
        """Scrub the slab and give its memory back; None while somebody may still map it.

        Raises:
            Refused: the request is malformed, the slab is on another GPU, or the driver failed.
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
        unreturned_bytes = holding.take_back(slab.memory)
        if unreturned_bytes:
            self._note_mapped(holding, slab)
        del holding.slabs[request.lease_id]
        self._proofs.drop(slab.tag.session_id)
        return FreedSlab(
            scrubbed_bytes=scrubbed_bytes,
            while_mapped=slab.was_mapped_at_free,
            unreturned_bytes=unreturned_bytes,
        )

    def gpu(self, name: str) -> Gpu:
        """One of this keeper's.

        Raises:
            Refused: it is not.
        """
        check_gpu(name, self.gpus)
        return self._gpus[name]

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
            gpu.end_owner(pid)

    def has_owner(self, pid: int | None = None) -> bool:
        """Whether *pid* (None: anybody) uses any GPU."""
        return any(gpu.has_owner(pid) for gpu in self._gpus.values())

    def has_living_holders(self) -> bool:
        """Whether a process that lives may still hold a slab."""
        return any(not proof.has_ended() for proof in self._proofs.all())

    def proofs(self) -> tuple[Proof, ...]:
        """Of every session that holds a slab."""
        return self._proofs.all()

    def look(self) -> None:
        """Once a second: let each GPU do what has become possible."""
        for gpu in self._gpus.values():
            gpu.look()

    @property
    def failure(self) -> str:
        """Why no slab can be made on any GPU ever again; else empty."""
        failures = [gpu.failure for gpu in self._gpus.values()]
        return failures[0] if all(failures) else ""

    def reports(self) -> list[GpuReport]:
        """Every GPU as it is now."""
        return [gpu.report() for gpu in self._gpus.values()]

    def close(self) -> None:
        """Give everything back. May be called twice."""
        for gpu in self._gpus.values():
            gpu.close()
        self._proofs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _gpu_for(self, request: Allocate) -> Gpu:
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
        return self._gpus[request.gpu]

    def _holding(self, lease_id: str) -> Gpu | None:
        return next((gpu for gpu in self._gpus.values() if lease_id in gpu.slabs), None)

    def _scrubbed_bytes(self, gpu: Gpu, slab: Slab) -> int | None:
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

    def _note_mapped(self, gpu: Gpu, slab: Slab) -> None:
        if not slab.was_mapped_at_free:
            slab.was_mapped_at_free = True
            gpu.freed_while_mapped += 1
            _log.warning(
                "lease %s of process %d is to be freed and is still mapped: its %d bytes stay used",
                slab.tag.lease_id,
                slab.tag.holder_pid,
                slab.memory.nbytes,
            )
