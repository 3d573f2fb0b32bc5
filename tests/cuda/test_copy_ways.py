"""Ways of copying many blocks on a made-up driver: each gives the same bytes, and is measured first."""

from __future__ import annotations

import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

import aqua_client
from aqua_client import calibrating, copy_engine, cuda_streams
from aqua_client.copy_engine import Upload
from aqua_client.crossover import Crossover, Measured, Way
from aqua_client.cuda_errors import CudaError
from aqua_client.settings import ClientSettings
from aqua_client.streams import Pieces
from tests.contract.tensors import noise
from tests.cuda.engines import Engine, await_idle, running_engine
from tests.fakes.fake_cuda import process
from tests.fakes.fake_cuda.results import CUresult
from tests.fakes.torch_streams import DEVICE
from tests.gpu.benches import blocks, paging, timing, together
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import QUICK, Plan
from tests.nodes import MIB, wait_until

BLOCKS, BLOCK_BYTES = 40, 24 * 1024 + 16
CPU = torch.device("cpu")
CALLS = {Way.EACH: "cuMemcpyAsync", Way.BATCH: "cuMemcpyBatchAsync", Way.KERNEL: "cuLaunchKernel"}

pytestmark = pytest.mark.limit(120)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine(stream_delay_seconds=0.002) as made:
        yield made


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Crossover:
    """Nothing measured, and nobody who begins to."""
    made = Crossover()
    monkeypatch.setitem(cuda_streams._crossovers, DEVICE, made)
    monkeypatch.setattr(calibrating, "_begun", {CPU})
    return made


def only(way: Way) -> tuple[Measured, ...]:
    return (Measured(block_bytes=BLOCK_BYTES, count=BLOCKS, seconds={way: 1e-6}),)


@pytest.mark.parametrize("is_default", [True, False], ids=["default stream", "own stream"])
@pytest.mark.parametrize("way", Way)
def test_blocks_come_back_by_each_way(
    engine: Engine,
    table: Crossover,
    caplog: pytest.LogCaptureFixture,
    way: Way,
    *,
    is_default: bool,
) -> None:
    """Out of one order and into another, after what the stream had to do; by the call that is meant."""
    table.measured = only(way)
    cache = noise(BLOCKS * 2 * BLOCK_BYTES, seed=1, device="cpu").view(-1, BLOCK_BYTES)
    expected, target = cache.clone(), torch.zeros_like(cache)
    out, back = torch.randperm(2 * BLOCKS)[:BLOCKS], torch.randperm(2 * BLOCKS)[:BLOCKS]
    before = process.calls[CALLS.get(way, "")]
    pool = engine.client.pool((BLOCK_BYTES,), torch.uint8)
    stream = 0 if is_default else engine.torch.new_stream()
    with engine.torch.using(DEVICE, stream):
        slots = pool.store(cache, out)
        assert slots.tier == "peer"
        pool.load(slots, target, back)
    await_idle(engine)
    assert torch.equal(target[back], expected[out])
    assert int(target.any(1).sum()) == BLOCKS
    if way is not Way.TORCH:
        calls = process.calls[CALLS[way]] - before
        assert calls == (2 * BLOCKS if way is Way.EACH else 2)
    assert "left to torch" not in caplog.text


def test_blocks_that_lie_across_slabs_come_back_too(engine: Engine, table: Crossover) -> None:
    """A row may end in one slab and go on in the next."""
    table.measured = only(Way.KERNEL)
    size, count = 20 * MIB + 48, 13  # more than the largest slab has
    cache = noise(count * size, seed=2, device="cpu").view(-1, size)
    target = torch.zeros_like(cache)
    pool = engine.client.pool((size,), torch.uint8)
    slots = pool.store(cache, range(count))
    assert (slots.tier, len(slots._stored.places) > 1) == ("peer", True)
    pool.load(slots, target, range(count))
    await_idle(engine)
    assert torch.equal(target, cache)


def test_many_tensors_go_by_one_call(engine: Engine, table: Crossover) -> None:
    """Out and in, where a batch was measured to be the quickest; else by a call each."""
    table.measured = only(Way.BATCH)
    tensors = [noise(4096 + seed, seed=seed, device="cpu") for seed in range(20)]
    outs = [torch.zeros_like(tensor) for tensor in tensors]
    before = dict(process.calls)
    handles = engine.client.offload_many(tensors)
    engine.client.fetch_many(handles, outs)
    await_idle(engine)
    assert all(torch.equal(*pair) for pair in zip(outs, tensors, strict=True))
    calls = {name: process.calls[name] - before.get(name, 0) for name in CALLS.values()}
    assert (calls["cuMemcpyBatchAsync"], calls["cuMemcpyAsync"]) == (2, 0)
    engine.machine.fail("cuMemcpyBatchAsync", int(CUresult.CUDA_ERROR_NOT_SUPPORTED))
    again = engine.client.offload_many(tensors)
    engine.machine.fail("cuMemcpyBatchAsync", None)
    engine.client.fetch_many(again, outs)
    await_idle(engine)
    assert all(torch.equal(*pair) for pair in zip(outs, tensors, strict=True))


