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
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import Plan


def measure(place: Place, plan: Plan, findings: Findings) -> None:
    """Products a second, alone and beside each."""
    found = {"alone": _products(place.torch_device, plan)}
    with place.tenant() as scrubbed, place.tenant() as reading:
        found["beside a tenant that does nothing"] = _products(place.torch_device, plan)
        found["while slabs are scrubbed"] = _while_scrubbed(scrubbed, place, plan)
        reading.ask("copy_on")
        found["while slabs are read and written"] = _products(place.torch_device, plan)
        copied = reading.ask("stop_copying")
        assert not copied["failure"], copied["failure"]
    for name, seconds in found.items():
        findings.row(name, f"{seconds / found['alone']:.3g} times as long")
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
    ends_at = time.monotonic() + plan.stall_seconds
    while time.monotonic() < ends_at or len(taken) < plan.repeats:
        begun = time.perf_counter()
        torch.mm(left, right, out=out)
        synchronize()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)
