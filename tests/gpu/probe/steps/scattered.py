"""A thousand scattered blocks into one slab: a copy each, a batch, or one gather by torch.

Seconds are wall time until the last byte has arrived: what a caller waits.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.gpu.probe import dlpack, kinds
from tests.gpu.probe.driver import DriverError, call, enum, new_stream, struct, use_device
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.launching import torch_has_cuda
from tests.gpu.probe.names import KINDS
from tests.gpu.probe.plan import KIB, Plan
from tests.gpu.probe.stage import Devices, filled_slab, started

SPREAD = 4  # the blocks lie in a pool of so many times their number


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    use_device(where.borrower)
    places = range(plan.blocks * SPREAD)
    order = random.Random(7).sample(places, plan.blocks)  # noqa: S311 - the same in every run
    found: dict[str, dict[int, dict[str, float | str]]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        for nbytes in plan.block_sizes:
            with _pool_and_slab(kind, nbytes, plan.blocks, where) as (pool, slab):
                found[kind][nbytes] = _ways(pool, slab, nbytes, order, plan, where)
    findings.figures(f"seconds for {plan.blocks} blocks by block bytes", found)
    for nbytes in plan.block_sizes:
        for way in found[KINDS[0]][nbytes]:
            told = {kind: _told(found[kind][nbytes][way]) for kind in KINDS}
            findings.both(f"{plan.blocks} x {nbytes // KIB} KiB, {way}", told)


def _told(found: float | str) -> str:
    return found if isinstance(found, str) else milliseconds(found)


@contextmanager
def _pool_and_slab(
    kind: str, nbytes: int, blocks: int, where: Devices
) -> Iterator[tuple[int, int]]:
    """A pool on the borrower, and a slab on the lender that takes all blocks one after another."""
    granule = 2 * 2**20
    slab_bytes = -(-nbytes * blocks // granule) * granule
    with started(where.lender) as keeper:
        number = filled_slab(keeper, kind=kind, nbytes=slab_bytes)
        ticket = keeper.export(number, kind=kind, nbytes=slab_bytes)
        handle = bytes.fromhex(ticket.handle)
        held = kinds.open_exported(kind, slab_bytes, handle, ticket.descriptor, where.borrower, {})
        ticket.close()
        pool = int(call("cuMemAlloc", nbytes * blocks * SPREAD))
        try:
            call("cuMemsetD8", pool, 1, nbytes * blocks * SPREAD)
            yield pool, held.pointer
        finally:
            call("cuCtxSynchronize")
            call("cuMemFree", pool)
            kinds.close(held, {})


def _ways(
    pool: int, slab: int, nbytes: int, order: Sequence[int], plan: Plan, where: Devices
) -> dict[str, float | str]:
    stream = new_stream()
    sources = [pool + block * nbytes for block in order]
    targets = [slab + place * nbytes for place in range(len(order))]

    def one_by_one() -> None:
        for source, target in zip(sources, targets, strict=True):
            call("cuMemcpyDtoDAsync", target, source, nbytes, stream)
        call("cuStreamSynchronize", stream)

    def batched() -> None:
        _batch(targets, sources, nbytes, stream)
        call("cuStreamSynchronize", stream)

    ways: dict[str, Callable[[], None]] = {"a copy each": one_by_one, "one batch": batched}
    found = {name: _median(work, plan.repeats) for name, work in ways.items()}
    found["torch index_select"] = _by_torch(pool, slab, nbytes, order, plan, where)
    call("cuStreamDestroy", stream)
    return found


def _batch(targets: Sequence[int], sources: Sequence[int], nbytes: int, stream: object) -> None:
    from cuda.bindings import driver

    if not hasattr(driver, "cuMemcpyBatchAsync"):
        raise DriverError("cuMemcpyBatchAsync is not offered")
    attributes = struct("CUmemcpyAttributes")
    attributes.srcAccessOrder = enum("CUmemcpySrcAccessOrder", "CU_MEMCPY_SRC_ACCESS_ORDER_STREAM")
    to = [driver.CUdeviceptr(pointer) for pointer in targets]
    of = [driver.CUdeviceptr(pointer) for pointer in sources]
    sizes, count = [nbytes] * len(to), len(to)
    call("cuMemcpyBatchAsync", to, of, sizes, count, [attributes], [0], 1, stream)


def _median(work: Callable[[], None], repeats: int) -> float | str:
    seconds = []
    try:
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begun)
    except DriverError as error:
        return str(error)
    except (RuntimeError, TypeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return statistics.median(seconds[1:])


def _by_torch(
    pool: int, slab: int, nbytes: int, order: Sequence[int], plan: Plan, where: Devices
) -> float | str:
    if not torch_has_cuda():
        return "not run: torch sees no CUDA device"
    import torch

    def tensor(pointer: int, blocks: int) -> torch.Tensor:
        capsule = dlpack.capsule(pointer, nbytes * blocks, kind=dlpack.CUDA, ordinal=where.borrower)
        return dlpack.tensor(capsule).view(torch.int64).view(blocks, nbytes // 8)

    source, target = tensor(pool, len(order) * SPREAD), tensor(slab, len(order))
    index = torch.tensor(order, device=source.device)

    def gather() -> None:
        torch.index_select(source, 0, index, out=target)
        torch.cuda.synchronize()

    return _median(gather, plan.repeats)
