"""The daemon's links to keepers under test, with every event that they submit."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from aqua_daemon.adapters.keeper_address import KeeperAddress
from aqua_daemon.adapters.keeper_link import KeeperLinks
from aqua_daemon.core.events import Event, SlabAllocated
from aqua_daemon.core.instructions import AllocateSlab, FreeSlab
from aqua_daemon.core.model import (
    GpuUuid,
    LeaseId,
    ProcessIdentity,
    RequestId,
    SafetyClass,
    SessionId,
    SlabTag,
    TenantName,
)
from tests.keeper.holders import Holder, lease_id
from tests.keeper.peers import SLAB_BYTES

SHM_0, SHM_1 = GpuUuid("SHM-0"), GpuUuid("SHM-1")
SECONDS = 20.0
_E = TypeVar("_E", bound=Event)


class FakeHolders:
    """Owns the proofs that it is given, as `Holders` does."""

    def __init__(self) -> None:
        self.proofs: dict[SessionId, tuple[int, int]] = {}

    def add(self, session_id: SessionId, *, pidfd: int, sentinel: int) -> None:
        if session_id in self.proofs:
            os.close(pidfd)
            os.close(sentinel)
        else:
            self.proofs[session_id] = (pidfd, sentinel)

    def add_holder(self, tenant: Holder) -> SessionId:
        session_id = SessionId(tenant.session_id)
        sentinel = os.dup(tenant.sentinel.fileno())
        self.add(session_id, pidfd=os.dup(tenant.pidfd), sentinel=sentinel)
        return session_id

    def descriptors(self, session_id: SessionId) -> tuple[int, int]:
        return self.proofs[session_id]

    def close(self) -> None:
        for descriptor in (fd for both in self.proofs.values() for fd in both):
            os.close(descriptor)


class Linked:
    """Links under test, and every event that they submitted."""

    def __init__(self, *addresses: KeeperAddress) -> None:
        self.holders = FakeHolders()
        self.events: list[Event] = []
        self._told = asyncio.Event()
        self.links = KeeperLinks(
            addresses, submit=self.submit, holders=self.holders, daemon_version="test"
        )

    def submit(self, event: Event) -> None:
        self.events.append(event)
        self._told.set()

    async def until(self, condition: Callable[[], object], *, what: str) -> None:
        """Let events come in until *condition* holds."""
        try:
            async with asyncio.timeout(SECONDS):
                while not condition():
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            raise AssertionError(f"not within {SECONDS:g} s: {what}") from None

    async def event(self, kind: type[_E], *, after: int = 0) -> _E:
        """The first event of that kind past position *after*, once it is there."""
        found: list[_E] = []

        def look() -> bool:
            found[:] = [event for event in self.events[after:] if isinstance(event, kind)]
            return bool(found)

        await self.until(look, what=f"{kind.__name__} in {self.events[after:]}")
        return found[0]


@contextlib.asynccontextmanager
async def linked(*addresses: KeeperAddress) -> AsyncIterator[Linked]:
    node = Linked(*addresses)
    node.links.start()
    try:
        yield node
    finally:
        await node.links.close()
        await node.links.close()  # twice is once
        node.holders.close()


def outside(path: Path, *gpus: GpuUuid) -> KeeperAddress:
    """A keeper that somebody else starts."""
    return KeeperAddress(socket_path=path, gpus=gpus or (SHM_0, SHM_1))


def order_for(session_id: SessionId, lease: int = 1, gpu: GpuUuid = SHM_0) -> AllocateSlab:
    holder_of = ProcessIdentity(pid=int(session_id, 16), start_ticks=5, uid=os.getuid())
    return AllocateSlab(
        tag=SlabTag(
            lease_id=LeaseId(lease_id(lease)),
            session_id=session_id,
            tenant=TenantName("uid-0"),
            safety_class=SafetyClass.CACHE,
            lender=gpu,
            borrower=SHM_1,
            nbytes=SLAB_BYTES,
            holder=holder_of,
            request_id=RequestId(lease_id(lease + 1000)),
        )
    )


async def granted(node: Linked, tenant: Holder, lease: int = 1) -> AllocateSlab:
    order = order_for(node.holders.add_holder(tenant), lease)
    after = len(node.events)
    node.links.allocate(order)
    assert (await node.event(SlabAllocated, after=after)).lease_id == order.tag.lease_id
    return order


def free_of(order: AllocateSlab) -> FreeSlab:
    return FreeSlab(gpu=order.tag.lender, lease_id=order.tag.lease_id)
