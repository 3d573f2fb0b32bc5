"""How aquactl reaches the daemon: a presence connection for the token, then one unary call.

Does not cover what is shown: `status` and `leases` do that.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from aqua_protos import broker_pb2, broker_pb2_grpc, presence_pb2
from aqua_protos.framing import Disconnected, FrameReader, FrameTooLarge, send_frame

from aqua_daemon import __version__

PROTOCOL = 1
LARGEST_REPLY_BYTES = 64 * 2**20  # 100,000 leases


class Unreachable(Exception):
    """No daemon answered in time. The message says where and what to do."""


class Refused(Exception):
    """The daemon answered, and said no."""


def fetch_state(path: Path, *, seconds: float) -> broker_pb2.GetStateReply:
    """Ask the daemon at *path* how its node is now.

    Raises:
        Unreachable: nobody listens, or no answer within *seconds*.
        Refused: the daemon will not talk to this caller.
    """
    with _token(path, seconds=seconds) as token:
        channel = grpc.insecure_channel(
            f"unix:{path}", options=[("grpc.max_receive_message_length", LARGEST_REPLY_BYTES)]
        )
        with channel:
            try:
                reply: broker_pb2.GetStateReply = broker_pb2_grpc.BrokerStub(channel).GetState(
                    broker_pb2.GetStateRequest(),
                    timeout=seconds,
                    metadata=(("aqua-token-bin", token),),
                )
            except grpc.RpcError as error:
                raise _translated(error, path) from None
            return reply


@contextmanager
def _token(path: Path, *, seconds: float) -> Iterator[bytes]:
    """Say hello; the token is good while the connection is open."""
    presence = f"{path}.presence"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(presence)
            hello = presence_pb2.Hello(protocol=PROTOCOL, program="aquactl", version=__version__)
            send_frame(connection, presence_pb2.ClientFrame(hello=hello).SerializeToString())
            welcome = _first_frame(connection)
        except PermissionError:
            msg = f"{presence}: permission denied; join the daemon's group, or run as its user"
            raise Refused(msg) from None
        except (OSError, Disconnected, FrameTooLarge) as error:
            raise _unreachable(presence, error) from None
        if welcome.WhichOneof("kind") != "welcome":
            raise Refused(welcome.refusal.message or "the daemon did not welcome this call")
        yield welcome.welcome.token


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
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
        return Unreachable(f"the daemon at {path} does not answer ({details})")
    return Refused(f"{code.name}: {details}")
