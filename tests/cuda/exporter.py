"""A keeper's driver calls in a process of their own: allocates a slab, tags it, exports it.

    with exporting(node, gpu=node.uuids[1], nbytes=8 * MIB) as slab:
        memory = Memory.of_grant(slab.grant(), home_gpu=node.uuids[0])

Run as a program it allocates on the first visible GPU, hands its handle over, and obeys lines on
its standard input until that ends: `free` frees the memory, `again` allocates at the same address.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aqua_client.records import DescriptorKind, Grant, SafetyClass
from tests.fakes.cuda_node import FakeCudaNode

MIB = 2**20
KINDS = ("legacy", "vmm")
END_SECONDS = 10.0


@dataclass
class ExportedSlab:
    """A slab of another process."""

    lease_id: str
    gpu: str
    nbytes: int
    kind: str
    canary: bytes
    handle: bytes
    process: subprocess.Popen[str]
    link: socket.socket

    def grant(self, **changes: Any) -> Grant:  # noqa: ANN401 - of any field's type
        """What the daemon would say; with a descriptor of its own each time."""
        descriptor = None
        if self.kind == "vmm":
            self.order("descriptor")
            _, descriptors, _, _ = socket.recv_fds(self.link, 1, 1)
            descriptor = descriptors[0]
        fields: dict[str, Any] = {
            "lease_id": self.lease_id,
            "lender_gpu": self.gpu,
            "nbytes": self.nbytes,
            "safety_class": SafetyClass.STORE,
            "keeper_pid": self.process.pid,
            "canary": self.canary,
            "descriptor": descriptor,
            "cuda_ipc": self.handle,
            "descriptor_kind": DescriptorKind.CUDA_VMM,
        }
        return Grant(**{**fields, **changes})

    def order(self, what: str) -> dict[str, Any]:
        """Let the exporter do something; its answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def content(self) -> bytes:
        """All of it, as its owner reads it."""
        return bytes.fromhex(self.order("read")["bytes"])


@contextmanager
def exporting(
    node: FakeCudaNode, *, gpu: str, nbytes: int = 2 * MIB, kind: str = "legacy"
) -> Iterator[ExportedSlab]:
    """A slab of a process that ends with the block."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = [sys.executable, "-m", "tests.cuda.exporter", str(theirs.fileno())]
        process = subprocess.Popen(
            [*words, str(nbytes), kind],
            env=node.environment(CUDA_VISIBLE_DEVICES=gpu),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[theirs.fileno()],
        )
        try:
            assert process.stdout
            ready = json.loads(process.stdout.readline())
            yield ExportedSlab(
                lease_id=uuid4().hex,
                gpu=gpu,
                nbytes=nbytes,
                kind=kind,
                canary=bytes.fromhex(ready["canary"]),
                handle=bytes.fromhex(ready["handle"]),
                process=process,
                link=ours,
            )
        finally:
            process.kill()
            process.wait(END_SECONDS)
            for stream in (process.stdin, process.stdout):
                assert stream
                stream.close()


class _Exporter:
    """The exporter's side."""

    def __init__(self, nbytes: int, kind: str) -> None:
        from cuda.bindings import driver

        self.driver = driver
        self.nbytes = nbytes
        self.kind = kind
        self.canary = os.urandom(64)
        self.call("cuInit", 0)
        self.call("cuCtxSetCurrent", self.call("cuDevicePrimaryCtxRetain", 0))
        self.memory: Any = None
        self.address = self.allocate()

    def call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 - no types there
        code, *values = getattr(self.driver, name)(*arguments)
        assert int(code) == 0, (name, code)
        return values[0] if values else None

    def allocate(self) -> Any:  # noqa: ANN401 - a pointer of the driver's
        address = self._virtual() if self.kind == "vmm" else self.call("cuMemAlloc", self.nbytes)
        self.call("cuMemsetD8", address, 0, self.nbytes)
        whole = ctypes.create_string_buffer(self.canary, len(self.canary))
        self.call("cuMemcpyHtoD", address, ctypes.addressof(whole), len(self.canary))
        return address

    def handle(self) -> bytes:
        if self.kind == "vmm":
            return b""
        token = self.call("cuIpcGetMemHandle", self.address)
        return ctypes.string_at(token.getPtr(), 64)

    def descriptor(self) -> int:
        kinds = self.driver.CUmemAllocationHandleType
        kind = kinds.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        return int(self.call("cuMemExportToShareableHandle", self.memory, kind, 0))

    def content(self) -> bytes:
        found = ctypes.create_string_buffer(self.nbytes)
        self.call("cuMemcpyDtoH", ctypes.addressof(found), self.address, self.nbytes)
        return found.raw

    def _virtual(self) -> Any:  # noqa: ANN401 - a pointer of the driver's
        driver = self.driver
        wanted = driver.CUmemAllocationProp()
        wanted.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        wanted.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        wanted.location.id = 0
        handles = driver.CUmemAllocationHandleType
        wanted.requestedHandleTypes = handles.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        access = driver.CUmemAccessDesc()
        access.location = wanted.location
        access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self.memory = self.call("cuMemCreate", self.nbytes, wanted, 0)
        address = self.call("cuMemAddressReserve", self.nbytes, 0, driver.CUdeviceptr(0), 0)
        self.call("cuMemMap", address, self.nbytes, 0, self.memory, 0)
        self.call("cuMemSetAccess", address, self.nbytes, [access], 1)
        return address


def _main() -> None:
    link = socket.socket(fileno=int(sys.argv[1]))
    exporter = _Exporter(int(sys.argv[2]), sys.argv[3])
    _say(canary=exporter.canary.hex(), handle=exporter.handle().hex())
    for line in sys.stdin:
        match line.strip():
            case "descriptor":
                descriptor = exporter.descriptor()
                socket.send_fds(link, [b"d"], [descriptor])
                os.close(descriptor)
                _say()
            case "read":
                _say(bytes=exporter.content().hex())
            case "free":
                exporter.call("cuMemFree", exporter.address)
                _say()
            case "again":
                exporter.canary = os.urandom(64)
                exporter.address = exporter.allocate()
                _say(handle=exporter.handle().hex(), canary=exporter.canary.hex())
            case unknown:
                raise ValueError(unknown)


def _say(**what: str) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    _main()
