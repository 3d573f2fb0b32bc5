"""The API over gRPC: token to session, refusal to status.

Covers how a call of aqua.broker.v1.Broker comes by gRPC. Does not cover health (grpc_health) nor
what the calls do (broker_calls). Calls take bytes and not messages, so that what does not parse gets
a status that says so. Each reply carries `aqua-reason` in its trailing metadata: `ok`, or the reason
of the refusal that clients and metrics count under.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, cast

import grpc
from grpc import aio

from aqua_daemon.adapters.broker_calls import LARGEST_REQUEST_BYTES, BrokerCalls
from aqua_daemon.adapters.presence import PresenceServer
from aqua_daemon.adapters.reply import slab_not_sent
from aqua_daemon.adapters.statuses import LONGEST_DETAILS, Unauthenticated, status_of
from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.model import SessionId

SERVICE: Final = "aqua.broker.v1.Broker"
TOKEN_KEY: Final = "aqua-token-bin"  # noqa: S105 - the name of the metadata, not a token
REASON_KEY: Final = "aqua-reason"

# Over gRPC's own limit it answers by itself, in its words; ours answers below that with a remedy.
SERVER_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 4 * LARGEST_REQUEST_BYTES),
    ("grpc.max_send_message_length", 16 * 2**20),  # the state of a node with 40,000 leases
    ("grpc.max_metadata_size", 16 * 2**10),
    ("grpc.max_concurrent_streams", 256),  # of one connection
    ("grpc.so_reuseport", 0),
)

Context = aio.ServicerContext[bytes, bytes]


def calls_handler(calls: BrokerCalls, presence: PresenceServer) -> grpc.GenericRpcHandler:
    """What a gRPC server is to be given, so that it serves *calls* to the sessions of *presence*."""
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            method: grpc.unary_unary_rpc_method_handler(_served(method, calls, presence))
            for method in calls.methods
        },
    )


def _served(
    method: str, calls: BrokerCalls, presence: PresenceServer
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def serve(payload: bytes, context: Context) -> bytes:
        # The stubs say float; a call without a deadline has None.
        remaining = cast("float | None", context.time_remaining())
        try:
            session_id = _session_of(context, presence)
            reply = await calls.reply(method, session_id, payload, wait_seconds=remaining)
            slab = reply.slab
            if slab and not presence.send_descriptor(session_id, slab.lease_id, slab.descriptor):
                raise slab_not_sent()
        except BrokerError as error:
            await refuse(context, error)
        context.set_trailing_metadata(((REASON_KEY, "ok"),))
        return reply.payload

    return serve


def _session_of(context: Context, presence: PresenceServer) -> SessionId:
    metadata = context.invocation_metadata() or ()
    token = next((value for key, value in metadata if key == TOKEN_KEY), None)
    if not isinstance(token, bytes):
        msg = f"no token: say hello on the presence socket and send its token as {TOKEN_KEY}"
        raise Unauthenticated(msg)
    session_id = presence.session_of(token)
    if session_id is None:
        msg = (
            "the token is not of a live presence connection: say hello on the presence socket, "
            "with your session id if you have one, and use the token of that welcome"
        )
        raise Unauthenticated(msg)
    return session_id


async def refuse(context: Context, error: BrokerError) -> NoReturn:
    """End a call with the status of *error*; never returns."""
    await context.abort(
        status_of(error),
        details=str(error)[:LONGEST_DETAILS],
        trailing_metadata=((REASON_KEY, error.reason),),
    )
