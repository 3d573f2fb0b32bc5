"""Real keepers, a daemon's end of their socket, and holders: processes that map what they are given.

    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        tenant.map(slab.descriptor)

Covers starting, asking and ending them. Does not cover what they should do: that is what the tests
say.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aqua_protos.framing import FrameReader, send_frame
from aqua_protos.keeper_pb2 import (
    Allocate,
    Attach,
    Attached,
    Free,
    GpuReport,
    KeeperReply,
    KeeperRequest,
    RegisterOwner,
    SlabTag,
)

from tests.nodes import environment, short_directory, wait_until

MIB = 2**20
GPU_BYTES = 64 * MIB
SLAB_BYTES = 4 * MIB
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


@dataclass(slots=True, kw_only=True)
class Slab:
    """What an Allocated answer gave; the descriptor is the daemon's."""

    gpu: str
    lease_id: str
    nbytes: int
    descriptor: int  # -1: the handle is a legacy one
    canary: bytes
    cuda_ipc: bytes = b""
    descriptor_kind: int = 0


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


class Peer:
    """One connection to a keeper, as a daemon or an owner has it; every question is answered."""

    def __init__(self, path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(ANSWER_SECONDS)
        self.connection.connect(str(path))
        self._reader = FrameReader()
        self._asked = 0
        self._unread: list[KeeperReply] = []
        self.proofs: dict[str, tuple[int, int]] = {}
        self.descriptors: list[int] = []
        self.reports: dict[str, GpuReport] = {}

    def ask(self, request: KeeperRequest, descriptors: tuple[int, ...] = ()) -> int:
        """Send one request; its id, given here unless it has one."""
        self._asked += 1
        request.request_id = request.request_id or self._asked
        send_frame(self.connection, request.SerializeToString(), descriptors)
        return request.request_id

    def answer(self, request_id: int) -> KeeperReply:
        """The answer to that request; reports and proofs on the way are kept."""
        while True:
            for reply in self._unread:
                if reply.request_id == request_id and reply.WhichOneof("kind") != "holder_proof":
                    self._unread.remove(reply)
                    return reply
            self._read()

    def attach(self) -> Attached:
        """Become the daemon; every proof, and the reports behind them, have come by the end."""
        attach = Attach(protocol=1, daemon_version="test")
        attached = self.answer(self.ask(KeeperRequest(attach=attach))).attached
        while len(self.reports) < len(attached.gpus):
            self._read()
        return attached

    def allocate(
        self, holder: Tenant, *, gpu: str = "SHM-0", nbytes: int = SLAB_BYTES, lease: int = 1
    ) -> Slab:
        reply = self.answer(self.ask_for_slab(holder, gpu=gpu, nbytes=nbytes, lease=lease))
        assert reply.WhichOneof("kind") == "allocated", reply
        answer = reply.allocated
        return Slab(
            gpu=gpu,
            lease_id=answer.lease_id,
            nbytes=nbytes,
            descriptor=-1 if answer.cuda_ipc_handle else self.descriptors[-1],
            canary=answer.canary,
            cuda_ipc=answer.cuda_ipc_handle,
            descriptor_kind=answer.descriptor_kind,
        )

    def ask_for_slab(
        self, holder: Tenant, *, gpu: str = "SHM-0", nbytes: int = SLAB_BYTES, lease: int = 1
    ) -> int:
        allocate = Allocate(gpu=gpu, nbytes=nbytes, tag=tag_for(holder, lease))
        proof = (holder.pidfd, holder.sentinel.fileno())
        return self.ask(KeeperRequest(allocate=allocate), proof)

    def ask_to_free(self, slab: Slab) -> int:
        """Ask, having closed our own descriptor of it as a daemon does."""
        self.close_descriptor(slab)
        return self.ask(KeeperRequest(free=Free(gpu=slab.gpu, lease_id=slab.lease_id)))

    def free(self, slab: Slab) -> KeeperReply:
        return self.answer(self.ask_to_free(slab))

    def register(self, gpu: str, nbytes: int, *, what_fits: bool = False) -> KeeperReply:
        owner = RegisterOwner(gpu=gpu, nbytes=nbytes, what_fits=what_fits)
        return self.answer(self.ask(KeeperRequest(register_owner=owner)))

    def report(self, gpu: str = "SHM-0") -> GpuReport:
        """How *gpu* is now, asked anew."""
        return next(report for report in self.attach().gpus if report.gpu == gpu)

    def next_report(self, gpu: str = "SHM-0") -> GpuReport:
        """The next report of *gpu* that is said unasked, or that has been and was not read yet."""
        self.reports.pop(gpu, None)
        while gpu not in self.reports:
            self._read()
        return self.reports[gpu]

    def report_when(self, gpu: str, holds: str) -> GpuReport:
        """The first report for which `holds` is true of `report`'s owners: "some" or "none"."""
        return self.report_that(gpu, lambda report: bool(report.owners) == (holds == "some"))

    def report_that(self, gpu: str, is_awaited: Callable[[GpuReport], bool]) -> GpuReport:
        """The first report that is said unasked and is as awaited."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            report = self.next_report(gpu)
            if is_awaited(report):
                return report
        raise AssertionError(f"no such report of {gpu}; the last: {report}")

    def close_descriptor(self, slab: Slab) -> None:
        if slab.descriptor in self.descriptors:
            self.descriptors.remove(slab.descriptor)
            os.close(slab.descriptor)

    def has_ended(self) -> bool:
        """Read until the keeper closes the connection."""
        with contextlib.suppress(ConnectionError):
            while True:
                self._read()
        return True

    def close(self) -> None:
        for descriptor in (
            *self.descriptors,
            *(fd for both in self.proofs.values() for fd in both),
        ):
            os.close(descriptor)
        self.descriptors, self.proofs = [], {}
        self._reader.close()
        self.connection.close()

    def _read(self) -> None:
        self._reader.read_from(self.connection)
        for payload in self._reader.frames():
            reply = KeeperReply.FromString(payload)
            match reply.WhichOneof("kind"):
                case "gpu_report":
                    self.reports[reply.gpu_report.gpu] = reply.gpu_report
                case "attached":
                    self.reports.clear()
                    self._unread.append(reply)
                case "holder_proof":
                    for known in self.proofs.pop(reply.holder_proof.session_id, ()):
                        os.close(known)
                    pidfd, sentinel = self._reader.take_descriptors(2)
                    self.proofs[reply.holder_proof.session_id] = (pidfd, sentinel)
                case "allocated":
                    if not reply.allocated.cuda_ipc_handle:
                        self.descriptors += self._reader.take_descriptors(1)
                    self._unread.append(reply)
                case _:
                    self._unread.append(reply)


class Keeper:
    """One real keeper process."""

    def __init__(
        self,
        directory: Path,
        *words: str,
        gpus: int = 2,
        keeps: Sequence[str] = (),
        variables: dict[str, str] | None = None,
    ) -> None:
        """Of shm GPUs, unless *keeps* names something else in words of the command line."""
        self.socket = directory / "keeper.sock"
        self.log_path = directory / "keeper.log"
        kept = keeps or ("--shm-gpus", str(gpus), "--shm-gpu-bytes", str(GPU_BYTES))
        command = [sys.executable, "-m", "aqua_daemon", "keeper", *kept]
        command += ["--socket", str(self.socket), *words]
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                command, env=variables or environment(), stdout=log, stderr=log
            )
        self.pid = self.process.pid

    def wait_until_ready(self) -> None:
        wait_until(self._answers, seconds=ANSWER_SECONDS, what=f"ready: {self.log()}")

    @contextlib.contextmanager
    def peer(self) -> Iterator[Peer]:
        with contextlib.closing(Peer(self.socket)) as peer:
            yield peer

    @contextlib.contextmanager
    def daemon(self) -> Iterator[Peer]:
        with self.peer() as peer:
            peer.attach()
            yield peer

    def descriptors(self) -> int:
        """How many it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def wait_for_descriptors(self, count: int) -> None:
        """Until it has so many open: it closes what it has sent a moment after we have read it."""
        wait_until(lambda: self.descriptors() == count, what=f"{count}, not {self.descriptors()}")

    def wait_for_end(self) -> int:
        return self.process.wait(ANSWER_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def log(self) -> str:
        return self.log_path.read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.wait(ANSWER_SECONDS)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.socket))
            return True
        return False


@contextlib.contextmanager
def running_keeper(*words: str, gpus: int = 2) -> Iterator[Keeper]:
    """A keeper that answers; it is killed at the end of the block."""
    with short_directory() as directory:
        keeper = Keeper(directory, *words, gpus=gpus)
        try:
            keeper.wait_until_ready()
            yield keeper
        finally:
            keeper.end()


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
