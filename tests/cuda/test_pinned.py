"""Host memory that is pinned ahead: made by the worker, used by the copies of a GPU, and used again.

On the made-up driver, over real processes; copies are late there, as those of pinned memory are.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import aqua_client
from aqua_client import enqueuing, libc, pinned
from aqua_client.copying import Memory
from aqua_client.counters import Counters
from aqua_client.evacuation_buffer import EvacuationBuffer
from aqua_client.pinned import PIECE_BYTES, Piece, PinnedPages
from aqua_client.records import Grant, SafetyClass
from aqua_client.slabs import Place, Slab, Stored
from aqua_client.tiers import Tiers
from tests.contract.tensors import noise
from tests.cuda.engines import Engine, await_idle, running_engine
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda import copies, process
from tests.fakes.fake_cuda.description import GIB
from tests.fakes.fake_cuda.results import CUresult
from tests.fakes.streams import FakeEvent, FakeStreams
from tests.fakes.topologies import hgx_h100
from tests.fakes.torch_streams import DEVICE
from tests.nodes import MIB, wait_until

pytestmark = [
    pytest.mark.limit(120),
    pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning"),
]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeCudaNode]:
    made = fake_cuda_node(tmp_path, gpus=1, memory=4 * GIB)
    with made.in_process():
        yield made


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine(stream_delay_seconds=0.002) as made:
        yield made


@pytest.mark.usefixtures("node")
def test_a_piece_is_used_again_and_goes_back() -> None:
    """Garbage collection calls no driver: it only says that the piece is free."""
    pages = PinnedPages()
    for _ in range(2):
        pages.add(pages.pin(0))
    assert sorted(copies._pinned.values()) == [PIECE_BYTES] * 2
    found = pages.take(PIECE_BYTES - 100)
    assert found is not None
    piece, ordinal = found
    assert (piece.nbytes, ordinal, pages.nbytes) == (PIECE_BYTES - 100, 0, PIECE_BYTES)
    view, address = piece[10:], piece.ctypes.data
    view[:] = 7
    del piece, found
    gc.collect()
    pages.collect()
    assert pages.nbytes == PIECE_BYTES, "a view is alive"
    before = process.calls.total()
    del view
    gc.collect()
    pages.keep(PIECE_BYTES)
    assert (pages.nbytes, pages.pinned_bytes) == (PIECE_BYTES, PIECE_BYTES)
    assert process.calls.total() == before
    pages.unpin_surplus()
    assert len(copies._pinned) == 1
    pages.close()
    assert not copies._pinned
    assert address


@pytest.mark.usefixtures("node")
def test_what_is_too_small_or_too_large_is_not_taken() -> None:
    """A piece is of one size: half of it is the least that it is good for."""
    pages = PinnedPages()
    pages.add(pages.pin(0))
    assert pages.take(pinned.LEAST_BYTES - 1) is None
    assert pages.take(PIECE_BYTES + 1) is None
    held = pages.take(pinned.LEAST_BYTES)
    assert held is not None
    assert pages.take(PIECE_BYTES) is None, "there is no other"


def test_it_lies_on_the_numa_node_of_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is asked for before the first byte is written: later it would be where it is."""
    steps: list[tuple[str, int | None]] = []
    monkeypatch.setattr(
        libc, "prefer_node", lambda _at, _nbytes, node: steps.append(("node", node))
    )
    monkeypatch.setattr(libc, "madvise", lambda _at, _nbytes, word: steps.append(("told", word)))
    with fake_cuda_node(tmp_path, topology=hgx_h100()).in_process():
        pages = PinnedPages()
        for ordinal in (0, 7):
            steps.clear()
            pages.add(pages.pin(ordinal))
            assert steps[0] == ("node", {0: 0, 7: 1}[ordinal])
            assert steps[-1] == ("told", libc.MADV_POPULATE_WRITE)
        pages.close()


def test_what_is_pinned_is_bounded() -> None:
    """By half of the process's limit, with what copies have of it; and by what is reserved."""
    tiers = Tiers(host_limit_bytes=64 * MIB, counters=Counters())
    buffer = EvacuationBuffer(tiers)
    slab = Slab(
        Grant(
            lease_id="lease",
            lender_gpu="GPU-1",
            nbytes=256 * MIB,
            safety_class=SafetyClass.STORE,
            keeper_pid=0,
            canary=b"",
            descriptor=None,
            cuda_ipc=b"",
        ),
        Memory.of_host(8),
        now=0.0,
    )
    tiers.add_slab(slab)
    slab.put(200 * MIB, Stored(200 * MIB, SafetyClass.STORE), now=0.0)
    assert buffer._wanted_pinned_bytes() == 32 * MIB
    for _ in range(3):
        tiers.host.pinned.add(Piece(0, 0))
    tiers.host.pinned._free.pop()  # a copy has it
    assert buffer._wanted_pinned_bytes() == 32 * MIB - PIECE_BYTES


