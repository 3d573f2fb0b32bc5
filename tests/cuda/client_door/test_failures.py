"""Slabs that the client's own functions can not open: wrong ones, failing drivers, no own GPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aqua_client import own_device
from aqua_client.copying import Memory, UnusableSlab
from aqua_client.cuda_driver import acting_on, call
from aqua_client.cuda_errors import CudaError, CudaUnavailable
from aqua_client.cuda_mapping import open_legacy
from aqua_client.records import Grant
from tests.cuda.client_door.looks import HOME, LENDER, home, is_open, mapped_by_us, own_contexts
from tests.cuda.exporter import KINDS, MIB, ExportedSlab, exporting
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda.results import CUresult


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: replace(one, keeper_pid=os.getpid()), "pid_namespace"),
        (lambda one: replace(one, canary=bytes(64)), "canary"),
        (lambda one: replace(one, nbytes=64 * MIB), "cuda_open"),
    ],
)
def test_what_is_not_the_slab_granted_is_refused(
    node: FakeCudaNode, slab: ExportedSlab, change: Callable[[Grant], Grant], reason: str
) -> None:
    """By a reason to count; nothing stays mapped or open."""
    granted = change(slab.grant())
    with pytest.raises(UnusableSlab) as caught:
        Memory.of_grant(granted, home_gpu=home(node))
    assert caught.value.reason == reason
    assert mapped_by_us(node) == 0
    assert not is_open(granted.descriptor)


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("legacy", "cuIpcOpenMemHandle"),
        ("vmm", "cuMemImportFromShareableHandle"),
        ("vmm", "cuMemAddressReserve"),
        ("vmm", "cuMemMap"),
        ("vmm", "cuMemSetAccess"),
        *(
            (kind, function)
            for kind in KINDS
            for function in (
                *("cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuMemcpyDtoHAsync"),
                *("cuStreamCreate", "cuStreamSynchronize"),
                *("cuThreadExchangeStreamCaptureMode", "cuPointerGetAttribute"),
            )
        ),
    ],
)
def test_a_driver_that_fails_on_the_way_leaves_nothing(
    node: FakeCudaNode, kind: str, function: str
) -> None:
    """Whichever call it is; and the next opening works."""
    with exporting(node, gpu=node.uuids[LENDER], kind=kind) as slab:
        node.fail(function, int(CUresult.CUDA_ERROR_UNKNOWN))
        granted = slab.grant()
        with pytest.raises(UnusableSlab, match="CUDA_ERROR_UNKNOWN: ") as caught:
            Memory.of_grant(granted, home_gpu=home(node))
        assert caught.value.reason == "cuda_open"
        assert not is_open(granted.descriptor)
        node.fail(function, None)
        assert mapped_by_us(node) == 0
        Memory.of_grant(slab.grant(), home_gpu=home(node)).close()


def test_a_driver_that_does_not_tell_an_imports_size_is_believed(node: FakeCudaNode) -> None:
    """Nothing says that it must; the first bytes still have to be right."""
    node.fail("cuMemGetAddressRange", int(CUresult.CUDA_ERROR_INVALID_VALUE))
    with exporting(node, gpu=node.uuids[LENDER]) as slab:
        memory = Memory.of_grant(slab.grant(), home_gpu=home(node))
        memory.view(torch.uint8).fill_(3)
        assert slab.content() == b"\x03" * slab.nbytes
        memory.close()


def test_a_driver_that_does_not_unmap_is_asked_again(
    node: FakeCudaNode, slab: ExportedSlab
) -> None:
    """The slab counts as mapped until it is not; then closing has been enough once."""
    function = "cuIpcCloseMemHandle" if slab.kind == "legacy" else "cuMemUnmap"
    memory = Memory.of_grant(slab.grant(), home_gpu=home(node))
    node.fail(function, int(CUresult.CUDA_ERROR_UNKNOWN))
    with pytest.raises(BufferError, match="CUDA_ERROR_UNKNOWN"):
        memory.close()
    assert mapped_by_us(node) == 1
    memory.view(torch.uint8)[:64].zero_()
    node.fail(function, None)
    memory.close()
    memory.close()
    assert mapped_by_us(node) == 0


def test_a_kept_handle_does_not_open_the_next_allocation(tmp_path: Path) -> None:
    """Where an equal handle names another slab, its first bytes tell."""
    node = fake_cuda_node(tmp_path, freed_handle="aliases")
    with node.in_process(), exporting(node, gpu=node.uuids[LENDER]) as slab:
        kept = slab.grant()
        Memory.of_grant(kept, home_gpu=home(node)).close()
        slab.order("free")
        again = slab.order("again")
        assert bytes.fromhex(again["handle"]) == kept.cuda_ipc
        with pytest.raises(UnusableSlab) as caught:
            Memory.of_grant(kept, home_gpu=home(node))
        assert caught.value.reason == "canary"
        fresh = replace(kept, canary=bytes.fromhex(again["canary"]))
        Memory.of_grant(fresh, home_gpu=home(node)).close()


def test_a_forked_child_can_open_nothing(node: FakeCudaNode, slab: ExportedSlab) -> None:
    """It is told by a reason, and the parent's mapping is not touched."""
    memory = Memory.of_grant(slab.grant(), home_gpu=home(node))
    granted = slab.grant(lease_id="in the child")
    child = os.fork()
    if child == 0:
        try:
            Memory.of_grant(granted, home_gpu=home(node))
        except UnusableSlab as error:
            os._exit(0 if error.reason == "no_cuda" else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    memory.view(torch.uint8).fill_(9)
    assert slab.content() == b"\x09" * slab.nbytes
    memory.close()
    if granted.descriptor is not None:
        os.close(granted.descriptor)


@pytest.mark.usefixtures("node")
def test_the_exporter_itself_can_not_open_it() -> None:
    """The driver's refusal says what the cause may be."""
    with acting_on(0):
        pointer = call("cuMemAlloc", 2 * MIB)
        token = call("cuIpcGetMemHandle", pointer)
        handle = ctypes.string_at(token.getPtr(), 64)
        with pytest.raises(CudaError, match="PID namespace") as caught:
            open_legacy(handle, lease_id="mine", ordinal=0, nbytes=2 * MIB)
        assert caught.value.name == "CUDA_ERROR_INVALID_CONTEXT"
        call("cuMemFree", pointer)


def test_a_handle_of_another_length_is_refused(node: FakeCudaNode) -> None:
    """Before the driver reads beyond its end."""
    with pytest.raises(CudaError, match="63 bytes"):
        open_legacy(bytes(63), lease_id="short", ordinal=HOME, nbytes=2 * MIB)
    assert own_contexts(node) == []


def test_a_home_gpu_that_is_not_visible_is_named(node: FakeCudaNode, slab: ExportedSlab) -> None:
    """And no context is made to find that out."""
    with pytest.raises(UnusableSlab, match="GPU-of-elsewhere") as caught:
        Memory.of_grant(slab.grant(), home_gpu="GPU-of-elsewhere")
    assert caught.value.reason == "no_own_gpu"
    assert own_contexts(node) == []


def test_without_a_home_gpu_the_threads_own_context_decides(
    node: FakeCudaNode, slab: ExportedSlab
) -> None:
    """And without either, nothing is guessed: a context on device 0 would surprise its owner."""
    own_device._chosen.clear()
    with pytest.raises(UnusableSlab, match="AQUA_HOME_GPU") as caught:
        Memory.of_grant(slab.grant())
    assert caught.value.reason == "no_own_gpu"
    assert own_contexts(node) == []
    call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", 3)))
    memory = Memory.of_grant(slab.grant())
    assert memory.opened_on == 3
    assert own_contexts(node) == [node.uuids[3]]
    memory.close()
    own_device._chosen.clear()


def test_without_a_gpu_the_reason_says_so(tmp_path: Path) -> None:
    """A slab that can't be used is no error of the server's."""
    made = fake_cuda_node(tmp_path, gpus=1)
    with made.in_process(), exporting(made, gpu=made.uuids[0]) as slab:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        with pytest.raises(UnusableSlab) as caught:
            Memory.of_grant(slab.grant(), home_gpu=made.uuids[0])
        assert caught.value.reason == "no_cuda"
        with pytest.raises(CudaUnavailable, match="CUDA_VISIBLE_DEVICES"):
            call("cuDeviceGetCount")
