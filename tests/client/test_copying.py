"""Bytes reach a slab and come back exactly; a slab is mapped safely, and unmapped for real."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from aqua_client import copying, forking, libc
from aqua_client.copying import CHUNK_BYTES, Memory, UnusableSlab
from aqua_client.layouts import layout_of
from aqua_client.mapping import Mapping
from aqua_client.records import Grant, SafetyClass
from tests.client.pagers import random_bytes
from tests.fakes.session import MIB, is_mapped, slab_descriptor
from tests.nodes import wait_until

CANARY = bytes(range(64))


@dataclass
class Piece:
    memory: Memory
    offset: int
    nbytes: int


def grant(nbytes: int = 4 * MIB) -> Grant:
    lease_id = uuid4().hex
    return Grant(
        lease_id=lease_id,
        lender_gpu="SHM-1",
        nbytes=nbytes,
        safety_class=SafetyClass.STORE,
        keeper_pid=1,
        canary=CANARY,
        descriptor=slab_descriptor(lease_id, nbytes, CANARY),
        cuda_ipc=b"",
    )


def is_open(descriptor: int | None) -> bool:
    return descriptor is not None and Path(f"/proc/self/fd/{descriptor}").exists()


def test_a_granted_slab_is_mapped_and_its_descriptor_closed() -> None:
    """No descriptor stays open that a child could map again."""
    granted = grant()
    before = set(Path("/proc/self/fd").iterdir())
    memory = Memory.of_grant(granted)
    assert not is_open(granted.descriptor)
    assert len(set(Path("/proc/self/fd").iterdir())) == len(before) - 1
    assert is_mapped(granted.lease_id)
    memory.close()
    assert not is_mapped(granted.lease_id)
    memory.close()


def test_a_slab_is_not_mapped_in_a_forked_child() -> None:
    """The pages are left out of children."""
    granted = grant()
    memory = Memory.of_grant(granted)
    child = os.fork()
    if child == 0:
        os._exit(int(is_mapped(granted.lease_id)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    memory.close()


def test_a_fork_waits_for_a_slab_that_is_being_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between mapping it and leaving it out of children nobody forks."""
    granted, madvise_at_once = grant(), libc.madvise
    is_mapping, memories = threading.Event(), list[Memory]()

    def madvise(*words: int) -> int:
        is_mapping.set()
        wait_until(lambda: forking.GATE._forking, what="the process forks")
        with suppress(AssertionError):  # a fork that does not wait is over by then
            wait_until(lambda: not forking.GATE._forking, seconds=0.3)
        return int(madvise_at_once(*words))

    monkeypatch.setattr(libc, "madvise", madvise)
    monkeypatch.setattr(forking.GATE, "_patience_seconds", 10.0)
    opening = threading.Thread(target=lambda: memories.append(Memory.of_grant(granted)))
    opening.start()
    assert is_mapping.wait(10.0)
    child = os.fork()
    if child == 0:
        os._exit(int(is_mapped(granted.lease_id) or is_open(granted.descriptor)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    opening.join()
    memories[0].close()


def test_a_slab_with_a_living_view_is_not_unmapped() -> None:
    """It says so, goes on working, and can be closed when the view has gone."""
    granted = grant()
    memory = Memory.of_grant(granted)
    view = memory.view(torch.float32)[100:200]
    with pytest.raises(BufferError, match="view"):
        memory.close()
    assert is_mapped(granted.lease_id)
    view.fill_(3.0)
    assert memory.view(torch.float32)[150] == 3.0
    assert memory.address == memory.view(torch.uint8).data_ptr()
    del view
    memory.close()
    assert not is_mapped(granted.lease_id)
    assert memory.address == 0  # nothing is copied there any more


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: replace(one, keeper_pid=os.getpid()), "pid_namespace"),
        (lambda one: replace(one, canary=bytes(64)), "canary"),
        (lambda one: replace(one, nbytes=8 * MIB), "map"),
    ],
)
def test_a_slab_that_is_not_what_was_granted_is_refused(
    change: Callable[[Grant], Grant], reason: str
) -> None:
    """Its descriptor is closed, and nothing stays mapped."""
    granted = change(grant())
    with pytest.raises(UnusableSlab) as caught:
        Memory.of_grant(granted)
    assert caught.value.reason == reason
    assert not is_open(granted.descriptor)
    assert not is_mapped(granted.lease_id)


def test_memory_that_could_shrink_is_refused() -> None:
    """A reader of bytes that are cut off is killed by SIGBUS."""
    descriptor = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, MIB)
    with pytest.raises(OSError, match="shrinking"):
        Mapping(descriptor, MIB)
    os.close(descriptor)


def test_a_cuda_handle_is_refused_by_name() -> None:
    """A client without CUDA says what it can't do."""
    granted = grant()
    os.close(granted.descriptor or -1)
    with pytest.raises(UnusableSlab) as caught:
        Memory.of_grant(replace(granted, descriptor=None, cuda_ipc=bytes(64)))
    assert caught.value.reason == "no_cuda"


