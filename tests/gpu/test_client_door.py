"""CUDA tensors and CUDA slabs in one server's process: what the stream rules promise, on a device.

The GPU lends to itself. Covers single rules, one by one; all of them at random, with poisoned
memory and processes that are killed, are tests/contract's.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch

import aqua_client
from aqua_client import calibrating, cuda_streams, own_device
from aqua_client.crossover import Crossover, Measured, Way
from aqua_client.cuda_driver import ordinal_of, uuid_of
from aqua_client.slabs import Place
from tests.contract.places import cuda_place
from tests.contract.tensors import every_tensor, noise, same_bits
from tests.nodes import MIB, wait_until

LONG_CYCLES = 1_000_000_000  # of `torch.cuda._sleep`: half a second or more
GIB = 2**30

pytestmark = pytest.mark.limit(180)


@pytest.fixture(params=["legacy", "vmm"])
def client(request: pytest.FixtureRequest, cuda_device: int) -> Iterator[aqua_client.Client]:
    """Connected to a node with a keeper on this GPU, with a slab at hand."""
    with (
        cuda_place(request.param, cuda_device) as place,
        aqua_client.connect(socket=place.node.socket) as made,
    ):
        wait_until(lambda: made.stats()["attached"], seconds=20, what="attached")
        held = made.offload(noise(MIB, seed=0, device="cuda"))
        assert held.tier == "peer", held.reason
        yield made
        torch.cuda.synchronize()


@pytest.fixture
def busy() -> Iterator[torch.cuda.Stream]:
    """A stream of its own, current during the test."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        yield stream
    stream.synchronize()


def places_of(handle: aqua_client.OffloadedTensor) -> list[Place]:
    return list(handle._stored.places)


def used_bytes(client: aqua_client.Client) -> int:
    found = client.stats()["peer_bytes"]
    assert isinstance(found, int)
    return found


def test_the_home_gpu_is_the_one_that_torch_uses(
    client: aqua_client.Client, cuda_device: int
) -> None:
    """Nobody had to name it; slabs are open on it, as tensors of that device."""
    assert own_device.torch_gpu() == uuid_of(cuda_device)
    assert ordinal_of(uuid_of(cuda_device)) == cuda_device
    assert client._pager._settings.home_gpu == uuid_of(cuda_device)
    handle = client.offload(noise(MIB, seed=1, device="cuda"))
    (place,) = places_of(handle)
    assert (place.memory.ordinal, place.memory.opened_on) == (cuda_device, cuda_device)
    assert place.memory.view(torch.uint8).device == torch.device("cuda", cuda_device)


def test_every_dtype_and_layout_comes_back(client: aqua_client.Client) -> None:
    """Bit by bit, on the device that it came from, and none of it by way of the host."""
    before = client.stats()["host_out_bytes"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ComplexHalf, which is experimental
        parked = [(name, one, client.offload(one)) for name, one in every_tensor("cuda")]
        wrong = [name for name, one, handle in parked if not same_bits(handle.fetch(), one)]
    assert wrong == []
    assert {handle.tier for _, one, handle in parked if one.numel()} == {"peer"}
    assert client.stats()["host_out_bytes"] == before


def test_a_tensor_comes_back_on_another_device_too(client: aqua_client.Client) -> None:
    """From the GPU to the CPU and the other way round, although the writing is not over yet."""
    tensor = noise(3 * MIB, seed=2, device="cuda")
    torch.cuda._sleep(LONG_CYCLES)
    out = torch.zeros(3 * MIB, dtype=torch.uint8)
    assert torch.equal(client.offload(tensor).fetch(out=out), tensor.cpu())
    on_gpu = torch.zeros_like(tensor)
    assert torch.equal(client.offload(out).fetch(out=on_gpu), tensor)


def test_offload_and_fetch_do_not_wait_for_the_stream(
    client: aqua_client.Client, busy: torch.cuda.Stream
) -> None:
    """They come after what it has to do, and return before that is done."""
    tensor = torch.zeros(8 * MIB, dtype=torch.uint8, device="cuda")
    out = torch.zeros_like(tensor)
    busy.synchronize()
    torch.cuda._sleep(LONG_CYCLES)
    tensor.fill_(7)
    handle = client.offload(tensor)
    tensor.fill_(9)
    handle.fetch(out=out)
    assert not busy.query(), "the calls have waited"
    busy.synchronize()
    assert bool((out == 7).all())
    assert bool((tensor == 9).all())


def test_a_fetch_on_another_stream_comes_after_the_writing(
    client: aqua_client.Client, busy: torch.cuda.Stream
) -> None:
    """Without a word of the caller's."""
    tensor = noise(8 * MIB, seed=3, device="cuda")
    out = torch.zeros_like(tensor)
    other = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG_CYCLES)
    handle = client.offload(tensor)
    with torch.cuda.stream(other):
        handle.fetch(out=out)
    assert not busy.query()
    other.synchronize()
    assert torch.equal(out, tensor)


