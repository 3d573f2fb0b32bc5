"""Measuring links with memory of the keeper's own, beside everything else that it does.

Covers what is offered to other keepers, what is copied, and when all of it is given back. The memory
and the copies are the GPU's (`gpu`).

1. Copies are made on a thread of their own: one that hangs holds up no allocation and no free, as far
   as the driver lets others go on beside it. Memory is made and given back on the keeper's own thread,
   and never under a copy: what hangs keeps it, and it stays counted as used.
2. What is offered is freed when the other end of its socket pair is closed by everybody: whoever maps
   it keeps that end, so that its death frees it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from aqua_protos.keeper_pb2 import LinkSample, MeasureLink, OfferProbe

from aqua_daemon.keeper.gpu import Copying, Gpu, Handle, OfferedMemory, ProbeMemory
from aqua_daemon.keeper.node import KeptGpus
from aqua_daemon.keeper.refusal import Refused, exhausted
from aqua_daemon.keeper.requests import HOST, check_measure, check_offer

MOST_AT_ONCE = 32
BEST_OF_SECONDS, MOST_ROUNDS = 0.05, 20
SHORTEST_SECONDS = 1e-7  # a device's clock tells less apart: a small copy may seem to take no time
_log = logging.getLogger("aqua.keeper")

Done = Callable[[Sequence[LinkSample] | Refused], None]


class Probes:
    """All measurements of one keeper. Made on a running loop; *on_change* is told of used bytes."""

    def __init__(self, node: KeptGpus, on_change: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._node = node
        self._on_change = on_change
        self._offers: dict[int, OfferedMemory] = {}  # by the descriptor of our end
        self._running = 0

    def offer(self, request: OfferProbe, end: int) -> Handle:
        """Memory that the holder of the other end may map; takes *end* over.

        Raises:
            Refused: there is none; *end* is closed.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, end)
            check_offer(request)
            memory = self._node.gpu(request.gpu).probe_memory(request.nbytes)
            undo.callback(memory.close)
            handle = memory.handle()
            undo.pop_all()
        self._offers[end] = memory
        self._loop.add_reader(end, self._end_offer, end)
        self._on_change()
        return handle

    def measure(self, request: MeasureLink, descriptors: Sequence[int], done: Done) -> None:
        """Copy; *done* is called on the loop. Takes *descriptors* over: an end, and a memory's.

        Raises:
            Refused: it can't be begun; *done* is never called.
        """
        with contextlib.ExitStack() as stack:
            for descriptor in descriptors:
                stack.callback(os.close, descriptor)
            check_measure(request)
            if self._running >= MOST_AT_ONCE:
                raise exhausted(f"{self._running} links are being measured: wait for them")
            gpu = self._node.gpu(request.source if request.target == HOST else request.target)
            source = self._end(request.source, gpu, request, descriptors, stack)
            target = self._end(request.target, gpu, request, descriptors, stack)
            kept = stack.pop_all()
        self._running += 1
        self._on_change()

        def finish(found: Sequence[LinkSample] | Refused) -> None:
            self._running -= 1
            kept.close()
            self._on_change()
            done(found)

        def copy() -> None:
            found = _measured(gpu, source, target, request)
            with contextlib.suppress(RuntimeError):  # the keeper has ended
                self._loop.call_soon_threadsafe(finish, found)

        try:
            threading.Thread(target=copy, name="probe", daemon=True).start()
        except RuntimeError as error:
            self._running -= 1
            kept.close()
            raise exhausted(f"no thread is left to measure with: {error}") from error

    def close(self) -> None:
        """Give back what is offered. What is being copied goes with the process."""
        for end in list(self._offers):
            self._end_offer(end)

    def _end_offer(self, end: int) -> None:
        self._loop.remove_reader(end)
        memory = self._offers.pop(end)
        os.close(end)
        memory.close()
        self._on_change()

    def _end(
        self,
        name: str,
        gpu: Gpu,
        request: MeasureLink,
        descriptors: Sequence[int],
        stack: contextlib.ExitStack,
    ) -> ProbeMemory:
        """One end's memory, to be closed with *stack*: before our end of the socket pair is."""
        nbytes = max(request.sizes)
        memory: ProbeMemory
        if name == HOST:
            memory = gpu.host_probe_memory(nbytes)
        elif name == request.source and is_offered(request):
            handle = Handle(
                cuda_ipc=request.cuda_ipc_handle,
                descriptor=descriptors[1] if len(descriptors) > 1 else None,
                descriptor_kind=request.descriptor_kind,
            )
            memory = gpu.foreign_probe_memory(handle, nbytes)
        else:
            memory = self._node.gpu(name).probe_memory(nbytes)
        stack.callback(memory.close)
        return memory


def is_offered(request: MeasureLink) -> bool:
    """Whether the source is memory of another keeper."""
    return bool(request.cuda_ipc_handle) or bool(request.descriptor_kind)


def descriptors_of(request: MeasureLink) -> int:
    """How many come with it."""
    return is_offered(request) * (1 if request.cuda_ipc_handle else 2)


def _measured(
    gpu: Gpu, source: ProbeMemory, target: ProbeMemory, request: MeasureLink
) -> Sequence[LinkSample] | Refused:
    each_seconds = request.seconds / len(request.sizes)
    try:
        with gpu.copying() as copying:
            return [
                LinkSample(
                    nbytes=nbytes,
                    seconds=max(
                        SHORTEST_SECONDS,
                        _mean(copying, source, target, nbytes, each_seconds)
                        if each_seconds
                        else _best(copying, source, target, nbytes),
                    ),
                )
                for nbytes in request.sizes
            ]
    except Refused as refusal:
        return refusal
    except Exception as error:  # noqa: BLE001 - whoever waits is to hear of it
        _log.exception("a link could not be measured")
        return Refused("INTERNAL", repr(error))


def _best(copying: Copying, source: ProbeMemory, target: ProbeMemory, nbytes: int) -> float:
    """Of one copy, with nothing in its way: what disturbs it only ever makes it longer."""
    copying(source, target, nbytes)  # what the first use of a link costs is no part of it
    ends_at = time.monotonic() + BEST_OF_SECONDS
    best = copying(source, target, nbytes)
    for _ in range(MOST_ROUNDS):
        if time.monotonic() > ends_at:
            break
        best = min(best, copying(source, target, nbytes))
    return best


def _mean(
    copying: Copying, source: ProbeMemory, target: ProbeMemory, nbytes: int, seconds: float
) -> float:
    """Of one copy, while others are made beside it."""
    ends_at, copies, taken = time.monotonic() + seconds, 0, 0.0
    while not copies or time.monotonic() < ends_at:
        taken += copying(source, target, nbytes)
        copies += 1
    return taken / copies
