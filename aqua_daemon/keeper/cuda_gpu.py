"""One CUDA GPU of a keeper: its context, its slabs, and what it tells of the GPU.

Covers when a context is made, room, and figures. Does not cover one slab's memory (`cuda_memory`),
the driver's calls (`cuda_driver`), nor what NVML says (`nvml_reader`, `inventory`).

1. There is a context only while the GPU may be lent: on one in exclusive mode it would keep its
   owner out.
2. What a free should have given back and did not is used by others from that moment: the answer to
   the free says so, then NVML does. So it is never counted as free.
3. What the keeper's own context takes is used by others, too. Nothing is lent before it has been
   seen there: until NVML was read anew, the driver's own word stands for it. The same holds for
   what an allocation takes beyond its size.
4. A broken context breaks every call after it. The keeper says so and ends, without another call:
   one on a GPU that is gone may never return. Its slabs are lost, and its bytes, which nobody could
   scrub, are free when the driver has taken them from a process that is no more.
5. Where the driver refuses a context, the keeper stays to say why. What spoils a process for good is
   tried anew by the next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from aqua_protos.keeper_pb2 import GpuLink, GpuReport, OwnerReport

from aqua_daemon.keeper import inventory
from aqua_daemon.keeper.cuda_driver import CudaDevice, CudaError
from aqua_daemon.keeper.cuda_memory import CudaMemory, LegacyMemory, VmmMemory, refused
from aqua_daemon.keeper.cuda_probe import copying, foreign_probe, host_probe, own_probe
from aqua_daemon.keeper.gpu import (
    Copying,
    Gpu,
    Handle,
    OfferedMemory,
    ProbeMemory,
    ScrubFailed,
    SlabMemory,
)
from aqua_daemon.keeper.health import Health, ends_context
from aqua_daemon.keeper.nvml_reader import Figures, NvmlReader
from aqua_daemon.keeper.refusal import Refused, exhausted
from aqua_daemon.keeper.unseen import Unseen

STALE_SECONDS = 5.0
_OPEN_AGAIN_SECONDS = 30.0  # after the driver refused a context
_SEE_SECONDS = 1.0  # a reading takes milliseconds, unless NVML hangs

_log = logging.getLogger("aqua.keeper")


@dataclass(slots=True, kw_only=True)
class CudaGpu(Gpu):
    """All of it from the one thread that calls `look` first."""

    uses_vmm: bool
    reader: NvmlReader
    no_mps: Path
    looked_at: float = field(default_factory=time.monotonic)
    _device: CudaDevice | None = None
    _open_problem: str = ""
    _open_again_at: float = 0.0
    _health: Health = field(default_factory=Health)
    _spoiled: str = ""  # why this process will never have a context, and the next one may
    _opened_revision: int = 0  # of `Held`, from which on the context is there
    _unseen: Unseen = field(init=False)

    def __post_init__(self) -> None:
        self._unseen = Unseen(self.reader)

    @property
    def failure(self) -> str:
        """The driver's words about a context that is broken for good; else empty."""
        return self._health.failure

    def look(self) -> None:
        """Make the context as soon as it may be, and see whether it still works."""
        self.looked_at = time.monotonic()
        if self.failure:
            return
        if self._device is not None:
            self._health.looked(self._device.ailment(), is_lost=self.reader.is_lost)
        elif not self._gpu_trouble() and time.monotonic() >= self._open_again_at:
            if self._spoiled:
                self._health.failure = self._spoiled
            else:
                self._open()

    def make(self, lease_id: str, nbytes: int) -> SlabMemory:
        """See `Gpu.make`."""
        device = self._usable_device()
        with self.reader.held.changing():
            try:
                memory, beyond_bytes = self._made_and_seen(device, nbytes)
            except CudaError as error:
                raise self._refusal_of(error, nbytes) from error
            except ScrubFailed as error:
                raise Refused("INTERNAL", f"lease {lease_id}: {error}") from error
            self.reader.held.nbytes += nbytes
        self._unseen.note(beyond_bytes)
        return memory

    def take_back(self, memory: SlabMemory) -> int:
        """Free it, and see whether the device has it back; see `Gpu.take_back`."""
        if self.failure or self._device is None:
            raise Refused("INTERNAL", self.failure or "there is no context")
        held = self.reader.held
        with held.changing():
            try:
                before = self._device.free_bytes()
                memory.close()
            except CudaError as error:
                self._health.failed(error)
                raise refused(error) from error
            held.nbytes -= memory.nbytes
            risen_bytes = self._risen_bytes(self._device, before)
        self.reader.wake()
        # It comes back whole or not at all; what is between is somebody else's, at the same moment.
        if risen_bytes >= memory.nbytes // 2:
            return 0
        self._unseen.note_missing(memory.nbytes)
        return memory.nbytes

    def probe_memory(self, nbytes: int) -> OfferedMemory:
        """See `Gpu.probe_memory`: to the books it is used by others."""
        device = self._usable_device()
        with contextlib.ExitStack() as undo:
            try:
                with self.reader.held.changing():
                    memory = self._kind.made(device, nbytes)
                undo.callback(self._probe_closed, memory)
                found = own_probe(memory, undo)
            except CudaError as error:
                raise self._refusal_of(error, nbytes) from error
            self._unseen.note(nbytes)
            return found

    def host_probe_memory(self, nbytes: int) -> ProbeMemory:
        """Pinned; see `Gpu.host_probe_memory`."""
        device = self._usable_device()
        try:
            return host_probe(device, nbytes)
        except CudaError as error:
            raise refused(error) from error

    def foreign_probe_memory(self, handle: Handle, nbytes: int) -> ProbeMemory:
        """See `Gpu.foreign_probe_memory`."""
        device = self._usable_device()
        try:
            return foreign_probe(device, handle, nbytes)
        except CudaError as error:
            raise refused(error) from error

    def copying(self) -> contextlib.AbstractContextManager[Copying]:
        """By the device's clock; see `Gpu.copying`."""
        return copying(self._usable_device())

    def _probe_closed(self, memory: CudaMemory) -> None:
        with self.reader.held.changing(), contextlib.suppress(Refused):
            memory.close()
        self.reader.wake()

    def set_owner(self, pid: int, nbytes: int, *, what_fits: bool) -> int:
        """Refused: NVML tells what the processes of a real GPU use."""
        del nbytes, what_fits
        message = f"process {pid} need not say what it uses of {self.name}: NVML tells"
        raise Refused("FAILED_PRECONDITION", message)

    def end_owner(self, pid: int) -> None:
        """NVML sees that too."""

    def has_owner(self, pid: int | None) -> bool:
        """Nobody has to say so here, and a keeper need not stay for them."""
        del pid
        return False

    def report(self) -> GpuReport:
        """See `Gpu.report`."""
        report = GpuReport(
            gpu=self.name,
            slabs=self.slab_reports,
            freed_while_mapped=self.freed_while_mapped,
            not_lending=self._trouble(),
        )
        figures = self.reader.latest
        if figures is not None:
            self._unseen.seen(figures)
            _tell(report, figures)
            report.other_bytes = figures.others_bytes + self._unseen.nbytes
            report.warnings.extend(inventory.warnings(figures.reading))
            report.warnings.extend(filter(None, [self._unseen.warning]))
        return report

    def close(self) -> None:
        """See `Gpu.close`."""
        if self.failure:
            self.slabs.clear()
            self._device = None
        Gpu.close(self)
        if self._device is not None:
            self._device.close()
            self._device = None
        with contextlib.suppress(OSError):
            self.no_mps.rmdir()

    def _open(self) -> None:
        held = self.reader.held
        try:
            with held.changing():
                self._device = CudaDevice(self.name, no_mps=self.no_mps)
            free_bytes = self._device.free_bytes()
        except (CudaError, OSError) as error:
            self._give_up_context(f"the driver made no context there: {error}")
            if isinstance(error, CudaError) and ends_context(error):
                self._spoiled = str(error)
            return
        self._open_problem = ""
        self._opened_revision = held.revision
        figures = self.reader.latest
        if figures is not None:
            reading = figures.reading
            self._unseen.note(reading.total_bytes - reading.used_bytes - free_bytes)
        self.reader.wait_until_seen(held.revision, _SEE_SECONDS)

    def _give_up_context(self, problem: str) -> None:
        if self._device is not None:
            self._device.close()
            self._device = None
        self._open_problem = problem
        self._open_again_at = time.monotonic() + _OPEN_AGAIN_SECONDS
        _log.error("%s: %s", self.name, problem)

    def _usable_device(self) -> CudaDevice:
        if self.failure:
            raise Refused("INTERNAL", self.failure)
        trouble = self._trouble()
        if trouble or self._device is None:
            message = f"{self.name} is not lent: {trouble or 'it has not been looked at yet'}"
            raise Refused("FAILED_PRECONDITION", message)
        return self._device

    @property
    def _kind(self) -> type[LegacyMemory | VmmMemory]:
        return VmmMemory if self.uses_vmm else LegacyMemory

    def _made_and_seen(self, device: CudaDevice, nbytes: int) -> tuple[CudaMemory, int]:
        """New memory, and what the driver took for it beyond its size."""
        free_bytes = device.free_bytes()
        memory = self._made(device, nbytes)
        try:
            return memory, free_bytes - nbytes - device.free_bytes()
        except CudaError:
            with contextlib.suppress(Refused):  # what went wrong first is to be told
                memory.close()
            raise

    def _risen_bytes(self, device: CudaDevice, before: int) -> int:
        """What the device has more than *before*; where it does not tell, nothing."""
        try:
            return device.free_bytes() - before
        except CudaError as error:  # it is freed all the same, and must not be freed again
            self._health.failed(error)
            return 0

    def _made(self, device: CudaDevice, nbytes: int) -> CudaMemory:
        memory = self._kind.made(device, nbytes)
        try:
            memory.prepare()
        except (CudaError, ScrubFailed):
            with contextlib.suppress(Refused):  # what went wrong first is to be told
                memory.close()
            raise
        return memory

    def _refusal_of(self, error: CudaError, nbytes: int) -> Refused:
        if not error.is_out_of_memory:
            self._health.failed(error)
            return refused(error)
        figures = self.reader.latest
        room = (
            ""
            if figures is None
            else (f" of {figures.reading.total_bytes} bytes, {figures.others_bytes} used by others")
        )
        return exhausted(
            f"{error}: {nbytes} are asked for on {self.name}{room}, {self.slab_bytes} in slabs"
        )

    def _trouble(self) -> str:
        return self.failure or self._gpu_trouble() or self._open_problem or self._not_seen_yet()

    def _not_seen_yet(self) -> str:
        if self._device is None:
            return "its keeper has made no context yet"
        if not self.reader.has_seen(self._opened_revision):
            return "NVML has not been read since its keeper made a context there"
        return ""

    def _gpu_trouble(self) -> str:
        figures = self.reader.latest
        if self.reader.problem:
            return self.reader.problem
        if figures is None:
            return "NVML has not answered yet"
        age_seconds = self.reader.age_seconds()
        if age_seconds > STALE_SECONDS:
            return f"NVML has not answered for {age_seconds:.0f} s"
        return inventory.not_lending(figures.reading)


def _tell(report: GpuReport, figures: Figures) -> None:
    reading, identity = figures.reading, figures.identity
    report.total_bytes = reading.total_bytes
    report.model = identity.model
    report.owners.extend(
        OwnerReport(pid=pid, nbytes=nbytes)
        for pid, nbytes in reading.process_bytes.items()
        if pid != os.getpid()
    )
    report.links.extend(
        GpuLink(
            peer=link.peer,
            kind=link.kind,
            count=link.count,
            has_peer_access=link.has_peer_access,
        )
        for link in identity.links
    )
    if identity.numa_node is not None:
        report.numa_node = identity.numa_node
