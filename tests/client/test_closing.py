"""A pager that closes while other threads copy: they are waited for, as long as is promised."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from aqua_client.errors import HandleReleased
from aqua_client.pager import Pager
from tests.client.pagers import paging, park, random_bytes, two_gpus
from tests.fakes.session import FakeNode
from tests.nodes import wait_until


@contextmanager
def closing_waits(pager: Pager) -> Iterator[None]:
    """Until the end of the block, and no longer."""
    pager._settings = type(pager._settings)(close_seconds=30.0)
    with ThreadPoolExecutor(1) as thread:
        closing = thread.submit(pager.close)
        with pytest.raises(TimeoutError):
            closing.result(0.5)
        yield
        closing.result(10.0)


def test_closing_waits_for_a_copy_and_never_unmaps_under_it() -> None:
    """A slab that is still in use stays mapped, and no goodbye says otherwise."""
    node = two_gpus()
    with paging(node) as pager:
        pager._settings = type(pager._settings)(close_seconds=0.05)
        handle = park(pager, random_bytes(1000))
        places = pager.pin(handle._stored)
        pager.close()
        assert not node.sessions[0].is_closed
        assert places[0].memory.view(torch.uint8)[0] == random_bytes(1000)[0]
        pager.unpin(places, is_read=True)
        assert pager._unmap(list(pager._tiers.slabs.values()))
        pager._lender.close()


def test_closing_waits_for_a_copy_from_host_memory() -> None:
    """Beneath a thread that is in torch's copy, an interpreter that ends aborts the process."""
    with paging(FakeNode(refusal="no_room")) as pager:
        handle = park(pager, random_bytes(1000))
        assert handle.tier == "host"
        places = pager.pin(handle._stored)
        with closing_waits(pager):
            pager.unpin(places, is_read=True)


def test_closing_waits_for_a_copy_to_host_memory() -> None:
    """As for one that comes from there."""
    with paging(FakeNode(refusal="no_room")) as pager:
        handle = park(pager, random_bytes(1000))
        writing = pager.reserve(1000, handle._stored.safety)
        with closing_waits(pager):
            pager.discard(writing)


def test_what_finds_room_after_closing_is_not_copied() -> None:
    """Nobody waits for who was asking the daemon meanwhile: it is told that the client is closed."""
    node = FakeNode(refusal="no_room")
    with paging(node) as pager, ThreadPoolExecutor(1) as thread:
        node.host_answers.clear()
        asking = node.probes
        parking = thread.submit(park, pager, random_bytes(1000))
        wait_until(lambda: node.probes > asking, what="it asks for host memory")
        pager.close()
        node.host_answers.set()
        with pytest.raises(HandleReleased):
            parking.result(10.0)
        assert pager._tiers.host.used_bytes == 0
