"""One prompt read and answered with each cache in turn, and how long that took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from aqua_client.client import Client
from aqua_client.integrations.kv_cache import AquaCache
from tests.benchmarks.long_prompt.shapes import Model, Shape
from tests.benchmarks.long_prompt.ways import ways


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Of one prompt and one cache: the best of some rounds."""

    shape: str
    prompt_tokens: int
    new_tokens: int
    way: str
    kv_bytes: int  # of all layers, at the end
    first_token_seconds: float
    tokens_per_second: float  # of those after the first
    resident_bytes: int | None  # the most of keys and values on the device, where it is known
    device_peak_bytes: int | None  # on CUDA: above what the weights take
    out_bytes: int  # through the client
    in_bytes: int
    tier: str
    answer: tuple[int, ...]

    @property
    def key(self) -> str:
        """What it is of."""
        return key(self.shape, self.prompt_tokens, self.way)


def key(shape: object, prompt_tokens: object, way: object) -> str:
    """A row's, by which it is kept."""
    return f"{shape}, {prompt_tokens} tokens, {way}"


class Clock(BaseStreamer):
    """Notes when tokens come, and what a cache holds then."""

    def __init__(self, cache: DynamicCache) -> None:
        self._cache = cache
        self.times = [time.perf_counter()]
        self.resident_bytes: int | None = None

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002 - what came is in the answer
        """Tokens on the CPU: on CUDA all that they hang on is over."""
        self.times.append(time.perf_counter())
        if isinstance(self._cache, AquaCache):
            self.resident_bytes = max(self.resident_bytes or 0, self._cache.resident_bytes)

    def end(self) -> None:
        """No more."""


def measure(
    client: Client,
    model: Model,
    shape: Shape,
    device: torch.device,
    *,
    prompt_tokens: int,
    wanted: Callable[[str], bool] = lambda _: True,
) -> Iterator[Row]:
    """A row for each of the ways that is wanted; each takes its turn in every round."""
    made = {name: make for name, make in ways(client, device).items() if wanted(name)}
    best: dict[str, Row] = {}
    for _ in range(shape.rounds):
        for name, make in made.items():
            row = _once(client, model, shape, device, prompt_tokens, name, make)
            best[name] = _better(best.get(name, row), row)
    yield from best.values()


def _once(
    client: Client,
    model: Model,
    shape: Shape,
    device: torch.device,
    prompt_tokens: int,
    name: str,
    make: Callable[[], DynamicCache],
) -> Row:
    generator = torch.Generator().manual_seed(prompt_tokens)
    prompt = torch.randint(0, 1024, (1, prompt_tokens), generator=generator).to(device)
    cache = make()
    clock = Clock(cache)
    weights_bytes = _peak_bytes(device, begin=True)
    before = _moved(client, cache)
    answer = model.generate(
        prompt,
        past_key_values=cache,
        streamer=clock,
        max_new_tokens=shape.new_tokens,
        do_sample=False,
    )
    moved = _moved(client, cache)
    _, _, first, *_, last = clock.times  # at the start, with the prompt, and by token
    return Row(
        shape=shape.name,
        prompt_tokens=prompt_tokens,
        new_tokens=shape.new_tokens,
        way=name,
        kv_bytes=(prompt_tokens + shape.new_tokens - 1) * shape.token_bytes,
        first_token_seconds=first - clock.times[0],
        tokens_per_second=(shape.new_tokens - 1) / (last - first),
        resident_bytes=clock.resident_bytes,
        device_peak_bytes=_peak_bytes(device) - weights_bytes if device.type == "cuda" else None,
        out_bytes=moved["out"] - before["out"],
        in_bytes=moved["in"] - before["in"],
        tier="" if not isinstance(cache, AquaCache) else _tier(client),
        answer=tuple(answer[0, prompt_tokens:].tolist()),
    )


def _better(one: Row, other: Row) -> Row:
    assert one.answer == other.answer, "the same prompt was answered otherwise"
    return replace(
        other,
        first_token_seconds=min(one.first_token_seconds, other.first_token_seconds),
        tokens_per_second=max(one.tokens_per_second, other.tokens_per_second),
    )


def _peak_bytes(device: torch.device, *, begin: bool = False) -> int:
    if device.type != "cuda":
        return 0
    if begin:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device)


def _moved(client: Client, cache: DynamicCache) -> dict[str, int]:
    if not isinstance(cache, AquaCache):  # what is on its way yet is another's
        return {"out": 0, "in": 0}
    found = client.stats()
    return {
        way: sum(int(str(found[f"{tier}_{way}_bytes"])) for tier in ("peer", "host"))
        for way in ("out", "in")
    }


def _tier(client: Client) -> str:
    found = client.stats()
    return "+".join(tier for tier in ("peer", "host") if found[f"{tier}_bytes"])
