"""Copies beside something else: out and in at once, and while a matrix product runs.

Each is timed alone and together, ours and plain copies on streams of their own. On stand-in GPUs every
copy is done on return, so nothing overlaps there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

import aqua_client
from tests.gpu.benches.timing import Seconds, median_of, size, synchronize
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.plan import GIB, Plan

MOST_UNDER_WAY_BYTES = 4 * GIB


def both(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """As many bytes out as in: what either takes alone, and what both take."""
    nbytes, count = plan.beside_bytes, plan.beside_count
    going = [torch.zeros(nbytes, dtype=torch.uint8, device=device) for _ in range(count)]
    parked = client.offload_many([torch.ones_like(one) for one in going])

    def out() -> None:
        _ended([client.offload(tensor, overlap=True) for tensor in going])

    def back() -> None:
        for handle in parked:
            handle.prefetch()
        for handle in parked:
            handle.fetch()

    def at_once() -> None:
        handles = []
        for tensor, handle in zip(going, parked, strict=True):
            handles.append(client.offload(tensor, overlap=True))
            handle.prefetch()
        for handle in parked:
            handle.fetch()
        _ended(handles)

    ours = _three(plan, out, back, at_once)
    plain = _three(plan, *_plain(going, device))
    for name, found in (("ours", ours), ("plain copies", plain)):
        words = ", ".join(f"{key} {milliseconds(each)}" for key, each in found.items())
        overlap = (found["out"] + found["in"]) / found["both"]
        faster = f"{overlap:.2f} times as fast as one after the other"
        findings.row(f"{count} x {size(nbytes)}, {name}", f"{words}: {faster}")
    findings.figures("seconds, both directions", {"ours": ours, "plain copies": plain})


def _three(
    plan: Plan, out: Callable[[], None], back: Callable[[], None], at_once: Callable[[], None]
) -> Seconds:
    return {
        "out": median_of(plan.repeats, out),
        "in": median_of(plan.repeats, back),
        "both": median_of(plan.repeats, at_once),
    }


def _ended(handles: Sequence[aqua_client.OffloadedTensor]) -> None:
    for handle in handles:
        handle.wait()
        handle.release()


def _plain(
    going: Sequence[torch.Tensor], device: str
) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    there, targets = [[torch.zeros_like(one) for one in going] for _ in range(2)]
    streams = [torch.cuda.Stream(device) for _ in range(2)] if device.startswith("cuda") else []

    def on(number: int) -> torch.cuda.StreamContext | nullcontext[None]:
        return torch.cuda.stream(streams[number]) if streams else nullcontext()

    def out() -> None:
        with on(0):
            for source, target in zip(going, there, strict=True):
                target.copy_(source)

    def back() -> None:
        with on(1):
            for source, target in zip(there, targets, strict=True):
                target.copy_(source)

    def at_once() -> None:
        out()
        back()

    return out, back, at_once


def beside_a_product(
    client: aqua_client.Client, device: str, plan: Plan, findings: Findings
) -> None:
    """How much longer a product takes while tensors are parked beside it, and how much they do."""
    side = plan.product_side
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    tensors = [
        torch.zeros(plan.beside_bytes, dtype=torch.uint8, device=device)
        for _ in range(plan.beside_count)
    ]

    def product() -> None:
        for _ in range(plan.products):
            torch.mm(left, right, out=out)

    there = [torch.zeros_like(one) for one in tensors]

    def park() -> None:
        _ended([client.offload(tensor, overlap=True) for tensor in tensors])

    def plain() -> None:
        for source, target in zip(tensors, there, strict=True):
            target.copy_(source)

    found = {"product alone": median_of(plan.repeats, product)}
    for name, once in (("parking", park), ("plain copies", plain)):
        copies = _as_long_as(found["product alone"], once, plan)
        found[f"{name} alone"] = median_of(plan.repeats, copies)
        ends = [_together(product, copies) for _ in range(plan.repeats + 1)][1:]
        found[f"product beside {name}"] = sorted(one[0] for one in ends)[len(ends) // 2]
        found[f"{name} beside the product"] = sorted(one[1] for one in ends)[len(ends) // 2]
        slower = found[f"product beside {name}"] / found["product alone"]
        ours = found[f"{name} beside the product"] / found[f"{name} alone"]
        findings.row(f"the product beside {name}", f"{slower:.3g} times as long")
        findings.row(f"{name} beside the product", f"{ours:.3g} times as long")
    findings.figures("seconds, beside a product", found)


def _as_long_as(seconds: float, once: Callable[[], None], plan: Plan) -> Callable[[], None]:
    """Again and again: copies that are over at once say little of what they cost a product.

    Not more often than what is under way has room for: it is given back when it has been copied.
    """
    most = max(1, MOST_UNDER_WAY_BYTES // (plan.beside_bytes * plan.beside_count))
    rounds = min(most, max(1, round(seconds / median_of(plan.repeats, once))))

    def again() -> None:
        for _ in range(rounds):
            once()

    return again


def _together(product: Callable[[], None], copies: Callable[[], None]) -> tuple[float, float]:
    """Until the product is done, and until the copies are, which begin when it has.

    They are enqueued from a stream of their own, so that neither waits for the other.
    """
    synchronize()
    if not torch.cuda.is_initialized():
        begun = time.perf_counter()
        copies()
        copied = time.perf_counter()
        product()
        return time.perf_counter() - copied, copied - begun
    begin, product_end, copies_begin, copies_end = (
        torch.cuda.Event(enable_timing=True) for _ in range(4)
    )
    apart = torch.cuda.Stream()
    begin.record()
    apart.wait_event(begin)
    product()
    product_end.record()
    with torch.cuda.stream(apart):
        copies_begin.record()
        copies()
        copies_end.record()
    synchronize()
    return begin.elapsed_time(product_end) / 1e3, copies_begin.elapsed_time(copies_end) / 1e3
