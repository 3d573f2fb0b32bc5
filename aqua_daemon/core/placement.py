"""Which GPU a new slab comes from: a pure function from what is lendable to a choice with a reason.

Greedy, what is slow last: the GPU that the borrower may expect to reach fastest, as both ends are
shared now. So one whose links a lender fills borrows more of that one, rather than of others that it
could reach no faster; of equals the one that is shared less. Of equals still, and where nothing is
known of links, the one with the most to lend, so that later requests find room everywhere. A peer
that is no faster than host memory is never chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.model import GpuUuid
from aqua_daemon.core.sizes import MIB, SLAB_GRANULE_BYTES


# Not frozen: each request makes one of each GPU, and a frozen one takes three times as long to make.
@dataclass(slots=True, kw_only=True)
class Lender:
    """One GPU as a request sees it."""

    gpu: GpuUuid
    lendable_bytes: int
    free_bytes: int
    trouble: str  # why nothing is granted there; else empty
    is_home: bool
    leases_of_session: int
    too_slow: str = ""  # why host memory would be as good; else empty
    is_slow: bool = False  # clearly slower than the node's others: only where these have no room
    # What may be expected to leave it for this borrower, and to arrive there from it, with all that
    # shares either now; 0: nothing is known.
    egress_bytes_per_second: float = 0.0
    ingress_bytes_per_second: float = 0.0

    @property
    def bytes_per_second(self) -> float:
        """The narrower of the two."""
        egress, ingress = self.egress_bytes_per_second, self.ingress_bytes_per_second
        return min(egress, ingress) if egress and ingress else egress or ingress


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a slab is to be made, and why there."""

    lender: Lender

    @property
    def gpu(self) -> GpuUuid:
        """The GPU that lends it."""
        return self.lender.gpu

    @property
    def reason(self) -> str:
        """For people who ask."""
        reason = f"{_mib(self.lender.lendable_bytes)} lendable, the most"
        rate = self.lender.bytes_per_second
        return f"{rate / 1e9:.0f} GB/s expected, {reason}" if rate else reason


def place(lenders: Iterable[Lender], *, nbytes: int, lend_to_own_gpu: bool) -> Placement:
    """The GPU to borrow *nbytes* from.

    Raises:
        InsufficientMemory: none has them; the message says what each lacked, and it how large a slab
            may be.
    """
    lenders = tuple(lenders)
    best: Lender | None = None
    best_rank: tuple[bool, float, float, int, bool] | None = None
    largest_bytes = 0
    for lender in lenders:
        if lender.too_slow:
            continue
        if lender.is_home and not lend_to_own_gpu:
            continue
        if lender.lendable_bytes < nbytes:
            largest_bytes = max(largest_bytes, lender.lendable_bytes)
            continue
        rank = _rank(lender)
        if best_rank is None or rank > best_rank:
            best, best_rank = lender, rank
    if best is None:
        lacks = "; ".join(_lack(lender, lend_to_own_gpu=lend_to_own_gpu) for lender in lenders)
        msg = (
            f"no GPU has {_mib(nbytes)} that may be lent: {lacks or 'there is no GPU'}. "
            "Use host memory, release leases, or ask for a smaller slab"
        )
        granules = largest_bytes // SLAB_GRANULE_BYTES
        raise InsufficientMemory(msg, largest_bytes=granules * SLAB_GRANULE_BYTES)
    return Placement(lender=best)


def _rank(lender: Lender) -> tuple[bool, float, float, int, bool]:
    return (
        not lender.is_slow,
        lender.bytes_per_second,
        lender.egress_bytes_per_second,
        lender.lendable_bytes,
        # Where the session borrows already: a fault of that GPU then costs it no more.
        lender.leases_of_session > 0,
    )


def _lack(lender: Lender, *, lend_to_own_gpu: bool) -> str:
    if lender.is_home and not lend_to_own_gpu:
        return f"{lender.gpu} is the session's own"
    if lender.trouble:
        return f"{lender.gpu} lends nothing, {lender.trouble}"
    if lender.too_slow:
        return f"{lender.gpu} is not used, {lender.too_slow}"
    return (
        f"{lender.gpu} has {_mib(lender.lendable_bytes)} of {_mib(lender.free_bytes)} free above "
        "its reserve and within its owners' limits"
    )


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:g} MiB"
