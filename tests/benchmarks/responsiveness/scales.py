"""How much is asked of which engine: an 8B model on a CUDA GPU, and a toy where shm GPUs stand in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks.long_prompt.shapes import REAL, TOY, Shape
from tests.benchmarks.serving_model import arrivals
from tests.benchmarks.serving_model.arrivals import Arrival

SEED = 1


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
        story = arrivals.a_burst(
            size, per_second=scale.base_per_second, seconds=scale.base_seconds, seed=SEED
        )
        yield Scenario(name=f"{size} at once", story=tuple(scale.fitted(story)))


def replays(
    scale: Scale, trace: Path, speeds: Sequence[float], seconds: float | None
) -> Iterator[Scenario]:
    """A trace around its highest burst, as fast as it was, and faster."""
    chosen = seconds or scale.trace_seconds
    height = arrivals.around_the_highest_burst(arrivals.read(trace), chosen)
    for speed in speeds:
        story = scale.fitted(arrivals.faster(height, speed))
        yield Scenario(name=f"{chosen:g} s of a trace at {speed:g}x", story=tuple(story))
