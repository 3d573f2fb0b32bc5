"""One tensor out and in, by size, and the copies that it competes with.

The ceiling is a plain copy on the device; pinned and pageable host memory are what users have now.
"""

from __future__ import annotations

import torch

import aqua_client
from tests.benchmarks.pacing import paced
from tests.gpu.benches.timing import (
    LINK_GB_PER_SECOND,
    PACED,
    Seconds,
    Taken,
    medians,
    size,
    until_back,
    until_done,
)
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import GIB, MIB, Plan

CEILING = "copy on the device"
LEAST_GOAL_BYTES, MANY_BYTES = 64 * MIB, GIB
RATE_GOAL, CALL_GOAL = " (goal: 0.9 of the ceiling)", " (goal: 15)"
OURS = ("offload", "fetch")


def measure(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """Rates by size, what a call holds its caller up, and both beside the ceiling and pinned memory."""
    for nbytes in plan.copy_sizes:
        goal = RATE_GOAL if nbytes >= LEAST_GOAL_BYTES else ""
        last = f"{size(nbytes)}, {PACED}, beside others{goal}"
        if findings.knows(last):
            continue
        with findings.attempt(last):
            one, slower = _out_and_in(client, nbytes, device, plan)
            rates = [name for name in one if name != "release" and not name.endswith(" call")]
            words = ", ".join(f"{name} {nbytes / one[name] / 1e9:.3g}" for name in rates)
            findings.figures(f"{size(nbytes)}, median seconds", one)
            findings.figures(f"{size(nbytes)}, {PACED}, median seconds", slower)
            findings.row(f"{size(nbytes)}, GB/s", words)
            words = ", ".join((*_beside(one), *_calls(one)))
            findings.row(f"{size(nbytes)}, beside others{goal}", words)
            findings.row(last, ", ".join(_beside({**one, **slower})))


def _beside(one: Seconds) -> list[str]:
    words = [f"{name} {one[CEILING] / one[name]:.2f} of the ceiling" for name in OURS]
    rival = "pinned" if "to pinned" in one else "pageable"
    for name, other in (("offload", f"to {rival}"), ("fetch", f"from {rival}")):
        words.append(f"{name} {one[other] / one[name]:.1f} times {rival}")
    return words


def _calls(one: Seconds) -> list[str]:
    """Host time: where copies are paced some of it is the pace's."""
    return [f"{name} {one[f'{name} call'] * 1e6:.1f} us a call{CALL_GOAL}" for name in OURS]


def _out_and_in(
    client: aqua_client.Client, nbytes: int, device: str, plan: Plan
) -> tuple[Seconds, Seconds]:
    """As fast as it is, and paced. Ours first: slabs would not stay unused as long as rivals take."""
    rounds = 1 + (plan.repeats if nbytes < MANY_BYTES else min(plan.repeats, 3))
    tensor = torch.empty(nbytes, dtype=torch.uint8, device=device).random_(0, 256)
    out = torch.zeros_like(tensor)
    taken, slower = Taken(), Taken()
    for into, rate in ((taken, None), (slower, LINK_GB_PER_SECOND * 1e9)):
        with paced(rate) as pace:
            for _ in range(rounds):
                _ours(client, tensor, out, into)
            for _ in range(rounds):
                with until_done(into[CEILING]):
                    out.copy_(tensor)
                    if pace is not None:
                        pace.wait(nbytes)
    _hosts(tensor, out, rounds, taken)
    return medians(taken), medians(slower)


def _ours(
    client: aqua_client.Client, tensor: torch.Tensor, out: torch.Tensor, taken: Taken
) -> None:
    with until_back(taken["offload"], taken["offload call"]):
        handle = client.offload(tensor)
    assert handle.tier == "peer", f"not all of it is on the peer: {handle.reason}"
    with until_back(taken["fetch"], taken["fetch call"]):
        handle.fetch(out=out)
    assert torch.equal(out, tensor)
    with until_done(taken["release"]):
        handle.release()


def _hosts(tensor: torch.Tensor, out: torch.Tensor, rounds: int, taken: Taken) -> None:
    hosts = {"pageable": torch.zeros(tensor.numel(), dtype=torch.uint8)}
    if tensor.is_cuda:
        hosts["pinned"] = torch.zeros(tensor.numel(), dtype=torch.uint8, pin_memory=True)
    for _ in range(rounds):
        for name, host in hosts.items():
            with until_done(taken[f"to {name}"]):
                host.copy_(tensor, non_blocking=True)
            with until_done(taken[f"from {name}"]):
                out.copy_(host, non_blocking=True)
