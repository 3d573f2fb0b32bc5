"""What lending costs the lender: a product runs there while slabs are scrubbed, or read and written.

The tenants are processes of their own, as they would be; on one GPU they share its time, too, and on
stand-in GPUs the machine's cores.
"""

from __future__ import annotations

import statistics
import time

import torch

from tests.contract.places import Place, Tenant
from tests.gpu.benches.timing import synchronize
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.plan import Plan

WARM = 3  # products, until libraries are loaded and clocks are up


def measure(place: Place, plan: Plan, findings: Findings) -> None:
    """What a product takes, alone and beside each."""
    found: dict[str, float] = {}

    def tell(beside: str, seconds: float) -> None:
        found[beside] = seconds
        words = f"{milliseconds(seconds)}, {seconds / found['alone']:.3g} times as long"
        findings.row(f"a product {beside}", words)

    tell("alone", _products(place.torch_device, plan))
    with findings.attempt("a lender's slow-down"), place.tenant() as one, place.tenant() as reading:
        tell("beside a tenant that does nothing", _products(place.torch_device, plan))
        tell("while slabs are scrubbed", _while_scrubbed(one, place, plan))
        reading.ask("copy_on")
        tell("while slabs are read and written", _products(place.torch_device, plan))
        copied = reading.ask("stop_copying")
        assert not copied["failure"], copied["failure"]
    findings.figures("median seconds of a product", found)


def _while_scrubbed(tenant: Tenant, place: Place, plan: Plan) -> float:
    """Leases come and go, each of which is scrubbed before the tenant gets it."""
    tenant.begin("cycles", count=plan.scrubs, nbytes=place.slab_bytes, byte=0)
    seconds = _products(place.torch_device, plan)
    tenant.answer(seconds=200)
    return seconds


def _products(device: str, plan: Plan) -> float:
    """The median of one product's seconds, over some time."""
    side = plan.product_side
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    taken: list[float] = []
    for _ in range(WARM):
        torch.mm(left, right, out=out)
    synchronize()
    ends_at = time.monotonic() + plan.stall_seconds
    while time.monotonic() < ends_at or len(taken) < plan.repeats:
        begun = time.perf_counter()
        torch.mm(left, right, out=out)
        synchronize()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)
