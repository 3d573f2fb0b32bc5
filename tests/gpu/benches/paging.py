"""One tensor out and in, by size, and the copies that it competes with.

The ceiling is a plain copy on the device; pinned and pageable host memory are what users have now.
"""

from __future__ import annotations

from collections import defaultdict

import torch

import aqua_client
from tests.gpu.benches.timing import Seconds, Taken, medians, size, until_back, until_done
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import GIB, MIB, Plan

CEILING = "copy on the device"
LEAST_GOAL_BYTES, MANY_BYTES = 64 * MIB, GIB
CALL_GOAL = " (goal: 15 us a call)"
GOAL = " (goal: 0.9 of the ceiling, 15 us a call)"


def measure(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """Rates by size, what a call holds its caller up, and both beside the ceiling and pinned memory."""
    for nbytes in plan.copy_sizes:
        beside = f"{size(nbytes)}, beside others{GOAL if nbytes >= LEAST_GOAL_BYTES else CALL_GOAL}"
        if findings.knows(beside):
            continue
        repeats = plan.repeats if nbytes < MANY_BYTES else min(plan.repeats, 3)
        with findings.attempt(beside):
            one = _out_and_in(client, nbytes, device, repeats)
            rates = [name for name in one if name != "release" and not name.endswith(" call")]
            words = ", ".join(f"{name} {nbytes / one[name] / 1e9:.3g}" for name in rates)
            findings.figures(f"{size(nbytes)}, median seconds", one)
            findings.row(f"{size(nbytes)}, GB/s", words)
            findings.row(beside, ", ".join(_beside(one)))


def _beside(one: Seconds) -> list[str]:
    words = [
        f"{name} {one[CEILING] / one[name]:.2f} of the ceiling, {one[f'{name} call'] * 1e6:.1f} us a call"
        for name in ("offload", "fetch")
    ]
    rival = "pinned" if "to pinned" in one else "pageable"
    for name, other in (("offload", f"to {rival}"), ("fetch", f"from {rival}")):
        words.append(f"{name} {one[other] / one[name]:.1f} times {rival}")
    return words


def _out_and_in(client: aqua_client.Client, nbytes: int, device: str, repeats: int) -> Seconds:
    """Ours first, round after round: what the rivals take slabs would not stay unused so long."""
    tensor = torch.empty(nbytes, dtype=torch.uint8, device=device).random_(0, 256)
    out = torch.zeros_like(tensor)
    taken: Taken = defaultdict(list)
    for _ in range(repeats + 1):
        with until_back(taken["offload"], taken["offload call"]):
            handle = client.offload(tensor)
        assert handle.tier == "peer", f"not all of it is on the peer: {handle.reason}"
        with until_back(taken["fetch"], taken["fetch call"]):
            handle.fetch(out=out)
        assert torch.equal(out, tensor)
        with until_done(taken["release"]):
            handle.release()
    hosts = {"pageable": torch.zeros(nbytes, dtype=torch.uint8)}
    if tensor.is_cuda:
        hosts["pinned"] = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)
    for _ in range(repeats + 1):
        with until_done(taken[CEILING]):
            out.copy_(tensor)
        for name, host in hosts.items():
            with until_done(taken[f"to {name}"]):
                host.copy_(tensor, non_blocking=True)
            with until_done(taken[f"from {name}"]):
                out.copy_(host, non_blocking=True)
    return medians(taken)
