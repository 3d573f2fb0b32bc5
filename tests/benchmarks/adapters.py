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
HOST_BYTES = 16 * 1024 * MIB  # at most; what is not needed is not taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, on which device, and how many adapters it has."""

    hidden: int
    layers: int
    adapters: int = ADAPTERS
    requests: int = REQUESTS
    warm: int = WARM
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def base(self) -> LlamaForCausalLM:
        """The model, with random weights."""
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=self.hidden,
            intermediate_size=2 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=8,
            num_key_value_heads=8,
        )
        with torch.device(self.device):
            made: LlamaForCausalLM = torch.nn.Module.to(LlamaForCausalLM(config), self.dtype)
        made.eval()
        return made


SMALL = Case(hidden=512, layers=4)
LARGE = Case(hidden=4096, layers=32, requests=300, dtype=torch.bfloat16)  # as large as 8B's
TINY = Case(hidden=64, layers=1, adapters=30, requests=40, warm=10)
CLOCK = time.perf_counter


@dataclass(slots=True)
class Times:
    """Of one pool, in milliseconds."""

    hits: list[float] = field(default_factory=list)  # switches among those in the model
    misses: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        """Of each, where there is one."""
        kinds = {"hit": self.hits, "miss": self.misses, "request": self.requests}
        return {name: statistics.median(row) for name, row in kinds.items() if row}


def compare(client: aqua_client.Client, case: Case) -> tuple[Times, Times]:
    """Parked in leases, and in the process's own memory."""
    with host_client(host_limit_bytes=HOST_BYTES) as host:
        leases, dram = _serve([_filled(client, case), _filled(host, case)], case)
        return leases, dram


def measure(socket: str) -> Iterator[Figure]:
    """Measure against the node at *socket*."""
    with (
        one_thread(),
        aqua_client.connect(socket=socket, home_gpu="SHM-0") as client,
        host_client(host_limit_bytes=1024 * MIB) as host,
    ):
        pools = [_filled(client, SMALL), _filled(host, SMALL)]
        leases, dram = _serve(pools, SMALL)
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


def _filled(client: aqua_client.Client, case: Case) -> AdapterPool:
    """A pool with all adapters, each with weights of its own."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(
        r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what transformers and peft plan
        model = peft.get_peft_model(case.base(), lora, _name(0))
        pool = AdapterPool(model, resident=1, client=client)  # peft adds sooner where there are few
        for number in range(1, case.adapters):
            pool.add(_name(number), lora)
    pool.limit = RESIDENT
    return pool


def _name(number: int) -> str:
    return f"adapter-{number}"


def _serve(pools: Sequence[AdapterPool], case: Case) -> tuple[Times, ...]:
    """The same requests for each, in turn; their outputs are compared."""
    generator = torch.Generator().manual_seed(1)
    popularity = 1 / torch.arange(1, case.adapters + 1, dtype=torch.float64)
    order = torch.multinomial(popularity, case.requests, replacement=True, generator=generator)
    tokens = torch.arange(TOKENS, device=case.device)[None]
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
            if tokens.is_cuda:
                torch.cuda.synchronize()
            ended = CLOCK()
            if number >= case.warm:
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
