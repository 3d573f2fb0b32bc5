"""The daemon's links to its keepers: orders out, outcomes in as events, over every reconnect.

Covers finding a keeper (or starting one), attaching, attaching again for as long as the daemon
lives, and what outlives a connection: frees that have no answer yet, and handles that their holders
have not got yet. Does not cover one connection's conversation (`keeper_connection`).

What a broken link means:

1. Allocations that have no answer have failed. If the keeper made one nevertheless, its tag says so
   at the next attach, and the broker decides.
2. Frees that have no answer are kept and sent again at the next attach; one that the keeper
   refused, because its driver failed, a moment later.
3. A process that lives is KeeperDetached; its slabs live on in it. One that has ended is KeeperEnded
   and took its slabs along, so that frees kept for it are dropped: the bytes are gone. The kernel
   closes a dying process's connections a moment before it says that the process has ended, so that
   moment is waited for.
4. Proofs of holders are handed on before KeeperAttached is, so that the broker never asks about a
   session whose end nobody would notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Collection, Sequence

from aqua_protos.keeper_pb2 import Attached

from aqua_daemon.adapters import keeper_messages
from aqua_daemon.adapters.keeper_address import KeeperAddress, Proofs
from aqua_daemon.adapters.keeper_connection import KeeperConnection, Order
from aqua_daemon.adapters.keeper_processes import ProcessWatch
from aqua_daemon.adapters.link_probes import LinkProbes
from aqua_daemon.adapters.probe_messages import MeasureLink, OfferProbe, ProbeHandle
from aqua_daemon.core.events import (
    Event,
    GpuReported,
    KeeperAttached,
    KeeperDetached,
    KeeperEnded,
    SlabAllocated,
    SlabAllocationFailed,
    SlabFreed,
)
from aqua_daemon.core.instructions import AllocateSlab, FreeSlab, ProbeLink
from aqua_daemon.core.link_figures import LinkSample
from aqua_daemon.core.model import GpuReport, LeaseId, SessionId
from aqua_daemon.ports import SlabHandle

ATTACH_SECONDS = 5.0
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0
FREE_AGAIN_SECONDS = 1.0
DEATH_SECONDS = 0.5  # between the end of a dying process's connections and its own

_log = logging.getLogger("aqua.keepers")


class KeeperLinks:
    """Implements `ports.Keepers` over one link for each keeper."""

    def __init__(
        self,
        addresses: Sequence[KeeperAddress],
        *,
        submit: Callable[[Event], None],
        holders: Proofs,
        daemon_version: str,
    ) -> None:
        self._probes = LinkProbes(submit=submit)
        self._links = [
            _KeeperLink(
                address,
                submit=submit,
                holders=holders,
                probes=self._probes,
                daemon_version=daemon_version,
            )
            for address in addresses
        ]
        self._link_of = {gpu: link for link in self._links for gpu in link.gpus}
        self._probes.connect({**self._link_of})
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to look for the keepers; to be called on the running loop."""
        self._tasks = [asyncio.create_task(link.run()) for link in self._links]

    async def close(self) -> None:
        """Let go of every keeper; they live on. May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links:
            link.close()
        self._probes.close()

    def allocate(self, order: AllocateSlab) -> None:
        """Ends in SlabAllocated or SlabAllocationFailed, also when the keeper is gone."""
        self._link_of[order.tag.lender].allocate(order)

    def free(self, order: FreeSlab) -> None:
        """Ends in SlabFreed, or in KeeperEnded for the GPU. Idempotent."""
        self._link_of[order.gpu].free(order)

    def probe(self, order: ProbeLink) -> None:
        """Ends in LinkProbed, unless a keeper hangs; also when one is gone or too old to measure."""
        self._probes.start(order)

    def handle(self, lease_id: LeaseId) -> SlabHandle | None:
        """The handle of a slab allocated by this daemon and not dropped yet; else None."""
        return next(
            (link.handles[lease_id] for link in self._links if lease_id in link.handles), None
        )

    def drop_handle(self, lease_id: LeaseId) -> None:
        """The holder has the handle, or the lease is over: close what is kept. Idempotent."""
        for link in self._links:
            link.drop_handle(lease_id)

    def drop_handles(self, lease_ids: Collection[LeaseId]) -> None:
        """As `drop_handle`, for all that a client says it has: most of them long since dropped."""
        for link in self._links:
            if link.handles:
                for lease_id in link.handles.keys() & lease_ids:
                    link.drop_handle(lease_id)


class _KeeperLink:
    """One keeper, over all its connections and processes."""

    def __init__(
        self,
        address: KeeperAddress,
        *,
        submit: Callable[[Event], None],
        holders: Proofs,
        probes: LinkProbes,
        daemon_version: str,
    ) -> None:
        self.gpus = address.gpus
        self._probes = probes
        self.handles: dict[LeaseId, SlabHandle] = {}
        self._address = address
        self._submit = submit
        self._holders = holders
        self._daemon_version = daemon_version
        self.connection: KeeperConnection | None = None
        self._watch: ProcessWatch | None = None
        self._frees: dict[LeaseId, FreeSlab] = {}
        self._is_known = False  # it was attached, and its process has not ended since
        self._is_there = False  # the broker believes that it can be reached
        self._changed = asyncio.Event()  # attached, ended, or its process did

    def allocate(self, order: AllocateSlab) -> None:
        connection = self.connection
        if connection is None or not connection.is_attached:
            self._fail(order, f"the keeper of {order.tag.lender} can't be reached")
            return
        try:
            pidfd, sentinel = self._holders.descriptors(order.tag.session_id)
            connection.allocate(order, pidfd=pidfd, sentinel=sentinel)
        except KeyError:
            self._fail(order, f"session {order.tag.session_id} is over")
        except OSError as error:
            self._fail(order, f"the holder's proof can't be sent: {error.strerror}")

    def free(self, order: FreeSlab) -> None:
        self.drop_handle(order.lease_id)
        if order.lease_id in self._frees:
            return
        self._frees[order.lease_id] = order
        if self.connection is not None and self.connection.is_attached:
            self.connection.free(order)

    def drop_handle(self, lease_id: LeaseId) -> None:
        handle = self.handles.pop(lease_id, None)
        if handle is not None and handle.descriptor is not None:
            os.close(handle.descriptor)

    async def run(self) -> None:
        """Be attached, for ever."""
        pause = SHORTEST_PAUSE_SECONDS
        while True:
            if await self._attach():
                pause = SHORTEST_PAUSE_SECONDS
                await self._until(lambda: self.connection is None)
                await self._until(self._has_process_ended, seconds=DEATH_SECONDS)
            self._tell_loss()
            await self._until(self._has_process_ended, seconds=pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if self._watch is not None:
            self._watch.close()
        if self._address.process is not None:
            self._address.process.leave()
        for lease_id in list(self.handles):
            self.drop_handle(lease_id)

    # What the connection tells (keeper_connection.Listening).

    def attached(self, attached: Attached) -> None:
        reports = [report for report in attached.gpus if report.gpu in self.gpus]
        if len(reports) != len(self.gpus) or len(reports) != len(attached.gpus):
            _log.error(
                "the keeper at %s has %s where %s are expected: start both with the same GPUs",
                self._address.socket_path,
                [report.gpu for report in attached.gpus],
                list(self.gpus),
            )
        warnings = () if self.connection is None else self.connection.warnings
        event = KeeperAttached(
            reports=tuple(keeper_messages.gpu_report(report, warnings) for report in reports),
            slabs=tuple(tag for report in reports for tag in keeper_messages.slab_tags(report)),
        )
        self._is_known = self._is_there = True
        self._changed.set()
        frees = tuple(self._frees.values())  # those from here on find the connection attached
        self._submit(event)
        for order in frees:
            if self.connection is not None:
                self.connection.free(order)

    def proof(self, session_id: SessionId, *, pidfd: int, sentinel: int) -> None:
        self._holders.add(session_id, pidfd=pidfd, sentinel=sentinel)

    def reported(self, report: GpuReport) -> None:
        if report.gpu in self.gpus:
            self._submit(GpuReported(report=report))

    def allocated(self, order: AllocateSlab, handle: SlabHandle) -> None:
        self.handles[order.tag.lease_id] = handle
        self._submit(SlabAllocated(lease_id=order.tag.lease_id))

    def freed(self, order: FreeSlab, *, scrubbed_bytes: int, unreturned_bytes: int) -> None:
        self._frees.pop(order.lease_id, None)
        self._submit(
            SlabFreed(
                lease_id=order.lease_id,
                scrubbed_bytes=scrubbed_bytes,
                unreturned_bytes=unreturned_bytes,
            )
        )

    def offered(self, order: OfferProbe, handle: ProbeHandle) -> None:
        self._probes.offered(order, handle)

    def measured(self, order: MeasureLink, samples: tuple[LinkSample, ...]) -> None:
        self._probes.measured(order, samples)

    def failed(self, order: Order, message: str) -> None:
        if isinstance(order, AllocateSlab):
            self._fail(order, message)
        elif isinstance(order, (OfferProbe, MeasureLink)):
            self._probes.failed(order.probe, message)
        else:  # it stays kept: bytes that nobody freed are never forgotten
            _log.error("lease %s can't be freed yet: %s", order.lease_id, message)
            loop = asyncio.get_running_loop()
            loop.call_later(FREE_AGAIN_SECONDS, self._free_again, order, self.connection)

    def ended(self, reason: str, unanswered: Sequence[Order]) -> None:
        _log.warning("the link to the keeper of %s broke: %s", ", ".join(self.gpus), reason)
        self.connection = None
        self._changed.set()
        for order in unanswered:
            if not isinstance(order, FreeSlab):
                self.failed(order, f"the link to the keeper broke: {reason}")

    def _free_again(self, order: FreeSlab, asked: KeeperConnection | None) -> None:
        # Another connection than the one that was asked has been told of all that is kept.
        if asked is not None and asked is self.connection and order.lease_id in self._frees:
            asked.free(order)

    def _fail(self, order: AllocateSlab, message: str) -> None:
        self._submit(SlabAllocationFailed(lease_id=order.tag.lease_id, message=message))

    async def _attach(self) -> bool:
        connected = self._connect()
        if connected is None:
            if self._address.process is not None:
                self._address.process.ensure_started()
            return False
        self.connection = KeeperConnection(connected, self, daemon_version=self._daemon_version)
        await self._until(self._is_attach_over, seconds=ATTACH_SECONDS)
        if not self._is_attach_over():
            self.connection.abandon(f"it did not answer within {ATTACH_SECONDS:g} s")
        return self.connection is not None

    def _is_attach_over(self) -> bool:
        return self.connection is None or self.connection.is_attached

    async def _until(self, condition: Callable[[], bool], *, seconds: float | None = None) -> None:
        """Return when *condition* holds, or after *seconds*."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()

    def _connect(self) -> socket.socket | None:
        with contextlib.ExitStack() as undo:
            connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.settimeout(0)
            try:
                connection.connect(str(self._address.socket_path))
                watch = ProcessWatch(connection, self._changed.set)
            except OSError:
                return None  # nobody serves there (yet), or it ended this moment
            self._replace_watch(watch)
            undo.pop_all()
            return connection

    def _replace_watch(self, watch: ProcessWatch) -> None:
        """Another connection; it may be to another process than the last."""
        before, self._watch = self._watch, watch
        if before is not None:
            before.close()
            if before.pid != watch.pid or before.has_ended:
                self._tell_ended()

    def _has_process_ended(self) -> bool:
        return self._watch is not None and self._watch.has_ended

    def _tell_loss(self) -> None:
        """Tell what became of a keeper that the broker believes to be there."""
        if self._has_process_ended():
            self._watch = None
            self._tell_ended()
        elif self._is_there:
            self._is_there = False
            self._submit(KeeperDetached(gpus=self.gpus))

    def _tell_ended(self) -> None:
        """The slabs went with the process, and so did every reason to free them."""
        if self._address.process is not None:
            self._address.process.reap()
        if not self._is_known:
            return
        _log.warning("the keeper of %s has ended", ", ".join(self.gpus))
        self._is_known = self._is_there = False
        self._frees.clear()
        for lease_id in list(self.handles):
            self.drop_handle(lease_id)
        self._submit(KeeperEnded(gpus=self.gpus))
