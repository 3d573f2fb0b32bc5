"""Calls of the API as tests make them, and the reason of a refusal."""

from __future__ import annotations

from aqua_protos import broker_pb2
from grpc import aio

from aqua_daemon.adapters.grpc_servicer import REASON_KEY
from tests.daemon.in_process import MIB, Client, new_id

CACHE = broker_pb2.SAFETY_CLASS_CACHE


def acquire_request(nbytes: int = 4 * MIB) -> broker_pb2.AcquireRequest:
    return broker_pb2.AcquireRequest(request_id=new_id(), nbytes=nbytes, safety_class=CACHE)


def reason_of(error: aio.AioRpcError) -> str:
    metadata = error.trailing_metadata() or ()
    return next((str(value) for key, value in metadata if key == REASON_KEY), "none")


async def drained(client: Client, **fields: object) -> broker_pb2.DrainReply:
    request = broker_pb2.DrainRequest(request_id=new_id(), **fields)  # type: ignore[arg-type]  # its own
    return broker_pb2.DrainReply.FromString(await client.call("Drain", request))


async def set_quota(client: Client, **fields: object) -> broker_pb2.SetQuotaReply:
    request = broker_pb2.SetQuotaRequest(request_id=new_id(), **fields)  # type: ignore[arg-type]  # the message's own fields
    return broker_pb2.SetQuotaReply.FromString(await client.call("SetQuota", request))


async def quotas(client: Client) -> list[broker_pb2.Quota]:
    reply = await client.call("GetQuotas", broker_pb2.GetQuotasRequest())
    return list(broker_pb2.GetQuotasReply.FromString(reply).quotas)


async def events(client: Client, *, epoch: str = "", after: int = 0) -> broker_pb2.GetEventsReply:
    request = broker_pb2.GetEventsRequest(epoch=epoch, after=after)
    return broker_pb2.GetEventsReply.FromString(await client.call("GetEvents", request))


async def state(client: Client) -> broker_pb2.GetStateReply:
    reply = await client.call("GetState", broker_pb2.GetStateRequest())
    return broker_pb2.GetStateReply.FromString(reply)
