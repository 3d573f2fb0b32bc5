"""What a replay says: how long people waited, how often they stalled, what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from tests.benchmarks.figure import percentile
from tests.benchmarks.serving_model.engine import Engine, Story

HEADINGS = (
    "policy", "TTFT p50", "p95", "p99", "vs FCFS", "completion p50", "p95", "p99", "vs FCFS",
    "stall p50", "p95", "p99", "tokens/s", "vs FCFS", "moved", "refused",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Seconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Waits:
        """Their quantiles, to the millisecond."""
        p50, p95, p99 = (round(percentile(seconds, percent), 3) for percent in (50, 95, 99))
        return cls(p50=p50, p95=p95, p99=p99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One policy's."""

    first_token: Waits
    completion: Waits
    stall: Waits  # by which tokens come later than a reader of ten a second needs them
    tokens_per_second: float  # while there was work
    moved_bytes: int
    preemptions: int
    refused_share: float

    @classmethod
    def of(cls, engine: Engine, stories: Sequence[Story]) -> Summary:
        """Of a replay that has ended."""
        came = [one.arrival.at for one in stories]
        return cls(
            first_token=Waits.of(
                [one.first_token_at - at for one, at in zip(stories, came, strict=True)]
            ),
            completion=Waits.of(
                [one.last_token_at - at for one, at in zip(stories, came, strict=True)]
            ),
            stall=Waits.of([one.stalled_seconds for one in stories]),
            tokens_per_second=round(
                sum(one.done_tokens for one in stories) / engine.busy_seconds, 1
            ),
            moved_bytes=engine.moved.nbytes,
            preemptions=engine.moved.preemptions,
            refused_share=round(engine.refused / (engine.refused + len(stories)), 4),
        )


def document(summaries: Mapping[str, Summary]) -> dict[str, dict[str, object]]:
    """For the result file."""
    return {name: asdict(one) for name, one in summaries.items()}


def table(summaries: Mapping[str, Summary], *, beside: str) -> Iterator[str]:
    """A Markdown table; *beside* is whom the others are compared with."""
    yield _row(HEADINGS)
    yield _row(["---"] * len(HEADINGS))
    for name, one in summaries.items():
        yield _row([name, *_cells(one, summaries[beside])])


def _cells(one: Summary, other: Summary) -> list[str]:
    first, completion, stall = one.first_token, one.completion, one.stall
    return [
        *(f"{seconds:.2f}" for seconds in (first.p50, first.p95, first.p99)),
        f"{other.first_token.p99 / first.p99:.1f}x better",
        *(f"{seconds:.1f}" for seconds in (completion.p50, completion.p95, completion.p99)),
        f"{completion.p99 / other.completion.p99:.2f}x",
        *(f"{seconds:.1f}" for seconds in (stall.p50, stall.p95, stall.p99)),
        f"{one.tokens_per_second:,.0f}",
        f"{one.tokens_per_second / other.tokens_per_second:.2f}",
        f"{one.moved_bytes / 1e12:.2f} TB",
        f"{one.refused_share:.1%}",
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
