"""What a run leaves behind for people: its last lines, and counts of what happened."""

from __future__ import annotations

from collections import Counter, deque

LINES_KEPT = 3000


class Story:
    """The last lines of one run and its counts. Lines are put into words only when asked for."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lines: deque[tuple[float, str, tuple[object, ...]]] = deque(maxlen=LINES_KEPT)

    def tell(self, now: float, text: str, *values: object) -> None:
        """Remember a line: *text* with a `{}` for each of *values*."""
        self._lines.append((now, text, values))

    def count(self, what: str) -> None:
        """Something worth counting has happened."""
        self.counts[what] += 1

    def last_lines(self) -> list[str]:
        """The end of the story, oldest first."""
        return [f"{now:9.3f}  {_in_words(text, values)}" for now, text, values in self._lines]


def _in_words(text: str, values: tuple[object, ...]) -> str:
    return _shortened(text.format(*values))


def _shortened(line: str) -> str:
    """Ids end in the digits that tell them apart; their leading zeros say nothing."""
    while "0000" in line:
        line = line.replace("0000", "")
    return line.replace("aqua_daemon.core.", "")
