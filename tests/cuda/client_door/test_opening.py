"""Slabs of another process, opened by the client's own functions through a driver that is a fake.

The exporter is a real process; this one is the client. Covers both kinds of handle alike wherever
the rule is the same.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from aqua_client.copying import Memory
from aqua_client.cuda_driver import acting_on, call, ordinal_of, uuid_of
from aqua_client.records import Grant
from tests.client.pagers import random_bytes
from tests.cuda.client_door.looks import (
    HOME,
    LENDER,
    descriptors,
    home,
    is_open,
    mapped_by_us,
    own_contexts,
)
from tests.cuda.exporter import ExportedSlab, exporting
from tests.fakes.cuda_node import FakeCudaNode


def test_bytes_go_both_ways(node: FakeCudaNode, slab: ExportedSlab) -> None:
    """What the client writes its owner reads, all of it."""
    memory = Memory.of_grant(slab.grant(), home_gpu=home(node))
    content = random_bytes(slab.nbytes)
    memory.view(torch.uint8).copy_(content)
    assert slab.content() == content.numpy().tobytes()
    assert (memory.opened_on, memory.ordinal) == (HOME, None)
    memory.close()


def test_it_is_opened_on_the_clients_own_gpu_alone(node: FakeCudaNode, slab: ExportedSlab) -> None:
    """One context, on the home GPU; on the lender there is its owner's and no other."""
    before = node.used_bytes(slab.gpu)
    memory = Memory.of_grant(slab.grant(), home_gpu=home(node))
    assert own_contexts(node) == [home(node)]
    assert node.used_bytes(slab.gpu) == before
    other = Memory.of_grant(slab.grant(lease_id="another"), home_gpu=home(node))
    assert own_contexts(node) == [home(node)]
    memory.close()
    other.close()


def test_the_thread_is_left_as_it_was(node: FakeCudaNode, slab: ExportedSlab) -> None:
    """Its context and its capture mode are the server's, not the library's."""
    with acting_on(1):
        pass  # so that there is one of the server's
    device = call("cuDeviceGet", 1)
    call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", device))
    before = int(call("cuCtxGetCurrent"))
    memory = Memory.of_grant(slab.grant(), home_gpu=home(node))
    memory.close()
    assert int(call("cuCtxGetCurrent")) == before
    from cuda.bindings import driver

    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    assert int(call("cuThreadExchangeStreamCaptureMode", mode)) == int(mode)


def test_a_living_view_keeps_it_mapped(node: FakeCudaNode, slab: ExportedSlab) -> None:
    """It says so, goes on working, and can be closed when the view has gone."""
    memory = Memory.of_grant(slab.grant(), home_gpu=home(node))
    view = memory.view(torch.float32)[100:200]
    for _ in range(3):
        with pytest.raises(BufferError, match="view"):
            memory.close()
    assert mapped_by_us(node) == 1
    view.fill_(3.0)
    assert memory.view(torch.float32)[150] == 3.0
    del view
    memory.close()
    assert mapped_by_us(node) == 0
    memory.close()


def test_the_descriptor_does_not_stay(node: FakeCudaNode) -> None:
    """The mapping alone holds the memory: a child inherits nothing to open it by."""
    with exporting(node, gpu=node.uuids[LENDER], kind="vmm") as slab:
        granted = slab.grant()
        before = descriptors()
        memory = Memory.of_grant(granted, home_gpu=home(node))
        assert not is_open(granted.descriptor)
        assert len(descriptors()) == len(before) - 1
        memory.close()


def test_the_same_lease_is_opened_once(node: FakeCudaNode, slab: ExportedSlab) -> None:
    """Both see the same memory, and the last one to close unmaps it."""
    one = Memory.of_grant(slab.grant(lease_id="same"), home_gpu=home(node))
    other = Memory.of_grant(slab.grant(lease_id="same"), home_gpu=home(node))
    one.view(torch.uint8)[1000] = 42
    assert other.view(torch.uint8)[1000] == 42
    one.close()
    one.close()
    assert mapped_by_us(node) == 1
    other.view(torch.uint8)[1000] = 43
    other.close()
    assert mapped_by_us(node) == 0


def test_threads_that_open_and_close_the_same_lease_do_not_disturb_each_other(
    node: FakeCudaNode, slab: ExportedSlab
) -> None:
    """Nobody's mapping goes while he has it."""
    grants = [slab.grant(lease_id="same", canary=b"") for _ in range(80)]
    faults: list[BaseException] = []

    def work(mine: list[Grant]) -> None:
        try:
            for granted in mine:
                memory = Memory.of_grant(granted, home_gpu=home(node))
                memory.view(torch.int64)[:1000].fill_(granted.nbytes)
                memory.close()
        except BaseException as fault:  # noqa: BLE001 - told by the test's own thread
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(grants[one::4],)) for one in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert mapped_by_us(node) == 0


def test_two_hundred_cycles_leave_nothing(node: FakeCudaNode, slab: ExportedSlab) -> None:
    """Mappings, descriptors, addresses and contexts are as many as before."""
    Memory.of_grant(slab.grant(), home_gpu=home(node)).close()
    before = descriptors()
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    for _ in range(200):
        memory = Memory.of_grant(slab.grant(), home_gpu=home(node))
        memory.view(torch.float16)[700] = 1  # not where the canary is
        memory.close()
    assert mapped_by_us(node) == 0
    assert len(descriptors()) == len(before)
    assert len(Path("/proc/self/maps").read_text().splitlines()) <= maps + 5
    assert own_contexts(node) == [home(node)]
    assert node.contexts_made == 2


def test_gpus_are_found_by_their_uuid(node: FakeCudaNode) -> None:
    """Which is how they are named everywhere but inside a process."""
    assert [uuid_of(ordinal) for ordinal in range(8)] == node.uuids
    assert [ordinal_of(uuid) for uuid in node.uuids] == list(range(8))
    assert ordinal_of("GPU-of-elsewhere") is None
