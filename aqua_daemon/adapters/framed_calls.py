"""The API over presence frames: what one unary call costs in gRPC pays for eight here.

Covers how a call comes by the presence link, and its answer goes. Does not cover what the calls do
(broker_calls). The link says whose call it is, so it carries no token. A call is answered when its
answer is there: those of one client may overtake each other, as they do over gRPC.
"""

from __future__ import annotations

import asyncio

from aqua_protos.agreement import FRAMED_METHODS

from aqua_daemon.adapters.broker_calls import BrokerCalls
from aqua_daemon.adapters.presence_link import PresenceLink
from aqua_daemon.adapters.reply import Reply, slab_not_sent
from aqua_daemon.adapters.statuses import LONGEST_DETAILS, status_of
from aqua_daemon.adapters.wire import frames
from aqua_daemon.core.errors import BrokerError, InsufficientMemory, InvalidRequest
from aqua_daemon.core.model import SessionId

# What is longer would stand in the way of keepalives; only GetState of a whole node can be.
LARGEST_ANSWER_BYTES = 64 * 2**10


class FramedCalls:
    """Takes calls from links; made on the running loop."""

    def __init__(self, calls: BrokerCalls) -> None:
        self._calls = calls
        self._answering: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive

    def take(self, link: PresenceLink, session_id: SessionId, call: frames.Call) -> None:
        """Answer *call* on *link*, now or later; nothing happens where the link has ended."""
        try:
            if call.method not in FRAMED_METHODS:
                msg = f"{call.method} is not called by frame: call it over gRPC"
                raise InvalidRequest(msg)
            reply = self._calls.reply_at_once(call.method, session_id, call.payload)
            if reply is not None:
                _send(link, call, reply)
                return
        except BrokerError as error:
            _refuse(link, call, error)
            return
        task = asyncio.create_task(self._answer(link, session_id, call))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, link: PresenceLink, session_id: SessionId, call: frames.Call) -> None:
        try:
            reply = await self._calls.reply(
                call.method, session_id, call.payload, wait_seconds=call.seconds
            )
            _send(link, call, reply)
        except BrokerError as error:
            _refuse(link, call, error)


def _send(link: PresenceLink, call: frames.Call, reply: Reply) -> None:
    size = len(reply.payload)
    if size > LARGEST_ANSWER_BYTES:
        msg = f"an answer of {size} bytes is over the {LARGEST_ANSWER_BYTES} of a frame: call over gRPC"
        raise InvalidRequest(msg)
    frame = frames.call_reply(call.number, reply.payload)
    if reply.slab is None:
        link.push(frame)
        return
    slab = frames.slab_descriptor(reply.slab.lease_id)
    if not link.push_descriptor(slab, reply.slab.descriptor, frame):
        raise slab_not_sent()


def _refuse(link: PresenceLink, call: frames.Call, error: BrokerError) -> None:
    message = str(error)[:LONGEST_DETAILS]
    code = status_of(error).name
    largest_bytes = error.largest_bytes if isinstance(error, InsufficientMemory) else None
    link.push(
        frames.call_refused(
            call.number, code, message, reason=error.reason, largest_bytes=largest_bytes
        )
    )