def test_a_slab_made_in_inference_mode_can_be_written_outside() -> None:
    """Otherwise a server's first offload would spoil all later ones."""
    with torch.inference_mode():
        memory = Memory.of_host(1024)
        memory.view(torch.float32).fill_(1.0)
    memory.view(torch.float32).fill_(2.0)
    memory.view(torch.uint8)[:4].zero_()


@pytest.mark.parametrize("cuts", [(), (4096,), (512, 512 * 9)])
@pytest.mark.parametrize(
    "source",
    [
        torch.arange(6000, dtype=torch.int32).reshape(60, 100),
        torch.arange(6000, dtype=torch.int32).reshape(60, 100).t(),
        torch.arange(12000, dtype=torch.int32)[::2],
        torch.arange(6000, dtype=torch.float32).to(torch.complex64).conj(),
        torch.arange(6000, dtype=torch.float32).to(torch.complex64).conj().imag,
    ],
)
def test_tensors_come_back_from_any_number_of_pieces(
    source: torch.Tensor, cuts: tuple[int, ...]
) -> None:
    """Whole or in pieces, dense or not, with conjugate and negative bits."""
    layout = layout_of(source)
    ends = [*cuts, layout.nbytes]
    starts = [0, *cuts]
    pieces = [
        Piece(Memory.of_host(8 * MIB), 512 * (number + 1), end - start)
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    copying.write(source, layout, pieces)
    for target in (
        copying.new_tensor(layout),
        torch.empty(source.shape, dtype=source.dtype).t().t(),
    ):
        copying.read(pieces, layout, target)
        assert torch.equal(target, source)
    strided = torch.zeros((*source.shape, 2), dtype=source.dtype)[..., 0]
    copying.read(pieces, layout, strided)
    assert torch.equal(strided, source)


def test_what_is_longer_than_a_chunk_is_copied_whole() -> None:
    """Also where its length is no multiple of a chunk."""
    source = random_bytes(2 * CHUNK_BYTES + 12345)
    layout = layout_of(source)
    first = Piece(Memory.of_host(CHUNK_BYTES + 512), 0, CHUNK_BYTES + 512)
    second = Piece(Memory.of_host(CHUNK_BYTES + 12000), 0, layout.nbytes - first.nbytes)
    copying.write(source, layout, [first, second])
    moved = Piece(Memory.of_host(CHUNK_BYTES + 1024), 512, CHUNK_BYTES + 512)
    copying.copy_spans([(first, moved)])
    target = torch.empty_like(source)
    copying.read([moved, second], layout, target)
    assert torch.equal(target, source)


def test_many_spans_are_copied_in_as_few_calls_as_there_are_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each call costs a wait for the interpreter where others compute in Python."""
    calls: list[int] = []
    copy = torch._foreach_copy_

    def counted(there: list[torch.Tensor], here: list[torch.Tensor]) -> None:
        calls.append(sum(one.numel() for one in there))
        copy(there, here)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    source = random_bytes(2 * CHUNK_BYTES + 4096)
    whole = Memory.of_host(source.numel())
    whole.view(torch.uint8).copy_(source)
    sizes = [CHUNK_BYTES // 8] * 15 + [CHUNK_BYTES // 8 + 4096]
    begins = [sum(sizes[:at]) for at in range(len(sizes))]
    moved = [Piece(Memory.of_host(size), 0, size) for size in sizes]
    pieces = [Piece(whole, begin, size) for begin, size in zip(begins, sizes, strict=True)]
    copying.copy_spans(zip(pieces, moved, strict=True))
    assert len(calls) == 3
    assert max(calls) <= CHUNK_BYTES
    assert torch.equal(torch.cat([one.memory.view(torch.uint8) for one in moved]), source)


def test_a_gradient_is_neither_needed_nor_recorded() -> None:
    """The slab must not become part of anybody's graph."""
    source = torch.ones(100, requires_grad=True)
    layout = layout_of(source)
    piece = Piece(Memory.of_host(4096), 0, layout.nbytes)
    copying.write(source, layout, [piece])
    assert not piece.memory.view(torch.float32).requires_grad
    target = torch.zeros(100, requires_grad=True)
    copying.read([piece], layout, target)
    assert target.is_leaf
    assert target.sum().item() == 100


def test_host_memory_that_can_not_be_had_is_a_memory_error() -> None:
    """Not a RuntimeError of the allocator's."""
    with pytest.raises(MemoryError, match="bytes of host memory"):
        Memory.of_host(2**62)


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has none"
)
def test_huge_pages_are_wished_for_slabs() -> None:
    """What the kernel makes of it is its operator's affair."""
    mapping = Mapping(slab_descriptor("wished", 4 * MIB, CANARY), 4 * MIB)
    maps = iter(Path("/proc/self/smaps").read_text().splitlines())
    assert any("slab-wished" in line for line in maps)
    assert "hg" in next(line for line in maps if line.startswith("VmFlags:")).split()
    mapping.close()
