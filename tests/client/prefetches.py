"""Prefetches to their end, and what tests ask of them."""

from __future__ import annotations

from aqua_client.pager import Pager
from aqua_client.tensors import OffloadedTensor
from tests.nodes import wait_until

NBYTES = 100_000


def stat(pager: Pager, name: str) -> object:
    return pager.stats()[name]


def landed(handle: OffloadedTensor) -> bool:
    """Whether its bytes have been brought back."""
    prefetched = handle._stored.prefetched
    return prefetched is not None and prefetched.done.done()


def prefetch(handle: OffloadedTensor) -> None:
    """To its end."""
    handle.prefetch()
    wait_until(lambda: landed(handle), what="prefetched")
