"""What a server and its users gain: long prompts, a burst, adapters; each also with paced copies.

What is *paced* has copies as slow as over a link (`timing`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

import aqua_client
from tests.benchmarks.pacing import paced
from tests.gpu.benches.timing import LINK_GB_PER_SECOND, PACED
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.plan import QUICK, Plan
from tests.gpu.tasks import BURSTS, SPEEDS

if TYPE_CHECKING:  # transformers is not loaded for what needs none
    from tests.benchmarks.responsiveness.replay import Summary
    from tests.benchmarks.responsiveness.scales import Scenario

TRACE_SECONDS = 15.0  # around the highest burst of the made-up hour: some 120 requests
WARM_TOKENS = 32
FEW = 3  # requests of a rehearsal


def prompt(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """Long prompts beside transformers' own offloaded cache, and without any offload."""
    _prompts(client, device, plan, findings, slice(0, 2))


def longest(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """The longest of them."""
    _prompts(client, device, plan, findings, slice(2, 3))


def _prompts(
    client: aqua_client.Client, device: str, plan: Plan, findings: Findings, which: slice
) -> None:
    from tests.benchmarks.long_prompt.measuring import key, measure
    from tests.benchmarks.long_prompt.shapes import REAL, TOY, model
    from tests.benchmarks.long_prompt.ways import LEASES, ways

    shape = replace(TOY, prompts=(64, 128, 192)) if plan is QUICK else REAL
    shape = replace(shape, rounds=1)
    where = torch.device(device)
    llama = model(shape, where)
    warm = replace(shape, new_tokens=4)  # what only the first costs is of none of them
    for _ in measure(client, llama, warm, where, prompt_tokens=WARM_TOKENS):
        pass
    for tokens, (name, rate, suffix) in itertools.product(
        shape.prompts[which],
        ((LEASES, None, ""), (LEASES, LINK_GB_PER_SECOND * 1e9, f", {PACED}"), ("", None, "")),
    ):
        wanted = [one for one in ways(client, where) if (one == LEASES) is bool(name)]
        keys = [f"{key(shape.name, tokens, way)}{suffix}" for way in wanted]
        if all(map(findings.knows, keys)):
            continue
        with findings.attempt(keys[0]), paced(rate):
            for row in measure(
                client, llama, shape, where, prompt_tokens=tokens, wanted=wanted.__contains__
            ):
                told = replace(row, way=f"{row.way}{suffix}")
                words = (
                    f"first token {row.first_token_seconds:.3g} s, {row.tokens_per_second:.3g}/s"
                )
                findings.figures(told.key, asdict(told))
                findings.row(told.key, words)


def burst(
    size: int, client: aqua_client.Client, device: str, plan: Plan, findings: Findings
) -> None:
    """So many requests at once."""
    from tests.benchmarks.responsiveness.scales import LARGE, SMALL, bursts

    (scenario,) = bursts(SMALL if plan is QUICK else LARGE, [size])
    _shared(scenario, client, device, plan, findings)


def trace(
    speed: float, client: aqua_client.Client, device: str, plan: Plan, findings: Findings
) -> None:
    """Requests as they came in a real hour, by its quantiles, at their speed and faster."""
    from tests.benchmarks.responsiveness.scales import LARGE, SEED, SMALL, Scenario
    from tests.benchmarks.serving_model import arrivals

    scale = SMALL if plan is QUICK else LARGE
    height = arrivals.around_the_highest_burst(arrivals.an_hour(SEED), TRACE_SECONDS)
    story = tuple(scale.fitted(arrivals.faster(height, speed)))
    scenario = Scenario(name=f"{TRACE_SECONDS:g} s of a made-up trace at {speed:g}x", story=story)
    _shared(scenario, client, device, plan, findings)


def _shared(
    scenario: Scenario,
    client: aqua_client.Client,
    device: str,
    plan: Plan,
    findings: Findings,
) -> None:
    """One engine, shared in four ways; those that matter most come first."""
    from tests.benchmarks.responsiveness import scales, tables
    from tests.benchmarks.responsiveness.__main__ import measure
    from tests.benchmarks.responsiveness.replay import engine
    from tests.benchmarks.responsiveness.ways import FCFS, LEASES, Links, lent_by, ways

    scale = scales.SMALL if plan is QUICK else scales.LARGE
    if plan is QUICK:
        few = (replace(one, at=0.0, reply_tokens=8) for one in scenario.story[:FEW])
        scenario = replace(scenario, story=tuple(few))
    llama = engine(scale, torch.device(device))
    found = ways(lent_by(client), Links(leases=LINK_GB_PER_SECOND))
    for way in sorted(found, key=lambda one: not one.name.startswith((FCFS, LEASES))):
        key = tables.key(scenario.name, way.name)
        if findings.knows(key):
            continue
        with findings.attempt(key):
            row = measure(scenario, way, scale=scale, llama=llama)
            findings.figures(key, row.document())
            findings.row(key, _said(row.summary))


def _said(one: Summary) -> str:
    return (
        f"TTFT p99 {one.first_token[2]:.3g} s, stall p95 {one.stall[1]:.3g} s, "
        f"completion p99 {one.completion[2]:.3g} s, {one.tokens_per_second:.0f} tokens/s"
    )


def adapters(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """A switch of LoRA adapters: leases beside DRAM."""
    try:
        from tests.benchmarks import adapters as measuring
    except ImportError as error:
        findings.row("adapters", f"left out: {error}")
        return
    case = measuring.TINY if plan is QUICK else measuring.LARGE
    for rate, note in ((None, ""), (LINK_GB_PER_SECOND * 1e9, f", {PACED}")):
        with findings.attempt(f"{case.adapters} adapters{note}"), paced(rate):
            leases, dram = measuring.compare(client, replace(case, device=device))
            for name, one in (("leases", leases), ("DRAM", dram)):
                middle = {key: each / 1e3 for key, each in one.medians().items()}
                words = ", ".join(f"{key} {milliseconds(each)}" for key, each in middle.items())
                findings.figures(f"adapters, {name}{note}", asdict(one))
                findings.row(f"{case.adapters} adapters, {name}{note}", words)


MEASURES: dict[str, Callable[[aqua_client.Client, str, Plan, Findings], None]] = {
    "prompt": prompt,
    "longest": longest,
    **{f"burst{size}": partial(burst, size) for size in BURSTS},
    **{f"trace{speed}x": partial(trace, speed) for speed in SPEEDS},
    "adapters": adapters,
}
