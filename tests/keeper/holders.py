"""Holders: processes that map the slabs that they are given, and what a daemon says of them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Protocol

from aqua_protos.keeper_pb2 import SlabTag

ANSWER_SECONDS = 20.0  # a hang, not a slow machine, is what this should catch

_HOLDER = """
import mmap, os, signal, socket, sys
link = socket.socket(fileno=int(sys.argv[1]))
sentinel = int(sys.argv[2])
kept, mapped, child = -1, None, 0
while True:
    words, descriptors, _, _ = socket.recv_fds(link, 65536, 1)
    if not words:
        break
    verb, _, rest = words.partition(b" ")
    answer = b"done"
    if verb == b"map":
        kept = descriptors[0]
        mapped = mmap.mmap(kept, os.fstat(kept).st_size)
    elif verb == b"keep":
        kept = descriptors[0]
    elif verb == b"close":
        os.close(kept)
    elif verb == b"write":
        mapped[: len(rest)] = rest
    elif verb == b"read":
        answer = mapped[: int(rest)]
    elif verb == b"pread":
        answer = os.pread(kept, int(rest), 0)
    elif verb == b"unmap":
        mapped.close()
        mapped = None
    elif verb == b"fork":
        child = os.fork()
        if not child:
            link.close()
            signal.pause()
        answer = str(child).encode()
    link.send(answer)
"""


class Tenant(Protocol):
    """What a daemon knows of whom a slab is for, and its proofs."""

    pid: int
    pidfd: int
    sentinel: socket.socket
    session_id: str


class Holder:
    """A living process that maps slabs and does as it is told."""

    def __init__(self) -> None:
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sentinel, its_sentinel = socket.socketpair()
        with theirs, its_sentinel:
            passed = (theirs.fileno(), its_sentinel.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-c", _HOLDER, *map(str, passed)], pass_fds=passed
            )
        self._link.settimeout(ANSWER_SECONDS)
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.session_id = f"{self.pid:032x}"

    def map(self, descriptor: int) -> None:
        """Map a slab and keep its descriptor."""
        self._tell(b"map", descriptor)

    def keep(self, descriptor: int) -> None:
        """Keep a slab's descriptor without mapping it."""
        self._tell(b"keep", descriptor)

    def close_descriptor(self) -> None:
        self._tell(b"close")

    def write(self, content: bytes) -> None:
        self._tell(b"write " + content)

    def read(self, count: int) -> bytes:
        return self._tell(f"read {count}".encode())

    def read_kept(self, count: int) -> bytes:
        """Through the descriptor, mapped or not."""
        return self._tell(f"pread {count}".encode())

    def unmap(self) -> None:
        self._tell(b"unmap")

    def fork(self) -> int:
        """The pid of a child that has what its parent has, and waits to be killed."""
        return int(self._tell(b"fork"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(ANSWER_SECONDS)

    def end(self) -> None:
        self.kill()
        self._link.close()
        self.sentinel.close()
        os.close(self.pidfd)

    def _tell(self, words: bytes, *descriptors: int) -> bytes:
        socket.send_fds(self._link, [words], descriptors)
        return self._link.recv(65536)


@contextlib.contextmanager
def holder() -> Iterator[Holder]:
    """A tenant's process; it is killed at the end of the block."""
    process = Holder()
    try:
        yield process
    finally:
        process.end()


def lease_id(number: int) -> str:
    return f"{number:032x}"


def tag_for(tenant: Tenant, lease: int) -> SlabTag:
    return SlabTag(
        lease_id=lease_id(lease),
        session_id=tenant.session_id,
        tenant=f"uid-{os.getuid()}",
        safety_class="store",
        borrower_gpu="SHM-7",
        holder_pid=tenant.pid,
        holder_start_ticks=1,
        holder_uid=os.getuid(),
        request_id=lease_id(lease + 1000),
    )
