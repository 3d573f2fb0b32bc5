"""Who had to wait for what, over time: a row for each request, on one axis for both ways. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rich.text import Text

from aqua_client.demo.happenings import RushBegan, RushEnded, TokensCame

LABEL_WIDTH = 4
PAUSE_COLUMNS = 4  # between two tokens: who is silent for so long has given way
# Signs tell them apart without colours.
WAITS, SPEAKS, PARKED, OVER = "·", "█", "░", " "
STYLES = {WAITS: "yellow", SPEAKS: "green", PARKED: "cyan", OVER: ""}
WORDS = {WAITS: "waits for its first token", SPEAKS: "speaks", PARKED: "has given way"}


@dataclass(slots=True)
class Timeline:
    """Of one way to share the engine; seconds since all requests came."""

    way: str
    reply_tokens: tuple[int, ...]
    came: list[list[float]]  # when each of each request's tokens came
    parked: int = 0
    is_over: bool = False
    seconds: float = field(default=0.0)  # when the last token of all came

    @classmethod
    def of(cls, began: RushBegan) -> Timeline:
        """Nobody has said anything yet."""
        replies = began.reply_tokens
        return cls(way=began.way, reply_tokens=replies, came=[[] for _ in replies])

    def take(self, happening: TokensCame | RushEnded) -> None:
        """One more thing that happened."""
        if isinstance(happening, RushEnded):
            self.is_over, self.parked = True, happening.parked
            return
        self.came[happening.request] += [happening.seconds] * happening.tokens
        self.seconds = max(self.seconds, happening.seconds)

    @property
    def first_tokens(self) -> list[float]:
        """After how many seconds each who has spoken did so first."""
        return [times[0] for times in self.came if times]

    @property
    def tokens(self) -> int:
        """All that came."""
        return sum(map(len, self.came))

    def document(self) -> dict[str, object]:
        """For machines."""
        p50, p99 = percentiles(self.first_tokens)
        return {
            "way": self.way,
            "requests": len(self.came),
            "tokens": self.tokens,
            "first_token_p50": p50,
            "first_token_p99": p99,
            "seconds": self.seconds,
            "parked": self.parked,
        }


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The 50th and the 99th of a hundred, as near as there are values."""
    if len(seconds) < 2:
        return (*seconds, *seconds) if seconds else (0.0, 0.0)  # type: ignore[return-value]
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return cuts[49], cuts[98]


def heading(timeline: Timeline) -> str:
    """What it came to so far."""
    spoken, all_ = len(timeline.first_tokens), len(timeline.came)
    if not timeline.is_over:
        return f"{timeline.way}: {spoken} of {all_} have their first token"
    p50, p99 = percentiles(timeline.first_tokens)
    return (
        f"{timeline.way}: TTFT p50 {p50:.2f} s, p99 {p99:.2f} s; all after {timeline.seconds:.1f} s"
    )


def row(times: Sequence[float], *, now: float, span: float, width: int, is_over: bool) -> str:
    """One request's signs: *span* seconds are *width* of them, and it is *now* by this clock."""
    reached = min(width, int(now / span * width) + 1)
    if not times:
        return WAITS * reached
    spoken = _joined(sorted({min(width - 1, int(at / span * width)) for at in times}))
    first, last = min(spoken), max(spoken)
    signs = [WAITS] * first
    signs += [SPEAKS if column in spoken else PARKED for column in range(first, last + 1)]
    return "".join(signs) + (OVER if is_over else PARKED) * (reached - last - 1)


def _joined(columns: Sequence[int]) -> set[int]:
    """With those between tokens that come one after the other, though not one in each column."""
    found = set(columns)
    for before, after in pairwise(columns):
        if after - before < PAUSE_COLUMNS:
            found.update(range(before, after))
    return found


def drawn(timelines: Sequence[Timeline], *, width: int) -> list[Text]:
    """Each with its heading, above one axis."""
    columns = max(8, width - LABEL_WIDTH)
    span = max((one.seconds for one in timelines), default=0.0) or 1.0
    lines: list[Text] = []
    for one in timelines:
        lines.append(Text(heading(one), style="bold"))
        for number, (times, length) in enumerate(zip(one.came, one.reply_tokens, strict=True)):
            is_over = len(times) >= length
            signs = row(times, now=one.seconds, span=span, width=columns, is_over=is_over)
            lines.append(Text(f"{number + 1:>{LABEL_WIDTH - 1}} ").append(_coloured(signs)))
    lines.append(Text(" " * LABEL_WIDTH + _axis(span, columns), style="bright_black"))
    legend = "   ".join(f"{sign} {word}" for sign, word in WORDS.items())
    lines.append(Text(" " * LABEL_WIDTH + legend, style="bright_black"))
    return lines


def _coloured(signs: str) -> Text:
    text = Text()
    for sign in signs:
        text.append(sign, style=STYLES[sign])
    return text


def _axis(span: float, width: int) -> str:
    end = f"{span:.1f} s"
    middle = f"{span / 2:.1f}"
    return f"0{middle:^{max(0, width - 1 - len(end))}}{end}"
