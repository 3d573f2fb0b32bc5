"""How much is asked of which engine: an 8B model on a CUDA GPU, and a toy where shm GPUs stand in.

A link is as fast for the toy as for the 8B model if to move a request takes as many iterations. So
its rate is divided by `link_part`: how many times as many bytes of KV cache the 8B model has of a mean
request of the burst in one iteration's time. A mean request has its prompt and half of its reply:
1,349 tokens of 128 KiB, 177 MB, in 6.4 ms, and 90 of 16 KiB, 1.5 MB, in 12.2 ms: 229. Over 45 GB/s a
request of either comes in 0.6 iterations so, over 375 GB/s in 0.07.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from tests.benchmarks.long_prompt.shapes import REAL, TOY, Shape
from tests.benchmarks.serving_model import arrivals
from tests.benchmarks.serving_model.arrivals import Arrival

SEED = 1
TYPICAL_BURST = 50  # requests, whose lengths are a mean request's


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """An engine, and by what the lengths of requests are divided for it."""

    shape: Shape
    blocks: int  # of its KV cache
    batch_tokens: int
    prompt_part: int
    reply_part: int
    base_per_second: float  # requests that come in any case, beside a burst
    base_seconds: float
    iteration_seconds: float  # of the requests that fit, decoding
    trace_seconds: float  # of a trace, around its highest burst
    longest_seconds: float = 180.0  # without a token of anybody, or after the last has come

    def fitted(self, story: Sequence[Arrival]) -> list[Arrival]:
        """The same requests, of lengths for this engine."""
        return [
            replace(
                one,
                prompt_tokens=max(1, one.prompt_tokens // self.prompt_part),
                reply_tokens=max(2, one.reply_tokens // self.reply_part),
            )
            for one in story
        ]


# Prompts a 32nd and replies half as long, so that a burst asks for several times the KV cache and
# is decoded for longer than it is read, as on a large GPU; the cache holds some eight requests.
SMALL = Scale(
    shape=TOY,
    blocks=48,
    batch_tokens=128,
    prompt_part=32,
    reply_part=2,
    base_per_second=1.0,
    base_seconds=6.0,
    iteration_seconds=0.0122,  # measured: p50 between two tokens of a reader's
    trace_seconds=20.0,
)
# 2 GiB of 128 KiB a token: some twelve requests of the trace's.
LARGE = Scale(
    shape=REAL,
    blocks=1024,
    batch_tokens=2048,
    prompt_part=1,
    reply_part=1,
    base_per_second=1.0,
    base_seconds=10.0,
    iteration_seconds=0.0064,  # of `serving_model`, with twelve that decode: not measured
    trace_seconds=120.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What comes when."""

    name: str
    story: tuple[Arrival, ...]


def bursts(scale: Scale, sizes: Sequence[int]) -> Iterator[Scenario]:
    """So many requests at once on a steady stream; lengths are those of the made-up trace."""
    for size in sizes:
        story = tuple(scale.fitted(_a_burst(scale, size)))
        yield Scenario(name=f"{size} at once", story=story)


def link_part(scale: Scale) -> float:
    """By what a link's rate is divided for this engine; 1 for the large one."""
    return _bytes_a_second(LARGE) / _bytes_a_second(scale)


def _bytes_a_second(scale: Scale) -> float:
    burst = scale.fitted(_a_burst(scale, TYPICAL_BURST))
    tokens = [one.prompt_tokens + one.reply_tokens / 2 for one in burst]
    return fmean(tokens) * scale.shape.token_bytes / scale.iteration_seconds


def replays(
    scale: Scale, trace: Path, speeds: Sequence[float], seconds: float | None
) -> Iterator[Scenario]:
    """A trace around its highest burst, as fast as it was, and faster."""
    chosen = seconds or scale.trace_seconds
    height = arrivals.around_the_highest_burst(arrivals.read(trace), chosen)
    for speed in speeds:
        story = scale.fitted(arrivals.faster(height, speed))
        yield Scenario(name=f"{chosen:g} s of a trace at {speed:g}x", story=tuple(story))


def _a_burst(scale: Scale, size: int) -> list[Arrival]:
    return arrivals.a_burst(
        size, per_second=scale.base_per_second, seconds=scale.base_seconds, seed=SEED
    )
