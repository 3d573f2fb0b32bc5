"""What is granted: one slab a request, to who is there, where it may be lent and there is room."""

from __future__ import annotations

from collections.abc import Callable

from aqua_daemon.core.instructions import AllocateSlab
from aqua_daemon.core.model import (
    BrokerSettings,
    GpuUuid,
    Lease,
    LeaseId,
    RequestId,
    SafetyClass,
    SessionId,
)
from aqua_daemon.core.sizes import GRANT_RESERVE_FACTOR, reserve_bytes
from tests.simulation.books import Books
from tests.simulation.drains import Drains
from tests.simulation.judge import require
from tests.simulation.moves import Moves
from tests.simulation.stage import Stage


class Grants:
    """What one daemon has granted."""

    def __init__(
        self, settings: BrokerSettings, stage: Stage, *, moves: Moves, drains: Drains
    ) -> None:
        self.reserved_bytes: Callable[[], int] = lambda: 0  # of the host, as the daemon says
        self._settings = settings
        self._stage = stage
        self._moves = moves
        self._drains = drains
        self._requests: dict[tuple[SessionId, RequestId], LeaseId] = {}

    def ordered(self, order: AllocateSlab, books: Books) -> None:
        """A slab is to be made: for somebody who is there, where there is room, within its quota."""
        tag = order.tag
        self._stage.count("slabs ordered")
        require(tag.lease_id not in books.held, "{} ordered twice", tag.lease_id)
        key = (tag.session_id, tag.request_id)
        before = self._requests.get(key)
        require(before is None or before not in books.held, "two slabs for one request {}", key)
        self._requests[key] = tag.lease_id
        require(books.is_present(tag.session_id), "slab for absent {}", tag.session_id)
        self._drains.grants(tag.lender)
        refusal = books.why_no_grant_on(tag.lender)
        require(not refusal, "slab on {}, {}", tag.lender, refusal)
        is_own = tag.lender == tag.borrower and not self._settings.lend_to_own_gpu
        require(not is_own, "lent {} to itself", tag.lender)
        refusal = books.why_no_grants()
        require(not refusal, "granted while restarting: {}", refusal)
        books.hold(tag)
        self._check_room(tag.lender, books)
        if tag.safety_class is SafetyClass.STORE:
            reserved = self.reserved_bytes()
            fits = reserved <= self._settings.host_pool_bytes
            require(fits, "{} bytes of host room after a grant", reserved)
        held = books.tenant_bytes(tag.tenant)
        require(held <= self._settings.tenant_quota_bytes, "{} holds {} bytes", tag.tenant, held)
        fits = books.tenant_leases(tag.tenant) <= self._settings.tenant_quota_leases
        require(fits, "{} has too many leases", tag.tenant)

    def granted(
        self, session_id: SessionId, request_id: RequestId, lease: Lease, books: Books
    ) -> None:
        """A holder is told of its slab: its own, made, and for this request."""
        self._stage.count("grants")
        lease_id = lease.lease_id
        owner = self._moves.granted.setdefault(lease_id, session_id)
        require(owner == session_id == lease.session_id, "{} granted twice", lease_id)
        require(lease.request_id == request_id, "{} for request {}", lease, request_id)
        tag = books.held.get(lease_id)
        require(tag is not None, "{} granted and not held by any keeper", lease_id)
        require(tag is not None and tag.session_id == session_id, "{} is not {}'s", tag, session_id)

    def _check_room(self, gpu: GpuUuid, books: Books) -> None:
        total = books.reports[gpu].total_bytes
        free = books.free_bytes(gpu) - books.unsettled_bytes(gpu)
        reserve = GRANT_RESERVE_FACTOR * reserve_bytes(total)
        require(free >= reserve, "{}: {} free of {} after a grant", gpu, free, total)
        limit = books.limit(gpu)
        lent = books.lent_bytes(gpu)
        require(limit is None or lent <= limit, "{}: {} lent, limit {}", gpu, lent, limit)
