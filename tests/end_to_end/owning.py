"""This process as an owner of a stand-in GPU: what its allocator can have depends on what is lent.

    with Pool(node.keeper_socket, "SHM-1") as pool:
        pool.allocate(48 * MIB)   # PoolFull where a borrower has too much of it

What it has it has until the block, or this process, ends.
"""

from __future__ import annotations

import re
import socket
from types import TracebackType
from typing import Self

from aqua_protos.framing import FrameReader, send_frame
from aqua_protos.keeper_pb2 import KeeperReply, KeeperRequest, RegisterOwner

from tests.nodes import MIB

LARGER_THAN_ANY = 2**40


class PoolFull(Exception):
    """Worded as torch's."""


class Pool:
    """Allocations of this process on one GPU, through its keeper. One thread at a time."""

    def __init__(self, keeper_socket: str, gpu: str) -> None:
        self._gpu = gpu
        self._reader = FrameReader(accepts_descriptors=False)
        self._asked = 0
        self.nbytes = 0
        self._keeper = socket.socket(socket.AF_UNIX)
        self._keeper.settimeout(10.0)
        self._keeper.connect(keeper_socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.free()
        self._keeper.close()

    def allocate(self, nbytes: int) -> None:
        """Raises PoolFull where so much is not free."""
        reply = self._register(self.nbytes + nbytes)
        if reply.WhichOneof("kind") == "failed":
            assert reply.failed.code == "RESOURCE_EXHAUSTED", reply.failed
            msg = f"out of memory. Tried to allocate {nbytes / MIB:.2f} MiB. {reply.failed.message}"
            raise PoolFull(msg)
        self.nbytes += nbytes

    def free(self) -> None:
        """All of it."""
        self._register(0)
        self.nbytes = 0

    def free_bytes(self) -> int:
        """What of the GPU is free now, as the driver would say it."""
        reply = self._register(LARGER_THAN_ANY)  # which changes nothing, and is refused with that
        found = re.search(r"has (\d+) of \d+ bytes free", reply.failed.message)
        assert found, reply
        return int(found[1])

    def _register(self, nbytes: int) -> KeeperReply:
        self._asked += 1
        owner = RegisterOwner(gpu=self._gpu, nbytes=nbytes)
        request = KeeperRequest(request_id=self._asked, register_owner=owner)
        send_frame(self._keeper, request.SerializeToString())
        while True:
            for payload in self._reader.frames():
                return KeeperReply.FromString(payload)
            self._reader.read_from(self._keeper)
