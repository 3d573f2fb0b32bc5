"""A client over a made-up node, as the cache uses it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from aqua_client import batches
from aqua_client.pager import Pager
from aqua_client.tensors import OffloadedTensor
from tests.client.pagers import paging
from tests.fakes.session import FakeNode


class PagerClient:
    """What is used of a client, with what it was asked."""

    def __init__(self, pager: Pager) -> None:
        self.pager = pager
        self.stored_bytes: list[int] = []  # by call
        self.fetched_bytes: list[int] = []

    def offload_many(self, sources: Sequence[torch.Tensor], *, keep: str) -> list[OffloadedTensor]:
        handles = batches.offload_many(self.pager, sources, keep)
        self.stored_bytes.append(sum(one.nbytes for one in sources))
        return handles

    def fetch_many(
        self, handles: Sequence[OffloadedTensor], outs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        self.fetched_bytes.append(sum(one.nbytes for one in outs))
        return batches.fetch_many(self.pager, handles, outs)

    def count(self, name: str) -> int:
        """One of the pager's counts."""
        value = self.pager.stats()[name]
        assert isinstance(value, int)
        return value


@contextmanager
def storing(
    node: FakeNode | None = None, *, host_limit_bytes: int = 2**28
) -> Iterator[PagerClient]:
    """A client of that node; nothing is left of it afterwards."""
    made = FakeNode() if node is None else node
    with paging(made, host_limit_bytes=host_limit_bytes) as pager:
        yield PagerClient(pager)