@pytest.mark.parametrize("is_large_first", [True, False])
def test_tensors_of_different_sizes_go_as_the_mean_of_them(
    engine: Engine, table: Crossover, *, is_large_first: bool
) -> None:
    """Not as those that happen to come first: as many bytes in as many pieces were measured."""
    table.measured = tuple(
        Measured(block_bytes=nbytes, count=BLOCKS, seconds={way: 1e-6})
        for nbytes, way in ((4096, Way.BATCH), (MIB, Way.EACH))
    )
    sizes = [MIB, MIB, *[4096] * (BLOCKS - 2)]  # 56 KiB each: nearer to the small ones
    tensors = [noise(size, seed=at, device="cpu") for at, size in enumerate(sizes)]
    tensors = tensors if is_large_first else tensors[::-1]
    before = process.calls["cuMemcpyBatchAsync"]
    handles = engine.client.offload_many(tensors)
    assert process.calls["cuMemcpyBatchAsync"] - before == 1
    table.measured = table.measured[1:]
    outs = engine.client.fetch_many(handles)
    await_idle(engine)
    assert process.calls["cuMemcpyBatchAsync"] - before == 1
    assert all(torch.equal(*pair) for pair in zip(outs, tensors, strict=True))


def test_a_way_that_fails_is_done_by_torch(engine: Engine, table: Crossover) -> None:
    """The bytes are right anyway."""
    table.measured = only(Way.KERNEL)
    cache = noise(BLOCKS * BLOCK_BYTES, seed=3, device="cpu").view(-1, BLOCK_BYTES)
    pool, target = engine.client.pool((BLOCK_BYTES,), torch.uint8), torch.zeros_like(cache)
    engine.machine.fail("cuLaunchKernel", int(CUresult.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES))
    slots = pool.store(cache, range(BLOCKS))
    engine.machine.fail("cuLaunchKernel", None)
    pool.load(slots, target, range(BLOCKS))
    await_idle(engine)
    assert torch.equal(target, cache)


