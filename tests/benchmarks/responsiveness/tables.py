"""The rows as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.responsiveness.replay import Summary
from tests.benchmarks.responsiveness.ways import FCFS

HEADINGS = (
    "what comes", "way", "TTFT p50, p95, p99", "vs FCFS", "between tokens p50, p95, p99",
    "completion p50, p95, p99", "vs FCFS", "stall p50, p95, p99", "tokens/s", "vs FCFS", "moved",
)  # fmt: skip
NO_PLOTS = "no picture: matplotlib is not installed (pip install 'aqua-broker[plots]')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to serve one scenario."""

    scenario: str
    way: str
    summary: Summary

    @property
    def key(self) -> str:
        """By which it is kept."""
        return key(self.scenario, self.way)

    def document(self) -> dict[str, object]:
        """For the file."""
        return {"scenario": self.scenario, "way": self.way, **asdict(self.summary)}

    @classmethod
    def of(cls, kept: Mapping[str, object]) -> Row:
        """As it was kept."""
        figures = {
            name: tuple(one) if isinstance(one, list) else one
            for name, one in kept.items()
            if name not in {"scenario", "way"}
        }
        summary = Summary(**figures)  # type: ignore[arg-type] # what `document` made
        return cls(scenario=str(kept["scenario"]), way=str(kept["way"]), summary=summary)


def key(scenario: str, way: str) -> str:
    """Of a row."""
    return f"{scenario}, {way}"


def table(rows: Mapping[str, Row]) -> Iterator[str]:
    """In Markdown, each beside FCFS where that was measured."""
    yield _line(HEADINGS)
    yield _line(["---"] * len(HEADINGS))
    for row in rows.values():
        plain = rows.get(key(row.scenario, FCFS))
        yield _line(_cells(row, None if plain is None else plain.summary))


def _cells(row: Row, plain: Summary | None) -> list[str]:
    one = row.summary
    moved = f"{one.moved_bytes / 1e6:,.0f} MB"
    better = worse = rate = ""
    if plain is not None:
        better = f"{plain.first_token[2] / one.first_token[2]:.1f}x better"
        worse = f"{one.completion[2] / plain.completion[2]:.2f}x"
        rate = f"{one.tokens_per_second / plain.tokens_per_second:.2f}"
    return [
        row.scenario,
        row.way,
        _seconds(one.first_token, 2),
        better,
        f"{', '.join(f'{1000 * each:.0f}' for each in one.between_tokens)} ms",
        _seconds(one.completion, 1),
        worse,
        _seconds(one.stall, 1),
        f"{one.tokens_per_second:,.0f}",
        rate,
        f"{moved}, {one.recomputed} recomputed" if one.recomputed else moved,
    ]


def _seconds(waits: Sequence[float], digits: int) -> str:
    return f"{', '.join(f'{one:.{digits}f}' for one in waits)} s"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(rows: Mapping[str, Row], path: Path) -> str:
    """Time to first token over the order of arrival, of the last scenario; what was done."""
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        return NO_PLOTS
    last = [*rows.values()][-1].scenario
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for row in rows.values():
        if row.scenario == last:
            axes.plot(row.summary.first_tokens, label=row.way)
    axes.set(xlabel="order of arrival", ylabel="time to first token, s", yscale="log", title=last)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return f"drawn: {path}"
