"""Primary contexts: what each costs, who may have one, and which is a thread's current one."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import SupportsInt

from tests.fakes.fake_cuda import process, streams
from tests.fakes.fake_cuda.books import Context
from tests.fakes.fake_cuda.description import GpuDescription
from tests.fakes.fake_cuda.devices import can_access
from tests.fakes.fake_cuda.memory import drop_spans_of
from tests.fakes.fake_cuda.process import call, call_for_one, call_for_two
from tests.fakes.fake_cuda.results import CUresult, Failed
from tests.fakes.fake_cuda.room import require_room
from tests.fakes.fake_cuda.structs import CUcontext, CUdevice

# As the driver would look: putenv changes what it sees and not os.environ.
_getenv = ctypes.CDLL(None).getenv
_getenv.restype = ctypes.c_char_p
_FIRST_CONTEXT, _CONTEXT_STEP = 0x5C0000000, 0x1000  # any numbers that are no ordinals


@call_for_one
def cuDevicePrimaryCtxRetain(dev: SupportsInt) -> CUcontext:
    gpu, ordinal = process.gpu_of(dev), int(dev)
    node = process.node()
    with process.lock:
        if ordinal not in node.retained:
            _make(gpu)
        node.retained[ordinal] = node.retained.get(ordinal, 0) + 1
    return _context_of(ordinal)


@call
def cuDevicePrimaryCtxRelease(dev: SupportsInt) -> None:
    process.gpu_of(dev)
    ordinal, node = int(dev), process.node()
    with process.lock:
        if ordinal not in node.retained:
            raise Failed(CUresult.CUDA_ERROR_INVALID_CONTEXT)
        node.retained[ordinal] -= 1
        if node.retained[ordinal] == 0:
            _destroy(ordinal)


@call
def cuDevicePrimaryCtxSetFlags(dev: SupportsInt, flags: int) -> None:
    process.gpu_of(dev)
    process.node().context_flags[int(dev)] = int(flags)


@call_for_two
def cuDevicePrimaryCtxGetState(dev: SupportsInt) -> tuple[int, int]:
    process.gpu_of(dev)
    node = process.node()
    return node.context_flags.get(int(dev), 0), int(int(dev) in node.retained)


@call
def cuCtxSetCurrent(ctx: CUcontext | int | None) -> None:
    process.node()
    process.thread.contexts[-1] = _ordinal_of(ctx)


@call
def cuCtxPushCurrent(ctx: CUcontext | int | None) -> None:
    process.node()
    process.thread.contexts.append(_ordinal_of(ctx))


@call_for_one
def cuCtxPopCurrent() -> CUcontext:
    process.node()
    ordinal = process.thread.contexts[-1]
    if ordinal is None:
        raise Failed(CUresult.CUDA_ERROR_INVALID_CONTEXT)
    process.thread.contexts.pop()
    if not process.thread.contexts:
        process.thread.contexts.append(None)
    return _context_of(ordinal)


@call_for_one
def cuCtxGetCurrent() -> CUcontext:
    process.node()
    return _context_of(process.thread.contexts[-1])


@call_for_one
def cuCtxGetDevice() -> CUdevice:
    return CUdevice(process.current_device())


@call
def cuCtxSynchronize() -> None:
    streams.drain(process.current_device())
    process.raise_sticky()


@call
def cuCtxEnablePeerAccess(peerContext: CUcontext | int, Flags: int) -> None:
    own, peer = process.current_device(), _ordinal_of(peerContext)
    if Flags:
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    if peer is None or peer == own:
        raise Failed(CUresult.CUDA_ERROR_INVALID_DEVICE)
    node = process.node()
    if not can_access(node.visible[own], node.visible[peer]):
        raise Failed(CUresult.CUDA_ERROR_PEER_ACCESS_UNSUPPORTED)
    if (own, peer) in node.peers:
        raise Failed(CUresult.CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)
    node.peers.add((own, peer))


@call
def cuCtxDisablePeerAccess(peerContext: CUcontext | int) -> None:
    own, peer = process.current_device(), _ordinal_of(peerContext)
    if peer is None or (own, peer) not in process.node().peers:
        raise Failed(CUresult.CUDA_ERROR_PEER_ACCESS_NOT_ENABLED)
    process.node().peers.discard((own, peer))


def _make(gpu: GpuDescription) -> None:
    node = process.node()
    description = node.registry.node
    if node.registry.is_lost(gpu.uuid) or gpu.compute_mode == "prohibited":
        raise Failed(CUresult.CUDA_ERROR_DEVICE_UNAVAILABLE)
    with node.registry.books() as books:
        others = [context for context in books.contexts if context.uuid == gpu.uuid]
        if gpu.compute_mode == "exclusive_process" and others:
            raise Failed(CUresult.CUDA_ERROR_DEVICE_UNAVAILABLE)
        require_room(books, description, gpu.uuid, description.context_bytes)
        books.contexts_made += 1
        books.contexts.append(
            Context(
                holder=node.holder,
                pid=os.getpid(),
                uuid=gpu.uuid,
                nbytes=description.context_bytes,
                through_mps=description.mps and not _has_an_empty_pipe_directory(),
            )
        )


def _destroy(ordinal: int) -> None:
    node, gpu = process.node(), process.gpu_of(ordinal)
    streams.drain(ordinal)
    del node.retained[ordinal]
    node.peers = {pair for pair in node.peers if ordinal not in pair}
    with node.registry.books() as books:
        drop_spans_of(books, ordinal)
        books.contexts = [
            context
            for context in books.contexts
            if (context.holder, context.uuid) != (node.holder, gpu.uuid)
        ]


def _has_an_empty_pipe_directory() -> bool:
    """An MPS server is found by its pipe directory; one without a server keeps MPS away."""
    named = _getenv(b"CUDA_MPS_PIPE_DIRECTORY")
    return named is not None and not (Path(os.fsdecode(named)) / "control").exists()


def _context_of(ordinal: int | None) -> CUcontext:
    return CUcontext(0 if ordinal is None else _FIRST_CONTEXT + ordinal * _CONTEXT_STEP)


def _ordinal_of(context: CUcontext | int | None) -> int | None:
    value = int(context or 0)
    if value == 0:
        return None
    ordinal, rest = divmod(value - _FIRST_CONTEXT, _CONTEXT_STEP)
    if rest or ordinal not in process.node().retained:
        raise Failed(CUresult.CUDA_ERROR_INVALID_CONTEXT)
    return ordinal