def test_a_release_frees_nothing_before_the_copy_is_over(
    client: aqua_client.Client, busy: torch.cuda.Stream
) -> None:
    """Then it does, with nobody asking."""
    before = used_bytes(client)
    tensor = noise(2 * MIB, seed=4, device="cuda")
    busy.synchronize()
    torch.cuda._sleep(LONG_CYCLES)
    first = client.offload(tensor)
    (place,) = places_of(first)
    first.release()
    second = client.offload(tensor)
    assert places_of(second)[0].offset != place.offset
    assert used_bytes(client) == before + 4 * MIB
    assert not busy.query()
    busy.synchronize()
    wait_until(lambda: used_bytes(client) == before + 2 * MIB, what="the first is free")
    assert torch.equal(second.fetch(), tensor)


def test_an_overlapping_offload_leaves_the_stream_free(
    client: aqua_client.Client, busy: torch.cuda.Stream
) -> None:
    """What is enqueued meanwhile runs; after `wait` the tensor may be written."""
    tensor = torch.full((256 * MIB,), 5, dtype=torch.uint8, device="cuda")
    busy.synchronize()
    handle = client.offload(tensor, overlap=True)
    other_work = torch.ones(1024, device="cuda").sum()
    handle.wait()
    tensor.fill_(6)
    assert float(other_work) == 1024.0
    assert bool((handle.fetch() == 5).all())
    assert bool((tensor == 6).all())


def test_the_source_of_an_overlapping_offload_may_be_dropped(
    client: aqua_client.Client, busy: torch.cuda.Stream
) -> None:
    """Its memory is not handed out again before the copy has read it."""
    busy.synchronize()
    handles = []
    for value in range(30):
        tensor = torch.full((32 * MIB,), value, dtype=torch.uint8, device="cuda")
        handles.append(client.offload(tensor, overlap=True))
        del tensor
        torch.full((32 * MIB,), 255, dtype=torch.uint8, device="cuda")
    assert all(bool((one.fetch() == value).all()) for value, one in enumerate(handles))


@pytest.mark.parametrize("way", Way)
def test_scattered_blocks_come_back_by_each_way(
    client: aqua_client.Client,
    cuda_device: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    way: Way,
) -> None:
    """On the default stream and on another, at aligned addresses and others; none is left to torch."""
    monkeypatch.setattr(calibrating, "_begun", {torch.device("cuda", cuda_device)})
    streams = (None, torch.cuda.Stream())
    for stream, nbytes in itertools.product(streams, (64 * 1024, 3 * 1024 + 16, 999)):
        table = Crossover()
        table.measured = (Measured(block_bytes=nbytes, count=100, seconds={way: 1e-6}),)
        monkeypatch.setitem(cuda_streams._crossovers, cuda_device, table)
        cache = noise(200 * nbytes, seed=nbytes, device="cuda").view(200, nbytes)
        target, before = torch.zeros_like(cache), cache.clone()
        out, back = torch.randperm(200)[:100], torch.randperm(200)[:100]
        torch.cuda.synchronize()
        pool = client.pool((nbytes,), torch.uint8)
        with torch.cuda.stream(stream):
            slots = pool.store(cache, out)
            cache.zero_()
            pool.load(slots, target, back)
        torch.cuda.synchronize()
        assert slots.tier == "peer"
        assert torch.equal(target[back.cuda()], before[out.cuda()])
        assert int(target.any(1).sum()) == 100
    assert "left to torch" not in caplog.text


