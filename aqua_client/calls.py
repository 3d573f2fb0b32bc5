"""Calls to the daemon: each has a deadline, and a stuck daemon costs one of them.

Covers the two ways that a call may go, the token, the breaker and what a failure means. Calls go by
the presence link (`framed_calls`) where the daemon takes them there, at an eighth of the cost; those
too long for it, and all to an older daemon, go by gRPC (`channel`). Does not cover what is asked:
`wire` says how it is written, `session` when.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from aqua_protos.agreement import FRAMED_METHODS

from aqua_client.breaker import Breaker
from aqua_client.channel import (
    CHANNEL_DESCRIPTORS,
    REASON_KEY,
    TOKEN_KEY,
    NoReply,
    ask_by_channel,
    is_lost_to_fork,
    leak,
    new_channel,
)
from aqua_client.counters import Counters
from aqua_client.descriptors import check_spare
from aqua_client.errors import AquaError, BrokerUnreachable, NotAnOwner, Refused
from aqua_client.forking import GATE
from aqua_client.framed_calls import MOST_BYTES, Ask, FramedCalls
from aqua_client.link import LinkBroken
from aqua_client.records import CallAnswer
from aqua_client.wire import Call, Malformed

if TYPE_CHECKING:
    import grpc

__all__ = ["BREAKER", "REASON_KEY", "TOKEN_KEY", "Calls", "is_lost_to_fork"]

BREAKER = "breaker"  # the reason while nothing is asked of a daemon that is stuck

_LATE = "DEADLINE_EXCEEDED"
_UNANSWERED = {"UNAVAILABLE": "unavailable", _LATE: "timeout"}

logger = logging.getLogger("aqua")

AnswerT = TypeVar("AnswerT")
Way = Callable[[str, bytes, float], bytes]  # of a method; raises NoReply


class Calls:
    """Shut until opened. Threads may share it."""

    def __init__(self, socket_path: str, counters: Counters) -> None:
        """Make no channel yet."""
        self._target = f"unix:{socket_path}"
        self._counters = counters
        self._lock = threading.Lock()  # never held across a call
        self._breaker = Breaker()
        self._channel: grpc.Channel | None = None
        self._framed: FramedCalls | None = None
        self._token = b""
        self._shut_reason = "starting"

    @property
    def reason(self) -> str:
        """Why a call would fail at once; "" when it would go out."""
        return self._shut_reason or (BREAKER if self._breaker.is_open else "")

    def open(self, token: bytes, ask: Ask | None = None) -> None:
        """Calls may go out: with this token, and by *ask* where the daemon takes them as frames."""
        with self._lock:
            self._token = token
            self._framed = None if ask is None else FramedCalls(ask)
            self._shut_reason = ""
            self._breaker = Breaker()

    def heard(self, answer: CallAnswer) -> None:
        """An answer has come by the presence link."""
        framed = self._framed  # which another thread may shut meanwhile
        if framed is not None:
            framed.heard(answer)

    def shut(self, reason: str) -> None:
        """Calls fail at once with *reason*; those that are out are given up."""
        with self._lock:
            self._shut_reason = reason
            channel, self._channel = self._channel, None
            framed, self._framed = self._framed, None
        if framed is not None:
            framed.end()
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

    def tell(self, call: Call[AnswerT], *, seconds: float) -> None:
        """Let the daemon know, whatever became of others; a no is counted and logged when it comes.

        Nobody waits for the answer where the call goes by the presence link, else as in `make`.

        Raises:
            BrokerUnreachable: it could not be sent in *seconds*, or none is to be expected now.
            Refused: it answered no over gRPC.
        """
        framed = self._framed
        if framed is None or not _goes_by_link(call):
            self.make(call, seconds=seconds, minds_breaker=False)
            return
        try:
            with GATE.call_out():
                framed.tell(call.method, call.payload, self._hear_refusal, seconds=seconds)
        except (TimeoutError, LinkBroken) as error:
            reason = "timeout" if isinstance(error, TimeoutError) else self.reason or "lost"
            with self._lock:
                self._counters.count_call_failure(reason)
            raise BrokerUnreachable(str(error), reason=reason) from None

    def abandon_in_child(self) -> None:
        """Leak the channel in a forked child, for ever, and take no lock."""
        self._shut_reason = "forked"
        if self._channel is not None:
            leak(self._channel)

    def _make(self, call: Call[AnswerT], seconds: float, *, minds_breaker: bool) -> AnswerT:
        if seconds <= 0:
            raise BrokerUnreachable(reason="timeout")
        way, breaker = self._pass(call, minds_breaker=minds_breaker)
        try:
            with GATE.call_out():
                answer = way(call.method, call.payload, seconds)
        except NoReply as error:
            raise self._failure(error, breaker) from None
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

    def _pass(self, call: Call[AnswerT], *, minds_breaker: bool) -> tuple[Way, Breaker]:
        with self._lock:
            if self._shut_reason:
                raise BrokerUnreachable(reason=self._shut_reason)
            framed = self._framed
            if not _goes_by_link(call):
                framed = None
            if framed is None and self._channel is None:
                check_spare(CHANNEL_DESCRIPTORS)
            # One of its own, for a call that is not to touch the others'.
            breaker = self._breaker if minds_breaker else Breaker()
            if not breaker.allows(now=time.monotonic()):
                raise BrokerUnreachable(reason=BREAKER)
            if framed is not None:
                return _by_link(framed), breaker
            if self._channel is None:
                self._channel = new_channel(self._target)
            return _by_channel(self._channel, self._token), breaker

    def _hear_refusal(self, answer: CallAnswer | None) -> None:
        if answer is not None and answer.refusal is not None:
            reason = answer.refusal.reason or answer.refusal.code.lower()
            with self._lock:
                self._counters.count_call_failure(reason)
            logger.info("the daemon refuses what it was told: %s", answer.refusal.message)

    def _failure(self, error: NoReply, breaker: Breaker) -> AquaError:
        code, details, reason = error.code, error.details, error.reason
        if code == "CANCELLED":  # shut while the call was out, or before it went
            return BrokerUnreachable(details, reason=self.reason or "lost")
        with self._lock:
            # The daemon's own DEADLINE_EXCEEDED (a keeper is stuck) costs as much as its silence.
            if code == _LATE or (code in _UNANSWERED and not reason):
                was_open = breaker.is_open
                breaker.failed(now=time.monotonic())
                self._counters.breaker_openings += breaker is self._breaker and not was_open
                return BrokerUnreachable(details, reason=_UNANSWERED[code])
            breaker.answered()
        if code == "UNAUTHENTICATED":  # the link has ended, and its end is on its way
            return BrokerUnreachable(details, reason="lost")
        reason = reason or code.lower()
        if reason == "not_permitted" or code == "PERMISSION_DENIED":
            return NotAnOwner(details, reason=reason)
        return Refused(details, reason=reason, largest_bytes=error.largest_bytes)


def _goes_by_link(call: Call[AnswerT]) -> bool:
    return call.method in FRAMED_METHODS and len(call.payload) <= MOST_BYTES


def _by_link(framed: FramedCalls) -> Way:
    def ask(method: str, payload: bytes, seconds: float) -> bytes:
        try:
            answer = framed.ask(method, payload, seconds=seconds)
        except TimeoutError:
            raise NoReply(_LATE, f"no answer in {seconds:g} s") from None
        except LinkBroken as error:
            raise NoReply("CANCELLED", str(error)) from None
        if answer.refusal is not None:
            refusal = answer.refusal
            raise NoReply(
                refusal.code,
                refusal.message,
                reason=refusal.reason,
                largest_bytes=refusal.largest_bytes,
            )
        return answer.payload

    return ask


def _by_channel(channel: grpc.Channel, token: bytes) -> Way:
    def ask(method: str, payload: bytes, seconds: float) -> bytes:
        return ask_by_channel(channel, method, payload, token=token, seconds=seconds)

    return ask
