"""How aquactl reaches the daemon: a presence connection for the token, then unary calls.

Does not cover what is asked or shown: the commands do that. Nothing here keeps a session alive by
keepalives: aquactl holds no lease, and a silent session may go on asking.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc
from aqua_protos import broker_pb2, presence_pb2
from aqua_protos.agreement import OBSERVER, SPOKEN
from aqua_protos.framing import Disconnected, FrameReader, FrameTooLarge, send_frame
from google.protobuf.message import Message

from aqua_daemon import __version__

SERVICE = "aqua.broker.v1.Broker"
LARGEST_REPLY_BYTES = 64 * 2**20  # 100,000 leases
_GONE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAUTHENTICATED,  # another daemon serves there now, and does not know the token
}
_GONE_CODES = {code.name for code in _GONE}

_ReplyT = TypeVar("_ReplyT", bound=Message)


class Unreachable(Exception):
    """No daemon answered in time. The message says where and what to do."""


class Refused(Exception):
    """The daemon answered, and said no."""


class Link:
    """One session with a daemon; `opened` makes it."""

    def __init__(
        self, path: Path, welcome: presence_pb2.Welcome, channel: grpc.Channel, *, seconds: float
    ) -> None:
        self._path = path
        self._welcome = welcome
        self._channel = channel
        self._seconds = seconds

    def call(
        self, name: str, request: Message, kind: type[_ReplyT], *, seconds: float | None = None
    ) -> _ReplyT:
        """Make one call; *seconds* instead of the link's own limit.

        Raises:
            Unreachable: no answer in time, or from a daemon that does not know this session.
            Refused: the daemon said no.
        """
        method: grpc.UnaryUnaryMultiCallable[Message, _ReplyT] = self._channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=kind.FromString,
        )
        try:
            reply: _ReplyT = method(
                request,
                timeout=self._seconds if seconds is None else seconds,
                metadata=(("aqua-token-bin", self._welcome.token),),
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise Refused(self._too_old(name)) from None
            raise _translated(error, self._path) from None
        return reply

    def knows(self, feature: str) -> bool:
        """Whether the daemon has named *feature* in its welcome."""
        return feature in self._welcome.features

    def require(self, feature: str, what: str) -> None:
        """Go on only with a daemon that knows *feature*: an older one would leave it out silently.

        Raises:
            Refused: it does not; *what* it does not know is for people.
        """
        if not self.knows(feature):
            raise Refused(self._too_old(what))

    def _too_old(self, what: str) -> str:
        return (
            f"the daemon at {self._path} (version {self._welcome.daemon_version}) does not know "
            f"{what}: upgrade it to this aquactl's version, {__version__}"
        )


@contextmanager
def opened(path: Path, *, seconds: float) -> Iterator[Link]:
    """A session with the daemon at *path*, for the length of the block.

    Raises:
        Unreachable: nobody listens, or no answer within *seconds*.
        Refused: the daemon will not talk to this caller.
    """
    options = [("grpc.max_receive_message_length", LARGEST_REPLY_BYTES)]
    with (
        _welcomed(path, seconds=seconds) as welcome,
        grpc.insecure_channel(f"unix:{path}", options=options) as channel,
    ):
        yield Link(path, welcome, channel, seconds=seconds)


def fetch_state(path: Path, *, seconds: float) -> broker_pb2.GetStateReply:
    """Ask the daemon at *path* how its node is now; raises as `opened` and `Link.call` do."""
    with opened(path, seconds=seconds) as link:
        return link.call("GetState", broker_pb2.GetStateRequest(), broker_pb2.GetStateReply)


@contextmanager
def _welcomed(path: Path, *, seconds: float) -> Iterator[presence_pb2.Welcome]:
    """Say hello; the welcome's token is good while the connection is open."""
    presence = f"{path}.presence"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(presence)
            hello = presence_pb2.Hello(
                protocol=SPOKEN.oldest,
                newest_protocol=SPOKEN.newest,
                features=(OBSERVER,),
                program="aquactl",
                version=__version__,
            )
            send_frame(connection, presence_pb2.ClientFrame(hello=hello).SerializeToString())
            answer = _first_frame(connection)
        except PermissionError:
            msg = f"{presence}: permission denied; join the daemon's group, or run as its user"
            raise Refused(msg) from None
        except (OSError, Disconnected, FrameTooLarge) as error:
            raise _unreachable(presence, error) from None
        if answer.WhichOneof("kind") != "welcome":
            message = answer.refusal.message or "the daemon did not welcome this call"
            raise Unreachable(message) if answer.refusal.code in _GONE_CODES else Refused(message)
        _check_protocol(answer.welcome)
        yield answer.welcome


def _check_protocol(welcome: presence_pb2.Welcome) -> None:
    if not SPOKEN.oldest <= welcome.protocol <= SPOKEN.newest:
        msg = (
            f"the daemon (version {welcome.daemon_version}) speaks protocol {welcome.protocol}, "
            f"this aquactl (version {__version__}) {SPOKEN}: use the aquactl that came with it"
        )
        raise Refused(msg)


def _first_frame(connection: socket.socket) -> presence_pb2.DaemonFrame:
    reader = FrameReader(accepts_descriptors=False)  # the sentinel is not for a passer-by
    while True:
        reader.read_from(connection)
        for frame in reader.frames():
            return presence_pb2.DaemonFrame.FromString(frame)


def _unreachable(presence: str, error: Exception) -> Unreachable:
    cause = "no answer in time" if isinstance(error, TimeoutError) else str(error)
    return Unreachable(
        f"no daemon at {presence} ({cause}); is it running?  systemctl status aqua-daemon"
    )


def _translated(error: grpc.RpcError, path: Path) -> Exception:
    code, details = error.code(), error.details()
    if code in _GONE:
        return Unreachable(f"the daemon at {path} does not answer ({details})")
    return Refused(f"{code.name}: {details}")
