"""How many pieces an evacuation copies together.

Each time that the library's thread comes back from copying it needs the interpreter, and one that
computes in Python keeps it for `sys.getswitchinterval()`, 5 ms, first: then what counts is how often
that is, and the more pieces together the better. But the books of many pieces keep the interpreter
from everybody else, so where somebody fetches and nobody computes they are few. How soon the
interpreter comes round is `quick_turns`' matter. Knows nothing of pieces.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

MOST_PIECES = 256
FEWEST_PIECES = 8  # their books take about as long as a small fetch

# Whoever has fetched within this time may do so at any moment.
FETCHING_SECONDS = 0.05

# Who waited so long after a copy waited for the interpreter, or for a core.
CONTENDED_SECONDS = 0.002


class Pace:
    """Used by one thread."""

    def __init__(self) -> None:
        self._pieces = FEWEST_PIECES

    def pieces(self, fetched_at: float) -> int:
        """At most how many next, where a fetch last began at *fetched_at*."""
        is_fetching = time.monotonic() - fetched_at < FETCHING_SECONDS
        return self._pieces if is_fetching else MOST_PIECES

    @contextmanager
    def measured(self) -> Iterator[None]:
        """What is done in it shows how contended the interpreter is."""
        began_at, worked = time.monotonic(), time.thread_time()
        yield
        waited = (time.monotonic() - began_at) - (time.thread_time() - worked)
        if waited > CONTENDED_SECONDS:
            self._pieces = min(2 * self._pieces, MOST_PIECES)
        else:
            self._pieces = FEWEST_PIECES
