"""gRPC's channel, and what a fork does to it.

After a fork the child leaks the channel instead of closing it, which would hang: gRPC's threads did
not come along. For the same reason a child of a process that has used gRPC can't use it either:
when the fork fell into a call, or fork support is off, even deadlines are not kept there. So in such
a child `is_lost_to_fork` holds, and a session does not start. A process that needs no channel does
not load gRPC either: 20 MiB and a tenth of a second.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

TOKEN_KEY = "aqua-token-bin"  # noqa: S105 - the name of the metadata, not a token
REASON_KEY = "aqua-reason"
# gRPC opens some six for its first channel, and where one can't be had it aborts the whole process.
CHANNEL_DESCRIPTORS = 16
LARGEST_MESSAGE_BYTES = 4 * 2**20  # as a frame: a state of 10,000 leases is 2 MiB

_SERVICE = "/aqua.broker.v1.Broker/"
_OPTIONS = (
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),  # a repeat is the caller's to decide
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Channels would share one connection, and with it the pause after a dead daemon.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class NoReply(Exception):
    """A call has no reply: *code* is a status's name, *reason* the daemon's label or empty."""

    def __init__(
        self, code: str, details: str, *, reason: str = "", largest_bytes: int | None = None
    ) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.reason = reason
        self.largest_bytes = largest_bytes


def new_channel(target: str) -> grpc.Channel:
    """Whoever makes it closes it, or leaks it in a child."""
    import grpc

    global _grpc_used  # noqa: PLW0603 - gRPC is one a process
    _grpc_used = True
    return grpc.insecure_channel(target, options=_OPTIONS)


def ask_by_channel(
    channel: grpc.Channel, method: str, payload: bytes, *, token: bytes, seconds: float
) -> bytes:
    """The reply.

    Raises:
        NoReply: by its reason an answer of the daemon is told from gRPC's own words.
    """
    import grpc

    try:
        ask = channel.unary_unary(_SERVICE + method, _as_it_is, _as_it_is)
        return ask(payload, timeout=seconds, metadata=((TOKEN_KEY, token),))
    except grpc.RpcError as error:
        reasons = [str(one.value) for one in error.trailing_metadata() if one.key == REASON_KEY]
        reason = reasons[0] if reasons else ""
        raise NoReply(error.code().name, error.details() or "", reason=reason) from None
    except ValueError as error:  # the channel was closed before the call went out
        raise NoReply("CANCELLED", str(error)) from None


def leak(channel: grpc.Channel) -> None:
    """Never close it: not even the end of the interpreter does."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(channel))  # one reference too many


def is_lost_to_fork() -> bool:
    """Whether this process is a forked child of one that had used gRPC."""
    return _grpc_lost


def _as_it_is(payload: bytes) -> bytes:
    return payload  # `wire` has encoded it, or will decode it


_grpc_used = False
_grpc_lost = False  # this process is a forked child of one that had used gRPC


def _note_fork() -> None:
    global _grpc_lost  # noqa: PLW0603 - gRPC is one a process
    _grpc_lost = _grpc_used or _grpc_lost


os.register_at_fork(after_in_child=_note_fork)
