"""One figure: what was measured, beside what, what it should be, and whether it is.

Covers the record, its Markdown row and its JSON. Goals are printed, never asserted: a machine that
others use as well misses them without any fault of ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

HEADINGS = ("what", "measured", "beside it", "goal", "reached")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A value in its unit; with neither bound it has no goal, without a value it says why."""

    subject: str
    name: str
    value: float | None
    unit: str
    rival: str = ""  # what the same thing costs elsewhere, with its own unit
    at_most: float | None = None
    at_least: float | None = None
    why_not: str = ""  # why it was not measured

    @property
    def reached(self) -> bool | None:
        """Whether the goal is met; None where there is none, or nothing was measured."""
        if self.value is None or (self.at_most is None and self.at_least is None):
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def goal(self) -> str:
        """In words."""
        if self.at_most is not None:
            return f"at most {_short(self.at_most)} {self.unit}".strip()
        return f"at least {_short(self.at_least)} {self.unit}".strip() if self.at_least else ""

    @property
    def measured(self) -> str:
        """In words."""
        if self.value is None:
            return f"*not measured*: {self.why_not}"
        return f"{_short(self.value)} {self.unit}".strip()


def document(figures: Sequence[Figure]) -> list[dict[str, object]]:
    """For the result file."""
    return [{**asdict(figure), "reached": figure.reached} for figure in figures]


def table(figures: Sequence[Figure]) -> Iterator[str]:
    """A Markdown table, to be read as it is or pasted."""
    yield _row(HEADINGS)
    yield _row(["---"] * len(HEADINGS))
    for one in figures:
        reached = {True: "yes", False: "**no**", None: ""}[one.reached]
        yield _row((f"{one.subject}: {one.name}", one.measured, one.rival, one.goal, reached))


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that *percent* of a hundred do not pass, as near as there are values."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _short(value: float) -> str:
    """Three digits, or all that are before the point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.3g}"
