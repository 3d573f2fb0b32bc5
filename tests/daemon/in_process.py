"""A node in one process: the real broker, service, presence socket and gRPC server; fake keepers.

Covers what tests of the sockets need: a node whose clock is moved by hand, and a client of the
presence socket and the API that may send any bytes. Real processes are for tests/end_to_end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from aqua_protos import broker_pb2, presence_pb2
from aqua_protos.framing import Disconnected, FrameReader, encode_frame
from google.protobuf.message import Message
from grpc import aio

from aqua_daemon.adapters.broker_calls import BrokerCalls
from aqua_daemon.adapters.call_limits import CallLimits
from aqua_daemon.adapters.framed_calls import FramedCalls
from aqua_daemon.adapters.grpc_health import Health, make_server
from aqua_daemon.adapters.grpc_servicer import SERVICE, TOKEN_KEY, calls_handler
from aqua_daemon.adapters.holders import Holders
from aqua_daemon.adapters.journal import FanOut, LogJournal
from aqua_daemon.adapters.link_file import LinkFile
from aqua_daemon.adapters.presence import PresenceServer
from aqua_daemon.adapters.presence_link import PresenceLimits
from aqua_daemon.adapters.processes import Peer, peer_of
from aqua_daemon.adapters.settings_file import SettingsFile
from aqua_daemon.core.broker import Broker
from aqua_daemon.core.events import Event, Ticked
from aqua_daemon.core.model import BrokerSettings, GpuUuid, LeaseId, SessionId
from aqua_daemon.service import BrokerService
from tests.fakes.clock import FakeClock
from tests.fakes.journal import FakeJournal
from tests.fakes.keepers import FakeKeepers

MIB = 2**20
GPUS = tuple(GpuUuid(f"SHM-{n}") for n in range(2))
SETTINGS = BrokerSettings(
    gpus=GPUS,
    smallest_slab_bytes=4 * MIB,
    largest_slab_bytes=32 * MIB,
    host_pool_bytes=64 * MIB,
    tenant_host_bytes=64 * MIB,
    tenant_quota_bytes=256 * MIB,
)


class Node:
    """What `running` yields."""

    def __init__(
        self,
        directory: Path,
        *,
        limits: PresenceLimits | None = None,
        call_limits: CallLimits | None = None,
    ) -> None:
        self.path = str(directory / "aqua.sock")
        self.clock = FakeClock()
        self.journal = FakeJournal()
        self.broker = Broker(SETTINGS, now=self.clock(), strict=True)
        told = LogJournal(clock=self.clock, logger=_silent_logger())
        self.happenings = told.happenings
        self.service = BrokerService(
            self.broker, clock=self.clock, journal=FanOut(self.journal, told)
        )
        self.holders = Holders(asyncio.get_running_loop(), self.service.submit)
        self.keepers = FakeKeepers(self.service.submit, gpus=GPUS, gpu_bytes=256 * MIB)
        self.identify: Callable[[socket.socket], Peer] = peer_of  # a test may set another
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{self.path}.presence")
        listener.listen()
        self.presence = PresenceServer(
            listener,
            service=self.service,
            holders=self.holders,
            keepers=self.keepers,
            settings=SETTINGS,
            clock=self.clock,
            limits=limits,
            identify=self._identified,
        )
        self.settings_file = SettingsFile(directory / "state" / "quotas.json")
        self.link_file = LinkFile(directory / "state" / "links.json")
        self.service.connect(keepers=self.keepers, sessions=self.presence)
        calls = BrokerCalls(
            service=self.service,
            presence=self.presence,
            keepers=self.keepers,
            settings=SETTINGS,
            happenings=self.happenings,
            settings_file=self.settings_file,
            link_file=self.link_file,
            limits=call_limits,
            clock=self.clock,
        )
        self.presence.take_calls(FramedCalls(calls).take)
        self.health = Health()
        self.server = make_server([calls_handler(calls, self.presence), self.health.handler()])

    def events(self, kind: type[Event]) -> list[Event]:
        """The events of one kind that the broker was given."""
        return [event for event in self.journal.events if isinstance(event, kind)]

    def advance(self, seconds: float) -> None:
        """Let time pass, and tell the broker."""
        self.clock.advance(seconds)
        self.service.submit(Ticked())

    def _identified(self, connection: socket.socket) -> Peer:
        return self.identify(connection)

    async def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Let the loop run until *condition* holds; fail when it does not."""
        try:
            async with asyncio.timeout(10.0):
                while not condition():  # noqa: ASYNC110 - conditions are of other objects
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise AssertionError(what) from None


@contextlib.asynccontextmanager
async def running(
    limits: PresenceLimits | None = None,
    *,
    has_heard_keepers: bool = True,
    call_limits: CallLimits | None = None,
) -> AsyncIterator[Node]:
    """A node that serves."""
    with tempfile.TemporaryDirectory(prefix="aqua-") as directory:
        node = Node(Path(directory), limits=limits, call_limits=call_limits)
        if has_heard_keepers:
            node.keepers.attach()
        node.presence.start()
        node.server.add_insecure_port(f"unix:{node.path}")
        await node.server.start()
        node.health.is_serving = True
        try:
            yield node
        finally:
            await node.server.stop(None)
            node.presence.close()
            node.holders.close()
            node.keepers.close()


