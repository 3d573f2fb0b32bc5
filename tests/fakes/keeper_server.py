"""A keeper that says only what a test has it say: for what a real one never does.

It accepts one connection at a time, in the test's own loop, and keeps what the daemon sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from aqua_protos.frame_link import FrameLink
from aqua_protos.keeper_pb2 import Attached, GpuReport, KeeperReply, KeeperRequest


class FakeKeeper:
    """Listens at *path*; it is this very process, so it never looks dead."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(0)
        self._links: list[FrameLink] = []
        self.requests: asyncio.Queue[KeeperRequest] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def request(self, kind: str) -> KeeperRequest:
        """The next request, which must be of that kind."""
        request = await self.requests.get()
        assert request.WhichOneof("kind") == kind, request
        return request

    async def accept_attach(
        self, *gpus: GpuReport, holders: int = 0, features: Sequence[str] = ()
    ) -> None:
        """Wait for an Attach and answer it."""
        request = await self.request("attach")
        attached = Attached(protocol=1, keeper_pid=1, gpus=gpus, holders=holders, features=features)
        self.say(KeeperReply(request_id=request.request_id, attached=attached))

    def say(self, reply: KeeperReply, descriptors: tuple[int, ...] = ()) -> None:
        self.say_bytes(reply.SerializeToString(), descriptors)

    def say_bytes(self, payload: bytes, descriptors: tuple[int, ...] = ()) -> None:
        self._links[-1].send(payload, descriptors)

    def hang_up(self) -> None:
        """Close the connection; the listener stays."""
        self._links[-1].close()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for link in self._links:
            link.close()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._links.append(FrameLink(connection, on_frame=self._take, on_end=lambda _reason: None))

    def _take(self, payload: bytes) -> None:
        self.requests.put_nowait(KeeperRequest.FromString(payload))


@contextlib.asynccontextmanager
async def fake_keeper(path: Path) -> AsyncIterator[FakeKeeper]:
    """A fake that is closed at the end of the block."""
    with contextlib.closing(FakeKeeper(path)) as keeper:
        yield keeper


def report_of(gpu: str, total_bytes: int) -> GpuReport:
    """An empty GPU."""
    return GpuReport(gpu=gpu, total_bytes=total_bytes)
