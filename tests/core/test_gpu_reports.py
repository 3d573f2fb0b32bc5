"""What keepers say of real GPUs: memory that no slab and no owner explains, refusals, warnings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.events import GpuReported, KeeperDetached, LeasesReleased, SlabFreed
from aqua_daemon.core.model import GpuReport, LeaseState
from aqua_daemon.core.sizes import MIB
from tests.core.bench import GPU_BYTES, HOME, NEAR, SLAB, Bench


def said(bench: Bench, **changes: object) -> None:
    """NEAR's keeper reports what it holds, with *changes* to an idle GPU."""
    held = bench.broker._books.ledger.gpus[NEAR].keeper_slabs
    idle = GpuReport(gpu=NEAR, total_bytes=GPU_BYTES, slab_bytes=dict(held), owner_bytes={})
    bench.handle(GpuReported(report=replace(idle, **changes)))  # type: ignore[arg-type]  # its own fields


def test_what_others_use_is_used_whoever_they_are() -> None:
    """Contexts and the driver belong to no owner; an owner without figures may still reclaim."""
    bench = Bench()
    said(bench, other_bytes=40 * MIB, owner_bytes={7: 10 * MIB, 8: 0})
    gpu = bench.gpu(NEAR)
    assert gpu.used_by_others_bytes == 40 * MIB
    assert gpu.free_bytes == GPU_BYTES - 40 * MIB
    said(bench, owner_bytes={7: 10 * MIB, 8: 0})  # a keeper that says no more
    assert bench.gpu(NEAR).used_by_others_bytes == 10 * MIB


@pytest.mark.parametrize(
    "nonsense", [{"other_bytes": -1}, {"owner_bytes": {7: -1}}, {"total_bytes": 0}]
)
def test_a_report_that_cant_be_is_not_believed(nonsense: dict[str, object]) -> None:
    """Nothing is granted there, and the figures stay those of before."""
    bench = Bench()
    said(bench, other_bytes=40 * MIB)
    said(bench, **nonsense)
    gpu = bench.gpu(NEAR)
    assert gpu.trouble == "its last report could not be read"
    assert gpu.used_by_others_bytes == 40 * MIB
    said(bench, other_bytes=30 * MIB)
    assert bench.gpu(NEAR).trouble == ""


def test_a_keeper_that_knows_no_size_yet_says_why() -> None:
    """Its own words are better than that its report is odd."""
    bench = Bench()
    said(bench, total_bytes=0, not_lending="NVML has not answered yet")
    assert bench.gpu(NEAR).trouble == "NVML has not answered yet"


def test_a_refused_gpu_keeps_its_leases_and_grants_none() -> None:
    """The reason is its trouble, and part of the message to whoever asks for more."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    said(bench, not_lending="MIG is enabled")
    assert (bench.gpu(NEAR).trouble, bench.gpu(NEAR).lendable_bytes) == ("MIG is enabled", 0)
    assert bench.state(lease_id) is LeaseState.LEASED
    with pytest.raises(InsufficientMemory, match="lends nothing, MIG is enabled"):
        bench.ask(session)
    said(bench)
    assert bench.gpu(NEAR).trouble == ""
    bench.grant(session)


def test_a_broken_link_outranks_what_was_refused_before() -> None:
    """The last word of a keeper that can't be reached is old."""
    bench = Bench()
    said(bench, not_lending="MIG is enabled")
    bench.handle(KeeperDetached(gpus=(HOME, NEAR)))
    assert bench.gpu(NEAR).trouble == "the link to its keeper is broken"


def test_warnings_and_the_model_are_shown_and_stop_nothing() -> None:
    """They are for people."""
    bench = Bench()
    said(bench, warnings=("ECC is off",), model="NVIDIA H200")
    gpu = bench.gpu(NEAR)
    assert (gpu.warnings, gpu.model, gpu.trouble) == (("ECC is off",), "NVIDIA H200", "")
    assert gpu.lendable_bytes > 0
    said(bench, model="NVIDIA H200")
    assert bench.gpu(NEAR).warnings == ()


def test_bytes_that_did_not_come_back_are_never_free_in_between() -> None:
    """From the answer to the free on, before any report: others use them."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    free_bytes = bench.gpu(NEAR).free_bytes
    bench.handle(
        LeasesReleased(
            session_id=session,
            request_id=bench.request_id(),
            lease_ids=(lease_id,),
            host_room=None,
        )
    )
    bench.handle(SlabFreed(lease_id=lease_id, unreturned_bytes=SLAB))
    assert bench.gpu(NEAR).used_by_others_bytes == SLAB
    assert bench.gpu(NEAR).free_bytes == free_bytes
    bench.handle(SlabFreed(lease_id=lease_id, unreturned_bytes=SLAB))  # again: no effect
    assert bench.gpu(NEAR).used_by_others_bytes == SLAB
    said(bench, other_bytes=0)  # the ex-holder has let go
    assert bench.gpu(NEAR).free_bytes == free_bytes + SLAB
