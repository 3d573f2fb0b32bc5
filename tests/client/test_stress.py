"""Sixteen threads use everything at random while every GPU is asked back again and again."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from aqua_client import awaiting, copying, tensors
from aqua_client.batches import fetch_many, offload_many
from aqua_client.copying import Span
from aqua_client.errors import LeaseLost
from aqua_client.immutables import Immutables
from aqua_client.layouts import Layout
from aqua_client.pager import Pager
from aqua_client.pools import BlockPool
from aqua_client.records import SafetyClass
from aqua_client.streams import Copier, Event
from tests.client.pagers import paging, park, random_bytes, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.fakes.streams import FakeEvent, FakeStreams
from tests.nodes import wait_until

CPU = torch.device("cpu")
LONGEST_COPY_SECONDS = 0.02
THREADS = 16
LEAST_REVOKES = 6
GPUS = tuple(f"SHM-{number}" for number in range(1, 5))
BLOCK = 3000


class LateEvent(FakeEvent):
    """Done a moment later."""

    def __init__(self) -> None:
        super().__init__()
        self._done_at = time.monotonic() + random.random() * LONGEST_COPY_SECONDS  # noqa: S311 - no secret

    def is_done(self) -> bool:
        return time.monotonic() > self._done_at


class LateStreams(FakeStreams):
    """Every copy counts as under way for a moment longer."""

    def record(
        self,
        device: torch.device,  # noqa: ARG002 - the port's
        ordinals: Sequence[int],  # noqa: ARG002
        *,
        since: Event | None = None,  # noqa: ARG002
    ) -> FakeEvent:
        return LateEvent()

    @contextmanager
    def aside(self, tensor: torch.Tensor, *, inward: bool) -> Iterator[None]:  # noqa: ARG002 - the port's
        yield


@pytest.mark.limit(60)
@pytest.mark.parametrize("streams", [None, LateStreams()], ids=["at-once", "enqueued"])
def test_sixteen_threads_under_continuous_revokes(streams: LateStreams | None) -> None:
    """Seconds of it: not one byte differs, and nothing is left."""
    stress(seconds=2.0, streams=streams)


@pytest.mark.long
@pytest.mark.limit(700)
@pytest.mark.parametrize("streams", [None, LateStreams()], ids=["at-once", "enqueued"])
def test_ten_minutes_under_continuous_revokes(streams: LateStreams | None) -> None:
    """The same, for races that seconds do not show."""
    stress(seconds=600.0 if streams is None else 120.0, streams=streams)


def stress(*, seconds: float, streams: LateStreams | None) -> None:
    """Run everybody for so long, and look at what is left."""
    node = FakeNode(gpu_bytes=dict.fromkeys(GPUS, 32 * MIB))
    faults: list[BaseException] = []
    stop = threading.Event()
    with paging(node, streams=streams) as pager:
        users = [User(pager, number, stop, faults) for number in range(THREADS)]
        threads = [threading.Thread(target=user.run) for user in users]
        for thread in threads:
            thread.start()
        revokes = revoke_for(node, seconds, faults)
        stop.set()
        for thread in threads:
            thread.join()
        assert faults == []
        assert min(user.rounds for user in users) > 3
        assert revokes >= LEAST_REVOKES
        users.clear()
        threads.clear()
        gc.collect()
        wait_until(
            lambda: pager.stats()["peer_bytes"] == pager.stats()["host_bytes"] == 0,
            what="all is released",
        )


def revoke_for(node: FakeNode, seconds: float, faults: Sequence[BaseException]) -> int:
    """Ask for one GPU after the other, wait until it is given back, lend it again."""
    end, revokes = time.monotonic() + seconds, 0
    while (time.monotonic() < end or revokes < LEAST_REVOKES) and not faults:
        gpu = GPUS[revokes % len(GPUS)]
        wait_acknowledged(node, node.revoke(gpu))
        node.gpu_bytes[gpu] = 32 * MIB
        revokes += 1
    return revokes


class User:
    """What one thread does. It notes what goes wrong, and stops there."""

    def __init__(
        self, pager: Pager, seed: int, stop: threading.Event, faults: list[BaseException]
    ) -> None:
        self.rounds = 0
        self._pager = pager
        self._chance = random.Random(seed)  # noqa: S311 - a story that repeats, no secret
        self._stop = stop
        self._faults = faults
        self._pool = BlockPool(pager, (BLOCK,), torch.uint8, SafetyClass.STORE)
        self._immutables = Immutables(pager)
        self._noise = random_bytes(3 * MIB, seed=seed)
        self._steps: Sequence[Callable[[], None]] = (
            self._one,
            self._cache,
            self._batch,
            self._blocks,
            self._same,
            self._aside,
            self._awaited,
            self._ring,
        )

    def run(self) -> None:
        try:
            while not (self._stop.is_set() or self._faults):
                self.step()
        except BaseException as fault:  # noqa: BLE001 - the test's thread looks at it
            self._faults.append(fault)

    def step(self) -> None:
        """Something, chosen by chance."""
        self._chance.choice(self._steps)()
        self.rounds += 1

    def drop_a_ring_of_everything(self) -> None:
        """One handle of each kind, which only the collector finds."""
        tensor = self._noise[:1000]
        ring: list[object] = [
            park(self._pager, tensor),
            self._immutables.offload(tensor, "store", overlap=False),
            self._pool.store(self._noise[: 2 * BLOCK].view(2, BLOCK), [1]),
            *offload_many(self._pager, [tensor, tensor], "cache"),
        ]
        ring.append(ring)

    def _one(self) -> None:
        tensor = self._tensor()
        handle = park(self._pager, tensor)
        for _ in range(self._chance.randrange(1, 4)):
            assert torch.equal(handle.fetch(), tensor)
        self._let_go(handle)

    def _cache(self) -> None:
        tensor = self._tensor()
        handle = park(self._pager, tensor, keep="cache")
        try:
            assert torch.equal(handle.fetch(), tensor)
        except LeaseLost:
            assert handle.tier == "lost"

    def _batch(self) -> None:
        tensors = [self._tensor() for _ in range(self._chance.randrange(5))]
        handles = offload_many(self._pager, tensors, "store")
        again = fetch_many(self._pager, handles)
        assert all(torch.equal(one, other) for one, other in zip(tensors, again, strict=True))

    def _blocks(self) -> None:
        cache = self._noise[: 1000 * BLOCK].view(1000, BLOCK)
        ids = self._chance.sample(range(1000), self._chance.randrange(300))
        slots = self._pool.store(cache, ids)
        again = torch.zeros(len(ids), BLOCK, dtype=torch.uint8)
        self._pool.load(slots, again, range(len(ids)))
        assert torch.equal(again, cache[ids])
        self._let_go(slots)

    def _same(self) -> None:
        tensor = self._tensor()
        handle = self._immutables.offload(tensor, "store", overlap=False)
        fetched = handle.fetch()
        assert torch.equal(fetched, tensor)
        assert self._immutables.offload(fetched, "store", overlap=False) is handle

    def _aside(self) -> None:
        tensor = self._tensor()
        handle = tensors.offload(self._pager, tensor, "store", overlap=True)
        handle.wait()
        out = torch.zeros_like(tensor)
        assert handle.fetch(out=out) is out
        assert torch.equal(out, tensor)
        self._let_go(handle)

    def _awaited(self) -> None:
        asyncio.run(self._await())

    async def _await(self) -> None:
        """Fetches at the same time, one of which may be cancelled."""
        tensor = self._tensor()
        handle = await awaiting.in_thread(
            lambda: park(self._pager, tensor), device=CPU, undo=lambda made: made.release()
        )
        fetches = [asyncio.create_task(handle.fetch_async()) for _ in range(3)]
        await asyncio.sleep(self._chance.choice((0.0, 0.001)))
        fetches[0].cancel()
        for one in await asyncio.gather(*fetches, return_exceptions=True):
            if not isinstance(one, asyncio.CancelledError):
                assert isinstance(one, torch.Tensor), one
                assert torch.equal(one, tensor)
        handle.release()

    def _ring(self) -> None:
        """Garbage that the collector finds, wherever it runs."""
        ring: list[object] = [park(self._pager, self._tensor())]
        ring.append(ring)

    def _let_go(self, parked: object) -> None:
        if self._chance.random() < 0.5:
            release = getattr(parked, "release")  # noqa: B009 - a handle's, or that of slots
            release()

    def _tensor(self) -> torch.Tensor:
        length = self._chance.choice((1, 1000, 64 * 1024, MIB, 3 * MIB))
        begin = self._chance.randrange(3 * MIB - length + 1)
        return self._noise[begin : begin + length]


def test_a_tensor_of_three_slabs_is_evacuated_while_it_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each slab waits for the fetch; the next fetch reads from where its pieces are then."""
    node = FakeNode(gpu_bytes=dict.fromkeys(GPUS[:3], 8 * MIB), largest_slab_bytes=4 * MIB)
    tensor = random_bytes(12 * MIB)
    read = copying.read
    asked: list[str] = []

    def revoke_meanwhile(
        spans: Sequence[Span], layout: Layout, target: torch.Tensor, *copier: Copier
    ) -> None:
        if not asked:
            for gpu in GPUS[:3]:
                asked.extend(node.revoke(gpu))
            wait_until(lambda: pager.stats()["evacuated_bytes"] == 12 * MIB, what="copied")
        read(spans, layout, target, *copier)
        assert node.acknowledged == []

    with paging(node) as pager:
        handle = park(pager, tensor)
        assert len(handle._stored.places) == 3
        monkeypatch.setattr(copying, "read", revoke_meanwhile)
        assert torch.equal(handle.fetch(), tensor)
        monkeypatch.undo()
        wait_acknowledged(node, tuple(asked))
        assert handle.tier == "host"
        assert torch.equal(handle.fetch(), tensor)


def test_a_lease_that_became_a_slab_since_it_was_asked_back_is_emptied_first() -> None:
    """The notice came while it was being mapped, the worker reads it when it is in use."""
    node = FakeNode(gpu_bytes={"SHM-1": 64 * MIB})
    tensor = random_bytes(MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        asked = node.ids_on("SHM-1")
        places = pager.pin(handle._stored)
        node.gpu_bytes["SHM-1"] = 0
        pager._arriving.disown(asked)
        assert node.acknowledged == []
        pager.unpin(places, is_read=True)
        wait_acknowledged(node, asked)
        assert handle.tier == "host"
        assert torch.equal(handle.fetch(), tensor)
