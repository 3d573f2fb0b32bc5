"""Slabs that are asked back while somebody reads, writes or releases what is in them.

Every case runs with real mappings; `paging` fails when a slab was still mapped as it went back.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

import pytest
import torch

from aqua_client import copying, slabs
from aqua_client.copying import Span
from aqua_client.pager import Pager
from tests.client.pagers import paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until


def test_a_revoke_waits_for_a_fetch_and_others_do_not() -> None:
    """A slab whose bytes are being read goes back when the reader is done."""
    node = two_gpus()
    tensor = random_bytes(30 * MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        gpu = next(iter(node.leases.values())).gpu
        other = park(pager, random_bytes(30 * MIB, seed=1))
        places = pager.pin(handle._stored)
        slow = node.revoke(gpu)
        wait_until(lambda: handle.tier == "peer" and pager.stats()["evacuated_bytes"], what="moved")
        quick = node.revoke("SHM-2" if gpu == "SHM-1" else "SHM-1")
        wait_acknowledged(node, quick)
        assert not set(slow) & set(node.acknowledged)
        assert torch.equal(places[0].memory.view(torch.uint8)[: 30 * MIB], tensor)
        pager.unpin(places, is_read=True)
        wait_acknowledged(node, slow)
        assert torch.equal(other.fetch(), random_bytes(30 * MIB, seed=1))
        assert torch.equal(handle.fetch(), tensor)


def test_nothing_new_is_put_into_a_slab_that_is_asked_back() -> None:
    """Though it has room, and is still there because somebody reads in it."""
    node = FakeNode(gpu_bytes={"SHM-1": 4 * MIB})  # of this one slab
    with paging(node) as pager:
        handle = park(pager, random_bytes(1000))
        places = pager.pin(handle._stored)
        revoked = node.revoke("SHM-1")
        wait_until(lambda: pager.stats()["evacuated_bytes"], what="moved")
        writing = pager.reserve(1000, handle._stored.safety)  # nobody moves it before it is written
        other = park(pager, random_bytes(1000, seed=1))
        for place in (*writing.reserved, *other._stored.places):
            assert place.slab is None or place.slab.lease_id not in revoked
        pager.discard(writing)
        pager.unpin(places, is_read=True)
        wait_acknowledged(node, revoked)
        assert torch.equal(other.fetch(), random_bytes(1000, seed=1))


def test_a_revoke_waits_for_a_write() -> None:
    """What is being offloaded into the slab is moved when it is all there."""
    node = two_gpus()
    tensor = random_bytes(1000)
    with paging(node) as pager:
        keeper = park(pager, tensor)
        reservation = pager.reserve(1000, keeper._stored.safety)
        revoked = node.revoke(next(iter(node.leases.values())).gpu)
        wait_until(lambda: pager.stats()["evacuated_bytes"], what="the rest is moved")
        reservation.reserved[0].memory.view(torch.uint8)[
            reservation.reserved[0].offset : reservation.reserved[0].offset + 1000
        ].copy_(tensor)
        assert not node.acknowledged
        stored = pager.written(reservation)
        wait_acknowledged(node, revoked)
        places = pager.pin(stored)
        offset = places[0].offset
        assert torch.equal(places[0].memory.view(torch.uint8)[offset : offset + 1000], tensor)
        pager.unpin(places, is_read=True)


def test_a_release_during_the_move_frees_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants the bytes any more: the copy is thrown away."""
    node = two_gpus()
    copies = copying.copy_spans
    with paging(node) as pager:
        handle = park(pager, random_bytes(MIB))

        def release_first(pairs: Sequence[tuple[Span, Span]]) -> None:
            handle.release()
            copies(pairs)

        monkeypatch.setattr(copying, "copy_spans", release_first)
        wait_acknowledged(node, node.revoke(next(iter(node.leases.values())).gpu))
        assert pager.stats()["peer_bytes"] == 0
        assert pager.stats()["host_bytes"] == 0


@pytest.mark.limit(60)
@pytest.mark.parametrize("settled_seconds", [slabs.SETTLED_SECONDS, 0.0])
def test_threads_go_on_while_every_gpu_is_asked_back_again_and_again(
    settled_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads offload, fetch and release; not one byte differs.

    Also where all that went to the host is brought back at once, each time.
    """
    monkeypatch.setattr(slabs, "SETTLED_SECONDS", settled_seconds)
    node = FakeNode(gpu_bytes={f"SHM-{number}": 32 * MIB for number in range(1, 5)})
    faults: list[BaseException] = []
    stop = threading.Event()
    rounds = [0] * 8
    with paging(node) as pager:
        threads = [
            threading.Thread(target=_use, args=(pager, number, rounds, stop, faults))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        revokes = _revoke_for(node, seconds=2.0)
        stop.set()
        for thread in threads:
            thread.join()
        wait_until(lambda: pager.stats()["peer_bytes"] == 0, what="all is released")
        assert pager.stats()["host_bytes"] == 0
    assert faults == []
    assert min(rounds) > 5
    assert revokes > 5
    assert node.still_mapped == []


def _use(
    pager: Pager, number: int, rounds: list[int], stop: threading.Event, faults: list[BaseException]
) -> None:
    chance = random.Random(number)  # noqa: S311 - a story that repeats, no secret
    held = []
    try:
        while not stop.is_set():
            rounds[number] += 1
            tensor = random_bytes(chance.choice((100, 4096, 70_000, 900_000)), seed=rounds[number])
            held.append((park(pager, tensor), tensor))
            handle, expected = chance.choice(held)
            assert torch.equal(handle.fetch(), expected)
            if len(held) > 12:
                held.pop(chance.randrange(len(held)))[0].release()
        for handle, expected in held:
            assert torch.equal(handle.fetch(out=torch.empty_like(expected)), expected)
    except BaseException as fault:  # noqa: BLE001 - told by the test's own thread
        faults.append(fault)


def _revoke_for(node: FakeNode, *, seconds: float) -> int:
    """Ask each GPU in turn for everything; it lends again when it has it. How many leases."""
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for gpu in tuple(node.gpu_bytes):
            revoked = node.revoke(gpu)
            wait_acknowledged(node, revoked)
            node.gpu_bytes[gpu] = 32 * MIB
            count += len(revoked)
    return count
