"""grpc.health.v1: whether this daemon serves. Needs no token: probes have none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from grpc import aio

from aqua_daemon.adapters.grpc_servicer import REASON_KEY, SERVER_OPTIONS, SERVICE, Context, refuse
from aqua_daemon.adapters.statuses import UnknownService
from aqua_daemon.adapters.wire import replies
from aqua_daemon.core.errors import BrokerError

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
_WHOLE_SERVER = ""


class Health:
    """Answers health checks; not serving until it is told so."""

    def __init__(self) -> None:
        self.is_serving = False

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server is to be given."""
        check: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
            self._check
        )
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, {"Check": check})

    async def _check(self, payload: bytes, context: Context) -> bytes:
        try:
            service = replies.health_service(payload)
            if service not in {_WHOLE_SERVER, SERVICE, HEALTH_SERVICE}:
                msg = f"no service {service[:80]!r} here: ask about {SERVICE}, or about none"
                raise UnknownService(msg)
        except BrokerError as error:
            await refuse(context, error)
        context.set_trailing_metadata(((REASON_KEY, "ok"),))
        return replies.health(is_serving=self.is_serving)


def make_server(handlers: Iterable[grpc.GenericRpcHandler]) -> aio.Server:
    """A server with our limits; the caller binds it, starts it, and stops it."""
    return aio.server(handlers=tuple(handlers), options=SERVER_OPTIONS)
