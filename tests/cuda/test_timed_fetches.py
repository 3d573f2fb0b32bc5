"""Fetches that are only enqueued are timed by events, and the daemon's order of lenders follows them.

On a made-up driver whose every copy is late by the same, so that what a fetch carries a second is
what it carries; the daemon and its keepers are real processes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import aqua_client
from aqua_client import calibrating, cuda_streams, timing
from aqua_client.counters import LinkUse
from aqua_client.crossover import Crossover, Measured, Way
from aqua_client.cuda_streams import CudaStreams
from aqua_client.records import SafetyClass
from tests.contract.tensors import noise
from tests.cuda.engines import Engine, await_idle, running_engine
from tests.cuda.test_copy_engine import SYNCHRONISING, counted
from tests.end_to_end.borrower import CALL_SECONDS, borrowing
from tests.fakes.fake_cuda.results import CUresult
from tests.fakes.torch_streams import DEVICE
from tests.nodes import MIB, wait_until

DELAY_SECONDS = 0.02
TERM_SECONDS = 2.0  # each third of it the daemon hears what was fetched
FASTER, SLOWER = 1, 2  # lenders, as they were measured

pytestmark = pytest.mark.limit(120)


@pytest.fixture(scope="module")
def node() -> Iterator[Engine]:
    """Two lenders of which one was measured to be faster."""
    with running_engine(
        stream_delay_seconds=DELAY_SECONDS,
        gpus=3,
        gigabytes_per_second=(100.0, 85.0),
        term_seconds=TERM_SECONDS,
    ) as made:
        yield made


@pytest.fixture
def engine(node: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Every fetch that may be timed is, and none was yet."""
    streams = node.client._pager.streams
    assert isinstance(streams, CudaStreams)
    monkeypatch.setattr(cuda_streams, "UNTIMED_SECONDS", 0.0)
    monkeypatch.setattr(streams, "_timed_again_at", {})
    await_idle(node)
    node.client._pager._counters.fetched_from.clear()
    return node


def uses(engine: Engine) -> dict[str, LinkUse]:
    return dict(engine.client._pager._counters.figures().fetched_from)


def fetch(engine: Engine, handle: aqua_client.OffloadedTensor) -> torch.Tensor:
    """On a stream of the server's, and over when this returns."""
    with engine.stream():
        out = handle.fetch()
    await_idle(engine)
    return out


def parked(engine: Engine, nbytes: int) -> aqua_client.OffloadedTensor:
    handle = engine.client.offload(noise(nbytes, seed=nbytes, device="cpu"))
    assert handle.tier == "peer"
    await_idle(engine)
    return handle


def lender_of(handle: aqua_client.OffloadedTensor) -> str:
    [place] = handle._stored.places
    assert place.slab is not None
    return place.slab.lender_gpu


def next_lender(engine: Engine) -> str:
    """Of a slab that is asked for now, by another process on the same GPU."""
    with borrowing(engine.node, home_gpu=engine.machine.uuids[0]) as borrower:
        grant = borrower.session.acquire(32 * MIB, SafetyClass.CACHE, seconds=CALL_SECONDS)
        borrower.session.release([grant.lease_id], borrower.host_room())
    return grant.lender_gpu


def test_slow_fetches_move_a_lender_back(engine: Engine) -> None:
    """The one measured to be faster lends first, until a client's fetches from it say otherwise."""
    gpus, machine = engine.machine.uuids, engine.machine
    small = parked(engine, 8 * MIB)
    assert lender_of(small) == gpus[FASTER]
    room = 80 * 2**30 - machine.used_bytes(gpus[FASTER])
    machine.set_process(gpus[FASTER], 4242, room - 9 * 2**30)  # no grants, and no revokes
    wait_until(lambda: next_lender(engine) == gpus[SLOWER], what="no room on the faster one")
    large = parked(engine, 30 * MIB)
    assert lender_of(large) == gpus[SLOWER]
    machine.set_process(gpus[FASTER], 4242, 0)
    wait_until(lambda: next_lender(engine) == gpus[FASTER], what="it lends again")

    def has_moved() -> bool:
        for _ in range(5):
            fetch(engine, small)
            fetch(engine, large)
        return next_lender(engine) == gpus[SLOWER]

    wait_until(has_moved, seconds=40.0, what="the order of lenders")


def test_what_a_fetch_took_is_what_its_device_says(engine: Engine) -> None:
    """Of a fetch by itself and of one ahead; of nothing small, nor of what is offloaded."""
    handle, little = parked(engine, 8 * MIB), parked(engine, timing.LEAST_BYTES - 1)
    lender = lender_of(handle)
    fetch(engine, little)
    assert uses(engine) == {}
    fetch(engine, handle)
    use = uses(engine)[lender]
    assert (use.fetches, use.nbytes) == (1, 8 * MIB)
    assert use.nanoseconds >= DELAY_SECONDS * 1e9
    with engine.stream():
        handle.prefetch()
        handle.fetch()
    await_idle(engine)
    assert uses(engine)[lender].fetches == 2


def test_nobody_waits_for_a_time(engine: Engine) -> None:
    """A timed fetch returns before its copy is over, and no call of it waits for the device."""
    handle, out = parked(engine, 8 * MIB), torch.zeros(8 * MIB, dtype=torch.uint8)
    with counted() as calls:
        handle.fetch(out=out)
        assert not bool(out.any()), "the fetch has waited"
        await_idle(engine)
    assert uses(engine)[lender_of(handle)].fetches == 1
    assert calls["cuEventElapsedTime"] == 1
    assert not (SYNCHRONISING | {"cuEventSynchronize", "cuStreamSynchronize"}) & calls.keys()
    assert torch.equal(out, noise(8 * MIB, seed=8 * MIB, device="cpu"))


