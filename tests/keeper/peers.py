"""A daemon's or an owner's end of a keeper's socket, and the slabs that come by it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
)

from tests.keeper.holders import ANSWER_SECONDS, Tenant, tag_for

MIB = 2**20
SLAB_BYTES = 4 * MIB


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
                case "probe_offered":
                    if not reply.probe_offered.cuda_ipc_handle:
                        self.descriptors += self._reader.take_descriptors(1)
                    self._unread.append(reply)
                case _:
                    self._unread.append(reply)
