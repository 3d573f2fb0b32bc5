"""One engine, one way to share it, one story of arrivals: when each token came."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

from aqua_client.integrations.transformers import attach
from aqua_client.integrations.transformers.copies import Pools
from aqua_client.integrations.transformers.fair import NAME as FAIR
from tests.benchmarks.figure import percentile
from tests.benchmarks.long_prompt.shapes import model
from tests.benchmarks.responsiveness.scales import Scale
from tests.benchmarks.serving_model.arrivals import Arrival
from tests.integrations.transformers.engines import batching, greedy, started

READER_TOKENS_PER_SECOND = 10.0
VOCABULARY = 1024
_MOVED = ("written_ahead_bytes", "tail_bytes", "restored_bytes")


class Engine(Protocol):
    """What is used of a model."""

    def init_continuous_batching(self, **how: object) -> ContinuousBatchingManager: ...

    def set_attn_implementation(self, name: str, /) -> None: ...


@dataclass(slots=True)
class Story:
    """One request, in seconds of one clock."""

    came_at: float
    tokens: list[float] = field(default_factory=list)  # when each came
    is_over: bool = False

    @property
    def stalled_seconds(self) -> float:
        """By how much tokens came later than a reader needs them who begins at the first."""
        first, pace = self.tokens[0], 1 / READER_TOKENS_PER_SECOND
        return max(0.0, *(at - first - i * pace for i, at in enumerate(self.tokens)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of one way; seconds, and (p50, p95, p99) of them."""

    first_token: tuple[float, float, float]
    between_tokens: tuple[float, float, float]
    completion: tuple[float, float, float]
    stall: tuple[float, float, float]
    tokens_per_second: float  # from the first arrival to the last token
    moved_bytes: int
    recomputed: int  # times that a request gave way without being kept
    first_tokens: tuple[float, ...]  # in order of arrival


def serve(
    arrivals: Sequence[Arrival],
    *,
    scale: Scale,
    llama: Engine,
    scheduler: str,
    client: Pools | None,
) -> Summary:
    """Serve them all. *client*: whose leases a request is parked in; None: nobody is parked.

    Raises:
        AssertionError: a request failed, or was not answered within the scale's longest seconds.
    """
    with ExitStack() as stack:
        manager = _manager(llama, scale, scheduler)
        is_stock = client is None and scheduler != FAIR
        paging = None if is_stock else attach(manager, client=client, parks=client is not None)
        stack.enter_context(started(manager))
        if paging is not None:
            stack.callback(paging.close)
        words = torch.Generator().manual_seed(1)
        _ask(manager, arrivals[0], words)  # what only the first request costs is nobody's wait
        _listen(manager, {}, until=time.perf_counter() + scale.longest_seconds, most=1)
        warm = dict(paging.stats()) if paging else {}
        stories = _replay(manager, arrivals, scale.longest_seconds, words)
        stats = dict(paging.stats()) if paging else {}
    done = {name: int(stats[name] - warm[name]) for name in stats}
    return _summary(
        stories,
        moved_bytes=sum(done.get(name, 0) for name in _MOVED),
        recomputed=done.get("recomputed", 0),
    )


def engine(scale: Scale, device: torch.device) -> Engine:
    """A model with random weights, the same each time."""
    made = cast("Engine", model(scale.shape, device))
    made.set_attn_implementation("sdpa")
    return made


def _manager(llama: Engine, scale: Scale, scheduler: str) -> ContinuousBatchingManager:
    return llama.init_continuous_batching(
        generation_config=greedy(),
        continuous_batching_config=batching(
            blocks=scale.blocks, scheduler_type=scheduler, max_batch_tokens=scale.batch_tokens
        ),
    )


def _replay(
    manager: ContinuousBatchingManager,
    arrivals: Sequence[Arrival],
    longest_seconds: float,
    words: torch.Generator,
) -> list[Story]:
    stories: dict[str, Story] = {}
    begin = time.perf_counter()
    for arrival in arrivals:
        _listen(manager, stories, until=begin + arrival.at)
        stories[_ask(manager, arrival, words)] = Story(begin + arrival.at)
    _listen(manager, stories, until=time.perf_counter() + longest_seconds, most=len(stories))
    assert all(story.is_over for story in stories.values()), "not all were answered"
    return list(stories.values())


def _ask(manager: ContinuousBatchingManager, arrival: Arrival, words: torch.Generator) -> str:
    """Each its own words: those of a burst would be one's prefixes otherwise, and be shared."""
    prompt = torch.randint(0, VOCABULARY, (arrival.prompt_tokens,), generator=words).tolist()
    request_id = manager.add_request(prompt, max_new_tokens=arrival.reply_tokens, streaming=True)
    assert request_id is not None
    return request_id


def _listen(
    manager: ContinuousBatchingManager,
    stories: dict[str, Story],
    *,
    until: float,
    most: int | None = None,
) -> None:
    """Note what comes, until then or until so many requests are over."""
    over = sum(story.is_over for story in stories.values())
    while (left := until - time.perf_counter()) > 0 and (most is None or over < most):
        output = manager.get_result(timeout=min(left, 1.0))
        if output is None:
            continue
        assert output.error is None, output.error
        over += output.is_finished()
        story = stories.get(output.request_id)
        if story is not None:
            fresh = len(output.generated_tokens) - len(story.tokens)
            story.tokens += [time.perf_counter()] * fresh
            story.is_over = output.is_finished()


def _summary(stories: Sequence[Story], *, moved_bytes: int, recomputed: int) -> Summary:
    first = [story.tokens[0] - story.came_at for story in stories]
    gaps = [late - soon for one in stories for soon, late in _pairs(one.tokens)]
    tokens = sum(len(story.tokens) for story in stories)
    seconds = max(story.tokens[-1] for story in stories) - stories[0].came_at
    return Summary(
        first_token=_waits(first),
        between_tokens=_waits(gaps),
        completion=_waits([story.tokens[-1] - story.came_at for story in stories]),
        stall=_waits([story.stalled_seconds for story in stories]),
        tokens_per_second=round(tokens / seconds, 1),
        moved_bytes=moved_bytes,
        recomputed=recomputed,
        first_tokens=tuple(round(one, 4) for one in first),
    )


def _pairs(times: Sequence[float]) -> Iterator[tuple[float, float]]:
    return itertools.pairwise(times)


def _waits(seconds: Sequence[float]) -> tuple[float, float, float]:
    p50, p95, p99 = (round(percentile(seconds, percent), 4) for percent in (50, 95, 99))
    return p50, p95, p99
