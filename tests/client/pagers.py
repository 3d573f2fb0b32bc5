"""Pagers over a made-up node, closed at the end of the block, with nothing left mapped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from aqua_client import tensors
from aqua_client.fallback import AquaWarning
from aqua_client.pager import Pager
from aqua_client.settings import ClientSettings, Fallback
from aqua_client.streams import Streams
from aqua_client.tensors import OffloadedTensor
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until


@contextmanager
def paging(
    node: FakeNode,
    *,
    host_limit_bytes: int = 256 * MIB,
    fallback: Fallback = Fallback.HOST,
    quiet: bool = True,
    streams: Streams | None = None,
) -> Iterator[Pager]:
    """A pager with that node's session; *quiet*: going to host memory is no warning here."""
    settings = ClientSettings(
        host_limit_bytes=host_limit_bytes, fallback=fallback, close_seconds=5.0
    )
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore", AquaWarning)
        pager = Pager(settings, node.session, streams=streams)
        try:
            yield pager
        finally:
            pager.close()
    assert node.still_mapped == []
    assert all(session.is_closed for session in node.sessions)


def no_daemon() -> FakeNode:
    """A node that can't be reached."""
    return FakeNode(unreachable="no_daemon", smallest_slab_bytes=0, largest_slab_bytes=0)


def two_gpus(each_bytes: int = 64 * MIB) -> FakeNode:
    """A node with two lenders."""
    return FakeNode(gpu_bytes={"SHM-1": each_bytes, "SHM-2": each_bytes})


def park(pager: Pager, tensor: torch.Tensor, *, keep: str = "store") -> OffloadedTensor:
    """Offload."""
    return tensors.offload(pager, tensor, keep)


def random_bytes(nbytes: int, *, seed: int = 0) -> torch.Tensor:
    """As many different bytes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)


def wait_acknowledged(node: FakeNode, lease_ids: tuple[str, ...], *, seconds: float = 10.0) -> None:
    """Until all of these have been acknowledged."""
    wait_until(
        lambda: set(lease_ids) <= set(node.acknowledged),
        seconds=seconds,
        what=f"{lease_ids} acknowledged",
    )