def test_some_fetches_are_timed_and_the_others_cost_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, and then none of that lender for a while: no event more than without."""
    monkeypatch.setattr(cuda_streams, "UNTIMED_SECONDS", 1e6)
    handle = parked(engine, 8 * MIB)
    recorded: list[int] = []
    for _ in range(3):
        with counted() as calls:
            fetch(engine, handle)
        recorded.append(calls["cuEventRecord"])
    assert recorded == [2, 1, 1]
    assert uses(engine)[lender_of(handle)].fetches == 1


@pytest.mark.parametrize("call", ["cuEventElapsedTime", "cuEventCreate"])
def test_a_time_that_cant_be_had_is_none(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The bytes are there, and what was held is let go."""
    handle, streams = parked(engine, 8 * MIB), engine.client._pager.streams
    assert isinstance(streams, CudaStreams)
    kept = {key: events for key, events in streams._events.items() if key == (DEVICE, False)}
    monkeypatch.setattr(streams, "_events", kept)
    engine.machine.fail(call, int(CUresult.CUDA_ERROR_OUT_OF_MEMORY))
    try:
        out = fetch(engine, handle)
    finally:
        engine.machine.fail(call, None)
    assert torch.equal(out, noise(8 * MIB, seed=8 * MIB, device="cpu"))
    assert uses(engine) == {}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Crossover:
    """Nothing measured, and nobody who begins to."""
    made = Crossover()
    monkeypatch.setitem(cuda_streams._crossovers, DEVICE, made)
    monkeypatch.setattr(calibrating, "_begun", {torch.device("cpu")})
    return made


def only(way: Way) -> tuple[Measured, ...]:
    return (Measured(block_bytes=MIB, count=8, seconds={way: 1e-6}),)


@pytest.mark.parametrize("way", [Way.EACH, Way.BATCH, Way.KERNEL])
def test_what_is_fetched_together_is_timed_as_one(
    engine: Engine, table: Crossover, way: Way
) -> None:
    """By whatever way, and with the bytes of all; nobody waits for it."""
    table.measured = only(way)
    parked = [noise(2 * MIB, seed=seed, device="cpu") for seed in range(4)]
    handles = engine.client.offload_many(parked)
    await_idle(engine)
    lenders = {lender_of(handle) for handle in handles}
    outs = [torch.zeros_like(one) for one in parked]
    with counted() as calls:
        engine.client.fetch_many(handles, outs)
        assert not bool(outs[0].any()), "the fetch has waited"
        await_idle(engine)
    assert all(torch.equal(*pair) for pair in zip(outs, parked, strict=True))
    assert not (SYNCHRONISING | {"cuEventSynchronize", "cuStreamSynchronize"}) & calls.keys()
    [lender] = lenders
    use = uses(engine)[lender]
    assert (use.fetches, use.nbytes, calls["cuEventElapsedTime"]) == (1, 8 * MIB, 1)
    assert use.nanoseconds >= DELAY_SECONDS * 1e9


def test_what_comes_from_several_lenders_is_not_timed(engine: Engine, table: Crossover) -> None:
    """It says nothing of one link."""
    table.measured = only(Way.EACH)
    gpus, machine = engine.machine.uuids, engine.machine
    handles = [parked(engine, 8 * MIB)]
    full = lender_of(handles[0])
    room = 80 * 2**30 - machine.used_bytes(full)
    machine.set_process(full, 4242, room - 9 * 2**30)  # no grants, and no revokes
    wait_until(lambda: next_lender(engine) != full, what="no room there")
    while lender_of(handles[-1]) == full and len(handles) < 10:  # slabs of before have room
        handles.append(parked(engine, 30 * MIB))
    machine.set_process(full, 4242, 0)
    assert {lender_of(one) for one in handles} == {gpus[FASTER], gpus[SLOWER]}
    outs = engine.client.fetch_many(handles)  # kept until they are written
    await_idle(engine)
    assert uses(engine) == {}
    assert [len(one) for one in outs] == [handle.nbytes for handle in handles]


@pytest.mark.parametrize(
    ("way", "block_bytes", "is_timed"),
    [
        (Way.KERNEL, 32 * 1024, True),
        (Way.BATCH, 2 * MIB, True),
        (Way.BATCH, 32 * 1024, False),  # most of it is handing them over
        (Way.TORCH, 2 * MIB, False),
    ],
)
def test_blocks_of_a_pool_are_timed(
    engine: Engine, table: Crossover, way: Way, block_bytes: int, *, is_timed: bool
) -> None:
    """Where what they take is their bytes' time on the link."""
    table.measured = only(way)
    cache = noise(8 * MIB, seed=5, device="cpu").view(-1, block_bytes)
    target, ids = torch.zeros_like(cache), range(len(cache))
    slots = engine.client.pool((block_bytes,), torch.uint8).store(cache, ids)
    assert slots.tier == "peer"
    await_idle(engine)
    slots.pool.load(slots, target, ids)
    assert way is Way.TORCH or not bool(target.any()), "the load has waited"
    await_idle(engine)
    assert torch.equal(target, cache)
    found = [(use.fetches, use.nbytes) for use in uses(engine).values()]
    assert found == ([(1, 8 * MIB)] if is_timed else [])


def test_what_torch_copies_is_not_timed(engine: Engine) -> None:
    """It does so where the driver refuses, and takes longer than the link."""
    handle = parked(engine, 8 * MIB)
    engine.machine.fail("cuMemcpyAsync", 801)
    try:
        fetch(engine, handle)
    finally:
        engine.machine.fail("cuMemcpyAsync", None)
    assert uses(engine) == {}
