"""What a call of the API is answered by: a payload, and the memory of a slab that goes before it.

Does not cover what calls do (broker_calls) nor how an answer goes (framed_calls, grpc_servicer).
"""

from __future__ import annotations

from dataclasses import dataclass

from aqua_daemon.core.errors import SessionSuspect
from aqua_daemon.core.model import Lease, LeaseId
from aqua_daemon.ports import SlabHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabMemory:
    """A slab's descriptor, which is the keepers', and whose it is."""

    lease_id: LeaseId
    descriptor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What goes to the caller: the slab by its presence link, then the payload."""

    payload: bytes
    slab: SlabMemory | None = None


def slab_not_sent() -> SessionSuspect:
    """The refusal where the holder's presence link can't carry a slab now."""
    return SessionSuspect(
        "the slab's descriptor can't be sent: read the presence socket, or re-attach if it has "
        "closed, then ask again with the same request_id"
    )


def memory_of(lease: Lease, handle: SlabHandle) -> SlabMemory | None:
    """What has to be sent of a lease that is granted; None where its handle is in the payload."""
    if handle.descriptor is None:
        return None
    return SlabMemory(lease_id=lease.lease_id, descriptor=handle.descriptor)
