"""A client of bare frames and calls, which keeps no rule but those it is held to."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from typing import Self, TypeVar

import grpc
from aqua_protos import broker_pb2, presence_pb2
from aqua_protos.framing import FrameReader, send_frame
from google.protobuf.message import Message

_ReplyT = TypeVar("_ReplyT", bound=Message)
_SECONDS = 10.0


class Refused(Exception):
    """The daemon said no, to a hello or a call; the first word is the status or the reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class BareClient:
    """One presence connection that said hello, and the calls that its token allows."""

    def __init__(self, path: str, *, sub_tenant: str = "", session_id: str = "") -> None:
        self._path = path
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._channel: grpc.Channel | None = None
        self._reader = FrameReader()
        try:
            self.connection.settimeout(_SECONDS)
            self.connection.connect(f"{path}.presence")
            hello = presence_pb2.Hello(
                protocol=1, program="bare", sub_tenant=sub_tenant, session_id=session_id
            )
            send_frame(self.connection, presence_pb2.ClientFrame(hello=hello).SerializeToString())
            welcome = self.frame()
        except BaseException:
            self.connection.close()
            self._reader.close()
            raise
        if welcome.WhichOneof("kind") != "welcome":
            self.close()
            raise Refused(welcome.refusal.code, welcome.refusal.message)
        self.tenant = welcome.welcome.tenant
        self.token = welcome.welcome.token
        self.session_id = welcome.welcome.session_id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything, without a goodbye."""
        self.connection.close()
        self._reader.close()
        if self._channel is not None:
            self._channel.close()

    def say_goodbye(self) -> None:
        """End the session: nothing of it is left."""
        goodbye = presence_pb2.ClientFrame(goodbye=presence_pb2.Goodbye())
        send_frame(self.connection, goodbye.SerializeToString())

    def frame(self) -> presence_pb2.DaemonFrame:
        """The next frame from the daemon."""
        while True:
            for payload in self._reader.frames():  # several may have come at once
                return presence_pb2.DaemonFrame.FromString(payload)
            self._reader.read_from(self.connection)

    def revoke(self) -> presence_pb2.Revoke:
        """The next revoke from the daemon."""
        while (frame := self.frame()).WhichOneof("kind") != "revoke":
            pass
        return frame.revoke

    def call(self, name: str, request: Message, kind: Callable[[bytes], _ReplyT]) -> _ReplyT:
        """One call; raises Refused with the reason."""
        if self._channel is None:
            self._channel = grpc.insecure_channel(f"unix:{self._path}")
        method: grpc.UnaryUnaryMultiCallable[Message, _ReplyT] = self._channel.unary_unary(
            f"/aqua.broker.v1.Broker/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=kind,
        )
        try:
            return method(request, timeout=_SECONDS, metadata=(("aqua-token-bin", self.token),))
        except grpc.RpcError as error:
            said = {str(one[0]): str(one[1]) for one in error.trailing_metadata() or ()}  # type: ignore[index]  # pairs, whatever the stubs say
            reason = said.get("aqua-reason", error.code().name)
            raise Refused(reason, str(error.details())) from None

    def acquire(self, nbytes: int = 4 * 2**20) -> str:
        """The id of a new `cache` lease."""
        request = broker_pb2.AcquireRequest(
            request_id=secrets.token_hex(16),
            nbytes=nbytes,
            safety_class=broker_pb2.SAFETY_CLASS_CACHE,
        )
        reply = self.call("Acquire", request, broker_pb2.AcquireReply.FromString)
        return str(reply.lease.lease_id)

    def give_back(self, name: str, *lease_ids: str) -> broker_pb2.ReturnReply:
        """`Release` or `Acknowledge`."""
        request = broker_pb2.ReturnRequest(request_id=secrets.token_hex(16), lease_ids=lease_ids)
        return self.call(name, request, broker_pb2.ReturnReply.FromString)

    def state(self) -> broker_pb2.GetStateReply:
        """The node as this client may see it."""
        request = broker_pb2.GetStateRequest()
        return self.call("GetState", request, broker_pb2.GetStateReply.FromString)
