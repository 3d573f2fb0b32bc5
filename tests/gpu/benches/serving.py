"""What a server and its users gain: long prompts, a burst, adapters; each also with paced copies.

The GPU lends to itself, so that a slab is nearer than any neighbour's: what is *paced* has copies as
slow as over NVLink 4, at 375 GB/s as somebody measured it between two H100.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import torch

import aqua_client
from tests.benchmarks.pacing import paced
from tests.benchmarks.threads import one_thread
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.plan import QUICK, Plan

LINK_GB_PER_SECOND = 375.0
PACED = f"*paced* to {LINK_GB_PER_SECOND:g} GB/s"
BURST = 50


@one_thread()
def prompt(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """Long prompts beside transformers' own offloaded cache, and without any offload."""
    _prompts(client, device, plan, findings, slice(0, 2))


@one_thread()
def longest(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """The longest of them."""
    _prompts(client, device, plan, findings, slice(2, 3))


def _prompts(
    client: aqua_client.Client, device: str, plan: Plan, findings: Findings, which: slice
) -> None:
    from tests.benchmarks.long_prompt.measuring import measure
    from tests.benchmarks.long_prompt.shapes import REAL, TOY, model
    from tests.benchmarks.long_prompt.ways import LEASES

    shape = replace(TOY, prompts=(64, 128, 192)) if plan is QUICK else REAL
    shape = replace(shape, rounds=1)
    where = torch.device(device)
    llama = model(shape, where)
    for tokens in shape.prompts[which]:
        rows = [*measure(client, llama, shape, where, prompt_tokens=tokens)]
        with paced(LINK_GB_PER_SECOND * 1e9):
            again = measure(
                client, llama, shape, where, prompt_tokens=tokens, wanted=lambda one: one == LEASES
            )
            rows += [replace(one, way=f"{one.way}, {PACED}") for one in again]
        for row in rows:
            words = f"first token {row.first_token_seconds:.3g} s, {row.tokens_per_second:.3g}/s"
            findings.row(row.key, words)
            findings.figures(row.key, asdict(row))


@one_thread()
def burst(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """One engine, shared in four ways; those that matter most come first."""
    from tests.benchmarks.responsiveness import scales
    from tests.benchmarks.responsiveness.__main__ import measure
    from tests.benchmarks.responsiveness.replay import engine
    from tests.benchmarks.responsiveness.ways import FCFS, LEASES, lent_by, ways

    scale = scales.SMALL if plan is QUICK else scales.LARGE
    (scenario,) = scales.bursts(scale, [BURST])
    if plan is QUICK:
        few = (replace(one, at=0.0, reply_tokens=8) for one in scenario.story[:3])
        scenario = replace(scenario, story=tuple(few))
    llama = engine(scale, torch.device(device))
    found = ways(lent_by(client), LINK_GB_PER_SECOND)
    for way in sorted(found, key=lambda one: not one.name.startswith((FCFS, LEASES))):
        row = measure(scenario, way, scale=scale, llama=llama)
        one = row.summary
        findings.row(
            row.key,
            f"TTFT p99 {one.first_token[2]:.3g} s, stall p95 {one.stall[1]:.3g} s, "
            f"completion p99 {one.completion[2]:.3g} s, {one.tokens_per_second:.0f} tokens/s",
        )
        findings.figures(row.key, row.document())


@one_thread()
def adapters(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """A switch of LoRA adapters: leases beside DRAM."""
    try:
        from tests.benchmarks import adapters as measuring
    except ImportError as error:
        findings.row("adapters", f"left out: {error}")
        return
    case = measuring.TINY if plan is QUICK else measuring.LARGE
    for rate, note in ((None, ""), (LINK_GB_PER_SECOND * 1e9, f", {PACED}")):
        with paced(rate):
            leases, dram = measuring.compare(client, replace(case, device=device))
        for name, one in (("leases", leases), ("DRAM", dram)):
            middle = {key: each / 1e3 for key, each in one.medians().items()}
            words = ", ".join(f"{key} {milliseconds(each)}" for key, each in middle.items())
            findings.row(f"{case.adapters} adapters, {name}{note}", words)
            findings.figures(f"adapters, {name}{note}", asdict(one))


MEASURES: dict[str, Callable[[aqua_client.Client, str, Plan, Findings], None]] = {
    "prompt": prompt,
    "longest": longest,
    "burst": burst,
    "adapters": adapters,
}
