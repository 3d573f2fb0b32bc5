"""The daemon's side of one keeper: orders out, outcomes in, over a link that can break.

It promises what the port promises: every allocation ends in an event, frees are kept and sent
again while the keeper can't be reached, a report covers every order answered before it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
from aqua_daemon.core.instructions import AllocateSlab, FreeSlab
from aqua_daemon.core.model import GpuUuid, LeaseId, SessionId
from tests.simulation.agenda import Stream
from tests.simulation.keepers import Keeper
from tests.simulation.stage import Stage

_SCRUBBING = 0.25  # of orders: they take a keeper long enough for much to happen meanwhile


class KeeperLink:
    """One daemon's link to one keeper; it outlives a broken connection, not the keeper."""

    def __init__(
        self,
        keeper: Keeper,
        *,
        stage: Stage,
        submit: Callable[[Event], None],
        adopt_holder: Callable[[SessionId], None],
    ) -> None:
        self.keeper = keeper
        self.is_attached = False
        self._stage = stage
        self._submit = submit
        self._adopt_holder = adopt_holder
        self._orders = Stream(stage.agenda, stage.chance, pauses=_SCRUBBING)
        self._replies = Stream(stage.agenda, stage.chance)
        self._allocations: dict[LeaseId, AllocateSlab] = {}
        self._frees: dict[LeaseId, FreeSlab] = {}
        self._is_over = False
        self.cut()

    def connect(self) -> None:
        """Attach to the keeper, unless that is done; what it holds comes as the first reply."""
        if self._is_over or self._orders.is_open or not self.keeper.is_alive:
            return
        self._orders = Stream(self._stage.agenda, self._stage.chance, pauses=_SCRUBBING)
        self._replies = Stream(self._stage.agenda, self._stage.chance)
        self._orders.send(partial(self._answer, self._replies, self._attach))

    def allocate(self, order: AllocateSlab) -> None:
        """Send the order; without a link it has failed already."""
        lease_id = order.tag.lease_id
        if not self.is_attached:
            failed = SlabAllocationFailed(lease_id=lease_id, message="keeper not attached")
            self._stage.agenda.after(0.0, partial(self._submit, failed))
            return
        self._allocations[lease_id] = order
        self._orders.send(partial(self._answer, self._replies, partial(self._allocate, order)))

    def free(self, order: FreeSlab) -> None:
        """Send the order, now or when the link is back."""
        self._frees[order.lease_id] = order
        if self.is_attached:
            self._orders.send(partial(self._answer, self._replies, partial(self._free, order)))

    def report(self, gpu: GpuUuid) -> None:
        """The keeper says how one GPU is now."""
        if self.is_attached and self.keeper.is_alive:
            reported = GpuReported(report=self.keeper.report(gpu))
            self._replies.send(partial(self._submit, reported))

    def cut(self) -> None:
        """The connection ends: some orders in flight still reach the keeper, no reply comes."""
        self._replies.cut()
        in_flight = self._orders.in_flight
        arriving = int(self._stage.chance.between(0, in_flight + 1)) if in_flight else 0
        self._orders.cut(arriving=arriving if self.keeper.is_alive else 0)
        self.is_attached = False

    def end(self) -> None:
        """The daemon at this end has died."""
        self.cut()
        self._is_over = True

    def detach(self) -> None:
        """The connection breaks while the keeper lives; it comes back after a while."""
        self.cut()
        self._stage.count("keepers detached")
        self._stage.tell("the link to the keeper of {} breaks", self.keeper.uuids)
        self._submit(KeeperDetached(gpus=self.keeper.uuids))
        if self._stage.chance.happens(0.5):
            self._fail_allocations(known=())
        self._stage.agenda.after(self._stage.chance.between(0.05, 3.0), self.connect)

    def replace(self, keeper: Keeper) -> None:
        """The keeper's process has ended; a new one takes its place, with nothing in its hands."""
        early = self._stage.chance.happens(0.5)
        self.cut()
        if early:
            self._fail_allocations(known=())
        self._submit(KeeperEnded(gpus=self.keeper.uuids))
        self._fail_allocations(known=())
        if self._stage.chance.happens(0.5):
            self._frees.clear()  # nothing is left to free; the others are answered by the new one
        self.keeper = keeper
        self._stage.agenda.after(self._stage.chance.between(0.05, 3.0), self.connect)

    def _answer(self, replies: Stream, carry_out: Callable[[], Callable[[], None]]) -> None:
        """The keeper carries an order out and answers on the connection that brought it."""
        if self.keeper.is_alive:
            replies.send(carry_out())

    def _attach(self) -> Callable[[], None]:
        return partial(self._attached, self.keeper.attached())

    def _attached(self, event: KeeperAttached) -> None:
        self.is_attached = True
        for session_id in dict.fromkeys(tag.session_id for tag in event.slabs):
            self._adopt_holder(session_id)
        self._submit(event)
        self._fail_allocations(known=tuple(tag.lease_id for tag in event.slabs))
        for order in list(self._frees.values()):
            self.free(order)

    def _allocate(self, order: AllocateSlab) -> Callable[[], None]:
        return partial(self._allocated, self.keeper.allocate(order.tag))

    def _allocated(self, outcome: SlabAllocated | SlabAllocationFailed) -> None:
        self._allocations.pop(outcome.lease_id, None)
        self._submit(outcome)

    def _free(self, order: FreeSlab) -> Callable[[], None]:
        return partial(self._freed, self.keeper.free(order.gpu, order.lease_id))

    def _freed(self, outcome: SlabFreed) -> None:
        self._frees.pop(outcome.lease_id, None)
        self._submit(outcome)

    def _fail_allocations(self, *, known: tuple[LeaseId, ...]) -> None:
        """Every order that was in flight ends now: made if the keeper holds it, else failed."""
        for lease_id in list(self._allocations):
            del self._allocations[lease_id]
            if lease_id in known:
                self._submit(SlabAllocated(lease_id=lease_id))
            else:
                self._submit(SlabAllocationFailed(lease_id=lease_id, message="keeper gone"))
