"""What a switch of LoRA adapters costs, and a request with it: parked in leases, beside DRAM.

200 adapters of one model, 20 of which stay in it; popularity is Zipf's. Two pools get the same
requests in turn: one parks in leases of other GPUs, one in the process's own memory (a client without
a daemon). Beside them: peft's own `set_adapter` among those that are in the model, and a `clone` of
an adapter's bytes, the least that bringing one back can cost.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import aqua_client
from aqua_client.integrations.adapters import AdapterPool
from tests.benchmarks.figure import Figure, percentile
from tests.benchmarks.threads import one_thread
from tests.integrations.hosting import host_client
from tests.nodes import MIB

SUBJECT = "adapters"
ADAPTERS = 200
RESIDENT = 20
REQUESTS = 500
WARM = 100  # of the requests, not counted
TOKENS = 16
MODEL = LlamaConfig(
    vocab_size=256,
    hidden_size=512,
    intermediate_size=1024,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=8,
)
CLOCK = time.perf_counter


@dataclass(slots=True)
class Times:
    """Of one pool, in milliseconds."""

    hits: list[float] = field(default_factory=list)  # switches among those in the model
    misses: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)


def measure(socket: str) -> Iterator[Figure]:
    """Measure against the node at *socket*."""
    with (
        one_thread(),
        aqua_client.connect(socket=socket, home_gpu="SHM-0") as client,
        host_client(host_limit_bytes=1024 * MIB) as host,
    ):
        pools = [_filled(client), _filled(host)]
        leases, dram = _serve(pools)
        where = "" if client.stats()["host_bytes"] == 0 else ", part of it in host memory"
        size = _adapter_bytes(pools[0])
        clone = statistics.median(_milliseconds(torch.ones(size, dtype=torch.uint8).clone))
        own = statistics.median(_milliseconds(partial(_set, pools[0].model, pools[0].active)))
    yield from _figures(leases, dram, where=where)
    yield Figure(
        subject=SUBJECT,
        name=f"a switch to one in the model, p50 of {len(leases.hits)}",
        value=statistics.median(leases.hits),
        unit="ms",
        rival=f"DRAM {statistics.median(dram.hits):.2f} ms, "
        f"peft's `set_adapter` among {RESIDENT} {own:.2f} ms",
    )
    yield Figure(
        subject=SUBJECT,
        name=f"a switch to a parked one of {size / MIB:.2f} MiB, p50 of {len(leases.misses)}{where}",
        value=statistics.median(leases.misses),
        unit="ms",
        rival=f"DRAM {statistics.median(dram.misses):.2f} ms, a `clone` of it {clone:.2f} ms",
    )


def _figures(leases: Times, dram: Times, *, where: str) -> Iterator[Figure]:
    share = 100 * len(leases.hits) / (len(leases.hits) + len(leases.misses))
    for name, of in (("p50", statistics.median), ("p99", lambda row: percentile(row, 99))):
        yield Figure(
            subject=SUBJECT,
            name=f"a request of {TOKENS} tokens, {name}, {ADAPTERS} adapters, room for {RESIDENT}, "
            f"{share:.0f} % in the model{where}",
            value=of(leases.requests),
            unit="ms",
            rival=f"DRAM {of(dram.requests):.1f} ms",
        )


def _filled(client: aqua_client.Client) -> AdapterPool:
    """A pool with all adapters, each with weights of its own."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(
        r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what transformers and peft plan
        model = peft.get_peft_model(LlamaForCausalLM(MODEL).eval(), lora, _name(0))
        pool = AdapterPool(model, resident=1, client=client)  # peft adds sooner where there are few
        for number in range(1, ADAPTERS):
            pool.add(_name(number), lora)
    pool.limit = RESIDENT
    return pool


def _name(number: int) -> str:
    return f"adapter-{number}"


def _serve(pools: Sequence[AdapterPool]) -> tuple[Times, ...]:
    """The same requests for each, in turn; their outputs are compared."""
    generator = torch.Generator().manual_seed(1)
    popularity = 1 / torch.arange(1, ADAPTERS + 1, dtype=torch.float64)
    order = torch.multinomial(popularity, REQUESTS, replacement=True, generator=generator)
    tokens = torch.arange(TOKENS)[None]
    times = tuple(Times() for _ in pools)
    for number, name in enumerate(map(_name, order.tolist())):
        outputs = []
        for pool, row in zip(pools, times, strict=True):
            is_hit = name in pool.resident
            start = CLOCK()
            pool.activate(name)
            switched = CLOCK()
            with torch.no_grad():
                outputs.append(pool.model(tokens).logits)
            ended = CLOCK()
            if number >= WARM:
                (row.hits if is_hit else row.misses).append((switched - start) * 1e3)
                row.requests.append((ended - start) * 1e3)
        assert torch.equal(*outputs), "the figures are of adapters that did not come back"
    return times


def _set(model: peft.PeftModel, name: str) -> None:
    model.set_adapter(name, inference_mode=True)


def _adapter_bytes(pool: AdapterPool) -> int:
    return sum(
        one.nbytes for path, one in pool.model.named_parameters() if f".{pool.active}." in path
    )


def _milliseconds(call: Callable[[], object]) -> Iterator[float]:
    for _ in range(30):
        start = CLOCK()
        call()
        yield (CLOCK() - start) * 1e3