def test_what_the_driver_does_not_pin_is_not_kept(node: FakeCudaNode) -> None:
    """It is unmapped again."""
    node.fail("cuMemHostRegister", int(CUresult.CUDA_ERROR_OUT_OF_MEMORY))
    pages = PinnedPages()
    with pytest.raises(aqua_client.AquaError, match="OUT_OF_MEMORY"):
        pages.pin(0)
    assert pages.pinned_bytes == 0


def test_what_the_driver_does_not_unpin_stays_where_it_is(node: FakeCudaNode) -> None:
    """A device may still write there: the pages are nobody's, and not the kernel's either."""
    pages = PinnedPages()
    piece = pages.pin(0)
    pages.add(piece)
    node.fail("cuMemHostUnregister", int(CUresult.CUDA_ERROR_UNKNOWN))
    pages.close()
    node.fail("cuMemHostUnregister", None)
    assert pages.pinned_bytes == 0
    held = ctypes.string_at(piece.address, PIECE_BYTES) if is_mapped(piece.address) else b""
    assert len(held) == PIECE_BYTES
    assert piece.address in copies._pinned


def is_mapped(address: int) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines]
    return any(int(begin, 16) <= address < int(end, 16) for begin, end in ranges)


def test_a_fetch_to_the_cpu_waits_for_what_a_gpu_still_writes_to_the_host() -> None:
    """There is no stream that would: the caller moves the bytes."""
    waited: list[str] = []

    class Late(FakeEvent):
        def wait(self) -> None:
            waited.append("here")

    class OfGpus(FakeStreams):
        def concern(self, device: torch.device) -> bool:
            return device.type == "cuda"

    event, streams, stored = Late(), OfGpus(), Stored(8, SafetyClass.STORE)
    for pinned_on in (None, 0):
        memory = Memory.of_pages(np.zeros(8, dtype=np.uint8), pinned_on=pinned_on)
        for device in ("cpu", "cuda"):
            place = Place(memory, 0, 8, stored, None)
            enqueuing.come_after(streams, event, torch.device(device), [place])
    assert (event.waits, waited) == (4, ["here"])


def test_a_revoke_moves_the_bytes_into_pinned_memory_that_is_there(engine: Engine) -> None:
    """On the GPU's NUMA node, if that has some; what is used no more is used again."""
    tensor = noise(24 * MIB, seed=1, device="cpu")
    handle = engine.client.offload(tensor)
    assert handle.tier == "peer"
    wait_until(lambda: number(engine, "pinned_bytes") >= 24 * MIB, what="pinned ahead")
    assert number(engine, "evacuation_buffer_bytes") >= 24 * MIB
    lender = engine.machine.uuids[1]
    total = engine.machine.description.gpus[1].memory_bytes
    engine.machine.set_process(lender, 4242, total - engine.machine.used_bytes(lender) - 100 * MIB)
    wait_until(lambda: handle.tier == "host", seconds=30, what="moved")
    assert all(place.memory.is_pinned for place in handle._stored.places)
    out = torch.zeros_like(tensor)
    handle.fetch(out=out)
    await_idle(engine)
    assert torch.equal(out, tensor)

    pinned_before = number(engine, "pinned_bytes")
    parked = engine.client.offload(tensor)
    assert parked.tier == "host"
    for _ in range(3):
        parked.fetch(out=out)
        await_idle(engine)
        assert torch.equal(out, tensor)
    parked.release()
    handle.release()
    await_idle(engine)
    wait_until(
        lambda: number(engine, "pinned_bytes") <= pinned_before + 64 * MIB, what="used again"
    )
    engine.machine.set_process(lender, 4242, 0)


def number(engine: Engine, name: str) -> int:
    found = engine.client.stats()[name]
    assert isinstance(found, int)
    return found


def test_offloads_to_the_host_are_enqueued_where_memory_is_pinned_ahead(engine: Engine) -> None:
    """The call does not wait for the copy, and a fetch comes after it."""
    lender = engine.machine.uuids[1]
    total = engine.machine.description.gpus[1].memory_bytes
    engine.machine.set_process(lender, 4242, total - engine.machine.used_bytes(lender) - 100 * MIB)
    tensor, out = noise(4 * MIB, seed=2, device="cpu"), torch.zeros(4 * MIB, dtype=torch.uint8)
    kept: list[aqua_client.OffloadedTensor] = []

    def is_pinned() -> bool:
        kept.append(engine.client.offload(tensor))
        return kept[-1].tier == "host" and all(
            place.memory.is_pinned for place in kept[-1]._stored.places
        )

    wait_until(is_pinned, seconds=30, what="an offload finds pinned memory")
    kept[-1].fetch(out=out)
    await_idle(engine)
    assert torch.equal(out, tensor)
    assert process.calls["cuStreamSynchronize of a default stream"] == 0
    for handle in kept:
        handle.release()
    engine.machine.set_process(lender, 4242, 0)
    assert engine.torch.ordinal(tensor.device) == DEVICE