def test_nothing_is_enqueued_into_a_graph(client: aqua_client.Client) -> None:
    """The error says what to do, and the capture goes on."""
    tensor = noise(MIB, seed=5, device="cuda")
    handle = client.offload(tensor)
    numbers = torch.zeros(16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        numbers += 1
        for act in (
            lambda: client.offload(tensor),
            handle.fetch,
            lambda: client.offload(tensor, overlap=True),
        ):
            with pytest.raises(aqua_client.InvalidRequest, match="captured"):
                act()
        numbers += 1
    graph.replay()
    assert float(numbers[0]) == 2.0
    assert torch.equal(handle.fetch(), tensor)


def test_a_capture_survives_copies_that_end_meanwhile(
    client: aqua_client.Client, busy: torch.cuda.Stream
) -> None:
    """The library's thread asks for their events all the time."""
    tensor = noise(4 * MIB, seed=6, device="cuda")
    numbers = torch.zeros(16, device="cuda")
    capturing = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(10):
        torch.cuda._sleep(LONG_CYCLES // 10)
        client.offload(tensor).release()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(capturing):  # `torch.cuda.graph` would wait for the copies first
            graph.capture_begin()
            numbers += 1
            threading.Event().wait(0.1)
            graph.capture_end()
        graph.replay()
    busy.synchronize()
    torch.cuda.synchronize()
    assert float(numbers[0]) == 10.0


def test_a_slab_is_opened_by_another_thread_during_a_capture(client: aqua_client.Client) -> None:
    """Opening is what a driver does not let happen during a capture, unless it is relaxed."""
    large = noise(200 * MIB, seed=7, device="cuda")
    found: list[aqua_client.OffloadedTensor] = []
    numbers = torch.zeros(16, device="cuda")
    capturing, others = torch.cuda.Stream(), torch.cuda.Stream()

    def offload() -> None:
        with torch.cuda.stream(others):
            found.append(client.offload(large))

    thread = threading.Thread(target=offload)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(capturing):
        graph.capture_begin()
        numbers += 1
        thread.start()
        thread.join(20)
        numbers += 1
        graph.capture_end()
    graph.replay()
    assert float(numbers[0]) == 2.0
    assert found[0].tier == "peer"
    assert torch.equal(found[0].fetch(), large)


def test_an_owner_that_grows_gets_its_memory_while_copies_are_under_way(
    client: aqua_client.Client, busy: torch.cuda.Stream
) -> None:
    """What was lent moves to the host, exact, and no sooner than the copies into it are over."""
    tensors = [noise(8 * MIB, seed=seed, device="cuda") for seed in range(6)]
    busy.synchronize()
    torch.cuda._sleep(LONG_CYCLES)
    handles = [client.offload(tensor) for tensor in tensors]
    free, _total = torch.cuda.mem_get_info()
    grown = torch.empty(free - 3 * GIB, dtype=torch.uint8, device="cuda")
    wait_until(
        lambda: {handle.tier for handle in handles} == {"host"}, seconds=60, what="all has moved"
    )
    assert all(torch.equal(h.fetch(), t) for h, t in zip(handles, tensors, strict=True))
    wait_until(lambda: client.stats()["leases"] == {}, seconds=20, what="given back")
    del grown
    torch.cuda.empty_cache()


def test_every_way_of_copying_blocks_gives_the_right_bytes(
    client: aqua_client.Client, busy: torch.cuda.Stream
) -> None:
    """And is measured, in the background of a pool's first store; then the quickest is used."""
    cache = noise(64 * MIB, seed=9, device="cuda").view(-1, 32 * 1024)
    pool = client.pool((32 * 1024,), torch.uint8)
    ids = list(range(0, len(cache), 2))
    for _ in range(2):  # before it is measured, and after
        slots = pool.store(cache, ids)
        target = torch.zeros_like(cache)
        pool.load(slots, target, ids)
        busy.synchronize()
        assert torch.equal(target[ids], cache[ids])
        assert not bool(target[1::2].any())
        wait_until(lambda: client.stats()["copy_ways"] != {}, seconds=60, what="it is measured")
    tables = client.stats()["copy_ways"]
    assert isinstance(tables, dict)
    ways = [sorted(point) for table in tables.values() for point in table.values()]
    assert ways
    assert all(one == ["batch", "each", "kernel", "torch"] for one in ways)
