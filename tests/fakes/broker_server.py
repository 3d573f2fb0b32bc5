"""A daemon in miniature, for tests of the client: real sockets, gRPC and memfds, no broker.

    with FakeDaemon(path) as daemon:
        daemon.refuse["Acquire"] = (grpc.StatusCode.RESOURCE_EXHAUSTED, "no_room")

It grants whatever is asked and keeps what it heard. A script tells it to refuse, hang, fall
silent, push, or die; a new one over the same `Books` is the next daemon. As a process, to be stopped
and killed, it is `broker_process`.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
from aqua_protos import broker_pb2, presence_pb2
from aqua_protos.framing import Disconnected, FrameReader, send_frame
from google.protobuf.message import Message

from tests.fakes.broker_books import CANARY, MIB, Books, Session

TERM_SECONDS = 0.6

ItemT = TypeVar("ItemT")

_REQUESTS: dict[str, type[Message]] = {
    "Acquire": broker_pb2.AcquireRequest,
    "Release": broker_pb2.ReturnRequest,
    "Acknowledge": broker_pb2.ReturnRequest,
    "ReserveHost": broker_pb2.ReserveHostRequest,
    "Offer": broker_pb2.OfferRequest,
    "Reclaim": broker_pb2.ReclaimRequest,
    "GetState": broker_pb2.GetStateRequest,
}


class FakeDaemon:
    """Listens from construction; whoever makes it ends it."""

    def __init__(
        self,
        path: str,
        books: Books | None = None,
        *,
        term_seconds: float = TERM_SECONDS,
        way: str = "frames",
    ) -> None:
        self.path = path
        self.books = books or Books()
        self.term_seconds = term_seconds
        self.refuse: dict[str, tuple[grpc.StatusCode, str]] = {}  # by call: status, aqua-reason
        self.refuse_hello: str | None = None  # a status name
        self.refusal_reason = ""
        self.protocol = 1
        self.takes_calls = way == "frames"  # a daemon of the release before: by gRPC alone
        self.hangs = False  # calls and greetings get no answer
        self.is_silent = False  # frames get no answer
        self.descriptor_comes = "before"  # the reply; or "after", or "never"
        self.grants_cuda = False
        self.sends_sentinels_again = False
        self.lent_bytes: list[int] = []  # as each offer finds them, the last one for ever
        self.gpus: list[broker_pb2.GpuState] = []  # likewise, as each look finds them
        self.reclaimed: broker_pb2.ReclaimReply | None = None  # instead of the usual figures
        self.reclaims_may_end = threading.Event()
        self.reclaims_may_end.set()
        self.ended_leases: set[str] = set()  # where they are named they are not known
        self.hellos: list[presence_pb2.Hello] = []
        self.keepalives: list[presence_pb2.Keepalive] = []
        self.goodbyes: list[str] = []
        self.calls: list[tuple[str, Message]] = []
        self.framed: list[str] = []  # those of them that came by frame
        self._is_over = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        Path(f"{path}.presence").unlink(missing_ok=True)
        self._listener.bind(f"{path}.presence")
        self._listener.listen()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._server: grpc.Server | None = None
        if not self.takes_calls:
            self.serve_grpc()
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.die()
        self.books.close()

    @property
    def session(self) -> Session:
        """The newest session."""
        return list(self.books.sessions.values())[-1]

    def die(self) -> None:
        """End without a word to anybody; the books stay. May be called twice."""
        self._is_over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        if self._server is not None:
            self._server.stop(None).wait()
        for thread in self._threads:
            thread.join()

    def drop_links(self) -> None:
        """End every presence connection, and go on listening."""
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # The presence socket

    def _accept(self) -> None:
        while not self._is_over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno != errno.EMFILE:  # which says nothing of who wants to connect
                    return
                self._is_over.wait(0.01)
                continue
            self._connections.append(connection)
            thread = threading.Thread(target=self._converse, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _converse(self, connection: socket.socket) -> None:
        reader = FrameReader()
        with suppress(OSError):
            while not self._is_over.is_set():
                reader.read_from(connection)
                for payload in reader.frames():
                    frame = presence_pb2.ClientFrame.FromString(payload)
                    self._hear(connection, frame)
        with suppress(Disconnected, OSError):
            connection.close()

    def _hear(self, connection: socket.socket, frame: presence_pb2.ClientFrame) -> None:
        match frame.WhichOneof("kind"):
            case "hello":
                self.hellos.append(frame.hello)
                if not self.hangs:
                    self._welcome(connection, frame.hello)
            case "keepalive":
                self.keepalives.append(frame.keepalive)
                if not self.is_silent and not self.hangs:
                    self._answer_keepalive(frame.keepalive)
            case "call":
                thread = threading.Thread(target=self._answer_call, args=(self.session, frame.call))
                thread.start()
                self._threads.append(thread)
            case "goodbye":
                self.goodbyes.append(self.session.session_id)
            case _:
                raise AssertionError(frame)

    def _welcome(self, connection: socket.socket, hello: presence_pb2.Hello) -> None:
        known = self.books.sessions.get(hello.session_id)
        code = self.refuse_hello or ("NOT_FOUND" if hello.session_id and not known else None)
        if code is not None:
            refusal = presence_pb2.Refusal(code=code, message="go away", reason=self.refusal_reason)
            frame = presence_pb2.DaemonFrame(refusal=refusal)
            send_frame(connection, frame.SerializeToString())
            return
        welcome = presence_pb2.Welcome(
            protocol=self.protocol,
            session_id=hello.session_id or uuid.uuid4().hex,
            token=os.urandom(32),
            tenant="uid-0",
            term_seconds=self.term_seconds,
            smallest_slab_bytes=4 * MIB,
            largest_slab_bytes=32 * MIB,
            daemon_version="fake",
            features=["calls"] if self.takes_calls else [],
            ended_lease_ids=self._ended(hello.leases),
        )
        welcome.has_sentinel = known is None or self.sends_sentinels_again
        payload = presence_pb2.DaemonFrame(welcome=welcome).SerializeToString()
        if known is not None and not welcome.has_sentinel:
            known.connection, known.token = connection, welcome.token
            send_frame(connection, payload)
            return
        ours, theirs = socket.socketpair()
        if known is not None:
            known.sentinel.close()
        self.books.sessions[welcome.session_id] = Session(
            welcome.session_id,
            welcome.token,
            connection,
            ours,
            known.leases if known else set(),
        )
        with theirs:
            send_frame(connection, payload, [theirs.fileno()])

    def _answer_keepalive(self, keepalive: presence_pb2.Keepalive) -> None:
        reply = presence_pb2.KeepaliveReply(
            sequence=keepalive.sequence, ended_lease_ids=self._ended(keepalive.leases)
        )
        self.session.push(presence_pb2.DaemonFrame(keepalive_reply=reply))

    def _ended(self, uses: Iterable[presence_pb2.LeaseUse]) -> list[str]:
        """Of the leases that are named, those that are not known."""
        return sorted({use.lease_id for use in uses} & self.ended_leases)

    def _answer_call(self, session: Session, call: presence_pb2.Call) -> None:
        request = _REQUESTS[call.method].FromString(call.payload)
        self.framed.append(call.method)
        self.calls.append((call.method, request))
        reply = presence_pb2.CallReply(number=call.number)
        end = time.monotonic() + call.seconds
        while self.hangs and time.monotonic() < end and not self._is_over.wait(0.02):
            pass
        if call.method in self.refuse:
            status, reply.refusal.reason = self.refuse[call.method]
            reply.refusal.code, reply.refusal.message = status.name, f"{call.method} refused"
        else:
            reply.payload = self._answer(call.method, request).SerializeToString()
        if not self.hangs:
            session.push(presence_pb2.DaemonFrame(call_reply=reply))

    # gRPC

    def serve_grpc(self) -> None:
        """From now on, too; a daemon that takes calls by frame begins without."""
        self._server = server = grpc.server(ThreadPoolExecutor(max_workers=16))
        handlers: dict[str, grpc.RpcMethodHandler[Message, Message]] = {
            name: grpc.unary_unary_rpc_method_handler(
                self._handler(name),
                request_deserializer=request.FromString,
                response_serializer=lambda reply: reply.SerializeToString(),
            )
            for name, request in _REQUESTS.items()
        }
        service = grpc.method_handlers_generic_handler("aqua.broker.v1.Broker", handlers)
        server.add_generic_rpc_handlers((service,))
        server.add_insecure_port(f"unix:{self.path}")
        server.start()

    def _handler(self, name: str) -> Callable[[Message, grpc.ServicerContext], Message]:
        def handle(request: Message, context: grpc.ServicerContext) -> Message:
            self.calls.append((name, request))
            while self.hangs and context.is_active() and not self._is_over.wait(0.02):
                pass
            tokens = [value for key, value in context.invocation_metadata() if "token" in key]
            if tokens != [self.session.token]:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such token")
            if name in self.refuse:
                status, reason = self.refuse[name]
                if reason:
                    context.set_trailing_metadata((("aqua-reason", reason),))
                context.abort(status, f"{name} refused")
            return self._answer(name, request)

        return handle

    def _answer(self, name: str, request: Message) -> Message:
        match request:
            case broker_pb2.AcquireRequest():
                return self._grant(request)
            case broker_pb2.ReturnRequest():
                known = self.session.leases & set(request.lease_ids)
                self.session.leases -= known
                unknown = set(request.lease_ids) - known
                return broker_pb2.ReturnReply(
                    returned_lease_ids=sorted(known), unknown_lease_ids=sorted(unknown)
                )
            case broker_pb2.ReserveHostRequest():
                return broker_pb2.ReserveHostReply(host_room=request.host_room)
            case broker_pb2.OfferRequest():
                lent_bytes = _next(self.lent_bytes, 0)
                return broker_pb2.OfferReply(offered_bytes=request.nbytes, lent_bytes=lent_bytes)
            case broker_pb2.ReclaimRequest():
                while not (self.reclaims_may_end.wait(0.02) or self._is_over.is_set()):
                    pass
                return self.reclaimed or broker_pb2.ReclaimReply(
                    asked_bytes=request.nbytes,
                    revoked_bytes=request.nbytes + MIB,
                    freed_bytes=request.nbytes,
                    quarantined_bytes=MIB,
                    seconds=0.25,
                )
            case broker_pb2.GetStateRequest():
                gpu = _next(self.gpus, broker_pb2.GpuState(gpu=request.gpu))
                return broker_pb2.GetStateReply(gpus=[gpu])
            case _:
                raise AssertionError(name)

    def _grant(self, request: broker_pb2.AcquireRequest) -> broker_pb2.AcquireReply:
        lease_id = uuid.uuid4().hex
        self.session.leases.add(lease_id)
        lease = broker_pb2.Lease(
            lease_id=lease_id,
            lender_gpu="SHM-1",
            nbytes=request.nbytes,
            safety_class=request.safety_class,
        )
        reply = broker_pb2.AcquireReply(lease=lease)
        reply.handle.keeper_pid = 1
        reply.handle.canary = CANARY
        if self.grants_cuda:
            reply.handle.cuda_ipc.handle = bytes(64)
            return reply
        reply.handle.descriptor.SetInParent()
        if self.descriptor_comes == "before":
            self.session.push_descriptor(lease_id)
        elif self.descriptor_comes == "after":
            timer = threading.Timer(0.1, self.session.push_descriptor, (lease_id,))
            timer.start()
            self._threads.append(timer)
        return reply


def _next(script: list[ItemT], otherwise: ItemT) -> ItemT:
    """What comes next; the last one again and again, and *otherwise* without any."""
    return script.pop(0) if len(script) > 1 else script[0] if script else otherwise