class Client:
    """One process's two connections, which it may misuse."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.token = b""
        self.session_id = SessionId("")
        self.sentinel: int | None = None
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.connect(f"{node.path}.presence")
        self.connection.settimeout(0)
        self.reader = FrameReader()
        self.channel = aio.insecure_channel(f"unix:{node.path}")
        self._frames: list[presence_pb2.DaemonFrame] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.channel.close()
        self.leave()

    def leave(self) -> None:
        """Close the presence connection, and the sentinel, as a dying process does."""
        self.connection.close()
        self.reader.close()
        if self.sentinel is not None:
            os.close(self.sentinel)
            self.sentinel = None

    async def send(self, payload: bytes | presence_pb2.ClientFrame) -> None:
        """One whole frame."""
        if not isinstance(payload, bytes):
            payload = payload.SerializeToString()
        await self.send_raw(encode_frame(payload))

    async def send_raw(self, stream: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.connection, stream)

    async def receive(self) -> presence_pb2.DaemonFrame:
        """The next frame; Disconnected when there is none to come."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10.0):
            while not self._frames:
                try:
                    self.reader.read_from(self.connection)
                except BlockingIOError:
                    await _readable(loop, self.connection)
                except ConnectionResetError as error:
                    raise Disconnected from error
                for payload in self.reader.frames():
                    self._frames.append(presence_pb2.DaemonFrame.FromString(payload))
        return self._frames.pop(0)

    async def hello(self, **fields: object) -> presence_pb2.DaemonFrame:
        """Say hello and take in the answer."""
        message = presence_pb2.Hello(protocol=1, program="a test", version="1")
        for name, value in fields.items():
            if isinstance(value, Message):
                getattr(message, name).CopyFrom(value)
            elif isinstance(value, list):
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)
        await self.send(presence_pb2.ClientFrame(hello=message))
        frame = await self.receive()
        if frame.HasField("welcome"):
            self.token = frame.welcome.token
            self.session_id = SessionId(frame.welcome.session_id)
            if frame.welcome.has_sentinel:
                (self.sentinel,) = self.reader.take_descriptors(1)
        return frame

    async def keepalive(self, *lease_ids: str, sequence: int = 1) -> presence_pb2.DaemonFrame:
        """Say that these leases are known, and take in the answer."""
        message = presence_pb2.Keepalive(sequence=sequence)
        for lease_id in lease_ids:
            message.leases.add(lease_id=lease_id)
        await self.send(presence_pb2.ClientFrame(keepalive=message))
        return await self.receive()

    async def call(
        self,
        name: str,
        payload: bytes | Message,
        *,
        token: bytes | None = None,
        service: str = SERVICE,
        timeout: float = 10.0,  # noqa: ASYNC109 - gRPC's own deadline is what is meant
    ) -> bytes:
        """Any call with any bytes; raises AioRpcError."""
        content = payload if isinstance(payload, bytes) else payload.SerializeToString()
        method: aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            f"/{service}/{name}"
        )
        used = self.token if token is None else token
        metadata = ((TOKEN_KEY, used),) if used else ()
        reply: bytes = await method(content, metadata=metadata, timeout=timeout)
        return reply

    async def acquire(self, nbytes: int = 4 * MIB) -> broker_pb2.AcquireReply:
        """A `cache` lease."""
        request = broker_pb2.AcquireRequest(
            request_id=new_id(), nbytes=nbytes, safety_class=broker_pb2.SAFETY_CLASS_CACHE
        )
        return broker_pb2.AcquireReply.FromString(await self.call("Acquire", request))


@contextlib.asynccontextmanager
async def greeted(node: Node, **hello: object) -> AsyncIterator[Client]:
    """A client that was welcomed."""
    async with Client(node) as client:
        frame = await client.hello(**hello)
        assert frame.HasField("welcome"), frame
        yield client


@contextlib.asynccontextmanager
async def greeted_as(node: Node, *, uid: int, unit: str) -> AsyncIterator[Client]:
    """A welcomed client that counts as another user's."""
    node.identify = identity_of(uid=uid, unit=unit)
    async with Client(node) as client:
        await client.hello()
        node.identify = peer_of
        yield client


def identity_of(*, uid: int, unit: str) -> Callable[[socket.socket], Peer]:
    """The process that it is, as another user's and in another unit."""

    def identify(connection: socket.socket) -> Peer:
        peer = peer_of(connection)
        process = replace(peer.process, uid=uid)
        return Peer(process=process, pidfd=peer.pidfd, cgroup=f"0::/system.slice/{unit}\n")

    return identify


def new_id() -> str:
    return secrets.token_hex(16)


def lease_of(reply: broker_pb2.AcquireReply) -> LeaseId:
    return LeaseId(reply.lease.lease_id)


def _silent_logger() -> logging.Logger:
    logger = logging.getLogger("aqua.test.in_process")
    logger.setLevel(logging.CRITICAL)
    return logger


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
