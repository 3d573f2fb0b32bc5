"""Unary calls to the daemon: each has a deadline, and a stuck daemon costs one of them.

Covers the channel, the token, the breaker and what a failure means. Does not cover what is asked:
`wire` says how it is written, `session` when.

After a fork the child leaks the channel instead of closing it, which would hang: gRPC's threads did
not come along. For the same reason a child of a process that has used gRPC can't use it either:
when the fork fell into a call, or fork support is off, even deadlines are not kept there. So in such
a child `is_lost_to_fork` holds, and a session does not start.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from typing import TypeVar

import grpc

from aqua_client.breaker import Breaker
from aqua_client.counters import Counters
from aqua_client.descriptors import check_spare
from aqua_client.errors import AquaError, BrokerUnreachable, NotAnOwner, Refused
from aqua_client.forking import GATE
from aqua_client.wire import Call, Malformed

TOKEN_KEY = "aqua-token-bin"  # noqa: S105 - the name of the metadata, not a token
REASON_KEY = "aqua-reason"
BREAKER = "breaker"  # the reason while nothing is asked of a daemon that is stuck
# gRPC opens some six for its first channel, and where one can't be had it aborts the whole process.
CHANNEL_DESCRIPTORS = 16
LARGEST_MESSAGE_BYTES = 4 * 2**20  # as a frame: a state of 10,000 leases is 2 MiB

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
_LATE = grpc.StatusCode.DEADLINE_EXCEEDED
_UNANSWERED = {grpc.StatusCode.UNAVAILABLE: "unavailable", _LATE: "timeout"}

AnswerT = TypeVar("AnswerT")


class Calls:
    """Shut until opened. Threads may share it."""

    def __init__(self, socket_path: str, counters: Counters) -> None:
        """Make no channel yet."""
        self._target = f"unix:{socket_path}"
        self._counters = counters
        self._lock = threading.Lock()  # never held across a call
        self._breaker = Breaker()
        self._channel: grpc.Channel | None = None
        self._token = b""
        self._shut_reason = "starting"

    @property
    def reason(self) -> str:
        """Why a call would fail at once; "" when it would go out."""
        return self._shut_reason or (BREAKER if self._breaker.is_open else "")

    def open(self, token: bytes) -> None:
        """Calls may go out, with this token, on a channel of their own."""
        with self._lock:
            self._token = token
            self._shut_reason = ""
            self._breaker = Breaker()

    def shut(self, reason: str) -> None:
        """Calls fail at once with *reason*; those that are out are given up."""
        with self._lock:
            self._shut_reason = reason
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def make(self, call: Call[AnswerT], *, seconds: float, minds_breaker: bool = True) -> AnswerT:
        """The daemon's answer.

        Without *minds_breaker* it goes out whatever became of others, and says nothing for them.

        Raises:
            Refused: it answered no.
            BrokerUnreachable: no answer in *seconds*, or none is to be expected now.
        """
        try:
            return self._make(call, seconds, minds_breaker=minds_breaker)
        except (Refused, BrokerUnreachable) as error:
            with self._lock:
                self._counters.count_call_failure(error.reason)
            raise

    def abandon_in_child(self) -> None:
        """Leak the channel in a forked child, for ever, and take no lock."""
        self._shut_reason = "forked"
        if self._channel is not None:
            _leak(self._channel)

    def _make(self, call: Call[AnswerT], seconds: float, *, minds_breaker: bool) -> AnswerT:
        if seconds <= 0:
            raise BrokerUnreachable(reason="timeout")
        channel, token, breaker = self._pass(minds_breaker=minds_breaker)
        try:
            ask = channel.unary_unary(call.path, _as_it_is, _as_it_is)
            with GATE.call_out():
                answer = ask(call.payload, timeout=seconds, metadata=((TOKEN_KEY, token),))
        except grpc.RpcError as error:
            raise self._failure(error, breaker) from None
        except ValueError as error:  # the channel was closed before the call went out
            raise BrokerUnreachable(str(error), reason=self.reason or "lost") from None
        else:
            with self._lock:
                breaker.answered()
        finally:
            with self._lock:
                breaker.probe_ended()  # also when a signal's exception comes in between
        try:
            return call.decode(answer)
        except Malformed as error:
            raise BrokerUnreachable(str(error), reason="bad_reply") from error

    def _pass(self, *, minds_breaker: bool) -> tuple[grpc.Channel, bytes, Breaker]:
        with self._lock:
            if self._shut_reason:
                raise BrokerUnreachable(reason=self._shut_reason)
            if self._channel is None:
                check_spare(CHANNEL_DESCRIPTORS)
            # One of its own, for a call that is not to touch the others'.
            breaker = self._breaker if minds_breaker else Breaker()
            if not breaker.allows(now=time.monotonic()):
                raise BrokerUnreachable(reason=BREAKER)
            if self._channel is None:
                self._channel = _new_channel(self._target)
            return self._channel, self._token, breaker

    def _failure(self, error: grpc.RpcError, breaker: Breaker) -> AquaError:
        code, details = error.code(), error.details() or ""
        # By its reason an answer of the daemon is told from gRPC's own words of the same status.
        reasons = [str(one.value) for one in error.trailing_metadata() if one.key == REASON_KEY]
        if code is grpc.StatusCode.CANCELLED:  # shut while the call was out
            return BrokerUnreachable(details, reason=self.reason or "lost")
        with self._lock:
            # The daemon's own DEADLINE_EXCEEDED (a keeper is stuck) costs as much as its silence.
            if code is _LATE or (code in _UNANSWERED and not reasons):
                was_open = breaker.is_open
                breaker.failed(now=time.monotonic())
                self._counters.breaker_openings += breaker is self._breaker and not was_open
                return BrokerUnreachable(details, reason=_UNANSWERED[code])
            breaker.answered()
        if code is grpc.StatusCode.UNAUTHENTICATED:  # the link has ended, and its end is on its way
            return BrokerUnreachable(details, reason="lost")
        reason = reasons[0] if reasons else code.name.lower()
        if reason == "not_permitted" or code is grpc.StatusCode.PERMISSION_DENIED:
            return NotAnOwner(details, reason=reason)
        return Refused(details, reason=reason)


_grpc_used = False
_grpc_lost = False  # this process is a forked child of one that had used gRPC


def _new_channel(target: str) -> grpc.Channel:
    global _grpc_used  # noqa: PLW0603 - gRPC is one a process
    _grpc_used = True
    return grpc.insecure_channel(target, options=_OPTIONS)


def _as_it_is(payload: bytes) -> bytes:
    return payload  # `wire` has encoded it, or will decode it


def _leak(channel: grpc.Channel) -> None:
    # One reference too many: not even the end of the interpreter closes the channel.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(channel))


def is_lost_to_fork() -> bool:
    """Whether this process is a forked child of one that had used gRPC."""
    return _grpc_lost


def _note_fork() -> None:
    global _grpc_lost  # noqa: PLW0603 - gRPC is one a process
    _grpc_lost = _grpc_used or _grpc_lost


os.register_at_fork(after_in_child=_note_fork)