@pytest.mark.parametrize("call", ["cuStreamWaitEvent", "cuStreamSynchronize"])
def test_what_a_failed_batch_has_begun_is_waited_for(
    engine: Engine, table: Crossover, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It goes beside the default stream: its copies must not be later than those that stand in."""
    table.measured = only(Way.BATCH)
    enqueue = copy_engine.enqueue
    calls: Counter[str] = Counter()

    def half(
        way: Way,
        pieces: Pieces,
        *,
        ordinal: int,
        stream: int,
        upload: Upload,
        begin: object,  # noqa: ARG001 - what is offloaded is not timed
    ) -> None:
        enqueue(way, pieces[: BLOCKS // 2], ordinal=ordinal, stream=stream, upload=upload)
        calls.update(process.calls)
        if call == "cuStreamSynchronize":  # as nothing else can be had
            engine.machine.fail("cuStreamWaitEvent", int(CUresult.CUDA_ERROR_OUT_OF_MEMORY))
        raise CudaError("CUDA_ERROR_UNKNOWN", "in the middle")

    cache = noise(BLOCKS * BLOCK_BYTES, seed=5, device="cpu").view(-1, BLOCK_BYTES)
    pool, target = engine.client.pool((BLOCK_BYTES,), torch.uint8), torch.zeros_like(cache)
    with monkeypatch.context() as patch:
        patch.setattr(copy_engine, "enqueue", half)
        slots = pool.store(cache, range(BLOCKS))
    assert process.calls[call] - calls[call] == 1
    engine.machine.fail("cuStreamWaitEvent", None)
    pool.load(slots, target, range(BLOCKS))
    await_idle(engine)
    assert torch.equal(target, cache)


def measure(engine: Engine, monkeypatch: pytest.MonkeyPatch, table: Crossover) -> None:
    """Have it measured as a pool's first store does."""
    monkeypatch.setattr(calibrating, "_begun", set())
    monkeypatch.setattr(calibrating, "POINTS", ((4096, 8), (65536, 16)))
    monkeypatch.setattr(calibrating, "ROUNDS", 2)
    cache = noise(BLOCKS * BLOCK_BYTES, seed=4, device="cpu").view(-1, BLOCK_BYTES)
    for _ in range(3):
        engine.client.pool((BLOCK_BYTES,), torch.uint8).store(cache, range(BLOCKS))
    wait_until(lambda: len(table.measured) == 2, seconds=30, what="it is measured")
    await_idle(engine)


def test_a_first_store_has_the_ways_measured(
    engine: Engine, table: Crossover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, in the background, with every way that there is; `stats` tells it."""
    used = engine.client.stats()["peer_bytes"]
    measure(engine, monkeypatch, table)
    assert [(one.block_bytes, one.count) for one in table.measured] == [(4096, 8), (65536, 16)]
    assert all(one.seconds.keys() == set(Way) for one in table.measured)
    assert all(seconds > 0 for one in table.measured for seconds in one.seconds.values())
    wait_until(lambda: engine.client.stats()["peer_bytes"] == used, what="its place is free")
    assert engine.client.stats()["copy_ways"] == {"cuda:0": table.told()}


def test_a_way_that_is_refused_or_wrong_is_in_no_table(
    engine: Engine, table: Crossover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver without batches; a kernel that does nothing."""
    engine.machine.fail("cuMemcpyBatchAsync", int(CUresult.CUDA_ERROR_NOT_SUPPORTED))
    from cuda.bindings import driver

    monkeypatch.setattr(driver, "cuLaunchKernel", lambda *_: (CUresult.CUDA_SUCCESS,))
    measure(engine, monkeypatch, table)
    engine.machine.fail("cuMemcpyBatchAsync", None)
    assert all(one.seconds.keys() == {Way.EACH, Way.TORCH} for one in table.measured)


def test_a_client_that_closes_waits_for_no_measurement(
    engine: Engine, table: Crossover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slab goes back, half a table is none, and the next client's store measures again."""
    monkeypatch.setattr(calibrating, "_begun", set())
    monkeypatch.setattr(calibrating, "POINTS", ((4096, 16),))
    monkeypatch.setattr(calibrating, "ROUNDS", 200)  # of 16 late copies: more than 10 s
    settings = ClientSettings(
        socket_path=engine.node.socket, home_gpu=engine.machine.uuids[DEVICE], close_seconds=5.0
    )
    cache = noise(BLOCKS * BLOCK_BYTES, seed=6, device="cpu").view(-1, BLOCK_BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        client = aqua_client.Client(settings)
        pool = client.pool((BLOCK_BYTES,), torch.uint8)
        wait_until(lambda: pool.store(cache, range(BLOCKS)).tier == "peer", what="it has a slab")
    copied = process.calls["cuMemcpyAsync"]
    wait_until(lambda: process.calls["cuMemcpyAsync"] - copied > 100, what="it is being measured")
    client.close()
    assert not client._pager._tiers.slabs
    wait_until(lambda: not calibrating._begun, what="it may be measured anew")
    assert table.measured == ()


def test_the_benchmark_of_blocks_has_every_way(
    engine: Engine, table: Crossover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rehearsal: store and load by each of them, and by what the library chooses."""
    table.measured = only(Way.KERNEL)
    monkeypatch.setattr(timing, "synchronize", lambda: await_idle(engine))
    out = io.StringIO()
    plan = replace(QUICK, kv_block_sizes=(4096,), blocks=8, repeats=1)
    blocks.measure(engine.client, "cpu", plan, Findings(out))
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    told = next(one["row"]["answer"] for one in found if "row" in one)
    assert all(f"{name} by {way} " in told for name in ("store", "load") for way in Way)
    assert table.measured == only(Way.KERNEL)


@pytest.mark.parametrize(
    ("measure", "rows"),
    [(paging.measure, 6), (together.both, 2), (together.beside_a_product, 4)],
    ids=["paging", "both", "product"],
)
def test_the_benchmarks_of_copies_run_over_streams(
    engine: Engine,
    table: Crossover,
    monkeypatch: pytest.MonkeyPatch,
    measure: Callable[[aqua_client.Client, str, Plan, Findings], None],
    rows: int,
) -> None:
    """A rehearsal: what is enqueued is waited for where it is looked at, and each has its figure."""
    assert not table.measured
    for module in (timing, together):
        monkeypatch.setattr(module, "synchronize", lambda: await_idle(engine))
    out = io.StringIO()
    findings = Findings(out)
    with engine.stream():
        measure(engine.client, "cpu", replace(QUICK, repeats=1), findings)
        await_idle(engine)
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert findings.failed == 0
    assert sum("row" in one for one in found) == rows
