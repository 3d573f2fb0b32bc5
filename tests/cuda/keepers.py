"""A real keeper of a fake GPU, and tenants that open what they are given, as processes.

    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon, tenant(node) as user:
        slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
        user.open(slab)

Covers starting, asking and ending them; the daemon's end is that of the shm keeper's tests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.fakes.cuda_node import FakeCudaNode
from tests.fakes.cuda_program import Program
from tests.keeper.keepers import Keeper
from tests.keeper.peers import Slab
from tests.nodes import short_directory, wait_until

MIB = 2**20
SLAB_BYTES = 32 * MIB  # the smallest on CUDA
KINDS = ("legacy", "vmm")
HOME = 1  # the ordinal of the tenant's own GPU


class CudaKeeper(Keeper):
    """One keeper of one GPU of a fake node."""

    def __init__(
        self, directory: Path, node: FakeCudaNode, kind: str, *words: str, gpu: str = ""
    ) -> None:
        self.gpu = gpu or node.uuids[0]
        keeps = ("--gpu", self.gpu, "--handles", kind)
        super().__init__(directory, *words, keeps=keeps, variables=node.environment())


class CudaTenant:
    """A process with a context on its own GPU, that opens slabs of others."""

    def __init__(self, node: FakeCudaNode) -> None:
        self.program = Program(node.environment(), f"use_device({HOME})")
        self.pid = self.program.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.session_id = f"{self.pid:032x}"
        self.sentinel, its_end = socket.socketpair()
        with its_end:
            self.program.send_descriptor(its_end.fileno())
        self.program.run("sentinel = receive_descriptor()")

    def open(self, slab: Slab) -> None:
        """Map it on the tenant's own GPU."""
        if slab.cuda_ipc:
            self.program.run(f"slab = ok(open_handle('{slab.cuda_ipc.hex()}'))")
            return
        self.program.send_descriptor(slab.descriptor)
        self.program.run(
            "fd = receive_descriptor()\n"
            "kind = d.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR\n"
            "memory = ok(d.cuMemImportFromShareableHandle(fd, kind)); os.close(fd)\n"
            f"slab = ok(d.cuMemAddressReserve({slab.nbytes}, 0, d.CUdeviceptr(0), 0))\n"
            f"ok(d.cuMemMap(slab, {slab.nbytes}, 0, memory, 0))\n"
            f"ok(d.cuMemSetAccess(slab, {slab.nbytes}, [access({HOME})], 1))"
        )

    def close_slab(self, slab: Slab) -> None:
        """Unmap it."""
        if slab.cuda_ipc:
            self.program.run("ok(d.cuIpcCloseMemHandle(slab))")
            return
        self.program.run(
            f"ok(d.cuMemUnmap(slab, {slab.nbytes})); ok(d.cuMemAddressFree(slab, {slab.nbytes}))\n"
            "ok(d.cuMemRelease(memory))"
        )

    def read(self, nbytes: int) -> bytes:
        """The start of the slab that was opened last."""
        return bytes.fromhex(self.program.ask(f"read(slab, {nbytes})"))

    def fill(self, nbytes: int, byte: int) -> None:
        self.program.run(f"ok(d.cuMemsetD8(slab, {byte}, {nbytes})); ok(d.cuCtxSynchronize())")

    def kill(self) -> None:
        self.program.kill()

    def end(self) -> None:
        self.program.close()
        self.sentinel.close()
        os.close(self.pidfd)


@contextlib.contextmanager
def running_keeper(
    node: FakeCudaNode, kind: str, *words: str, gpu: str = ""
) -> Iterator[CudaKeeper]:
    """A keeper that answers; it is killed at the end of the block."""
    with short_directory() as directory:
        keeper = CudaKeeper(directory, node, kind, *words, gpu=gpu)
        try:
            keeper.wait_until_ready()
            yield keeper
        finally:
            keeper.end()


@contextlib.contextmanager
def tenant(node: FakeCudaNode) -> Iterator[CudaTenant]:
    """A tenant's process; it ends with the block."""
    process = CudaTenant(node)
    try:
        yield process
    finally:
        process.end()


def kill_and_wait(keeper: CudaKeeper, node: FakeCudaNode) -> None:
    """SIGKILL, and wait until the driver has seen it."""
    keeper.signal(signal.SIGKILL)
    keeper.wait_for_end()
    wait_until(
        lambda: keeper.pid not in {context.pid for context in node.contexts()},
        what="the context of the dead keeper goes",
    )
