"""How long requests take as things are: what tells whether one more can be taken.

By Little's law: who comes takes, in the mean, as long as all who are there and it need, at the pace
at which tokens are generated. Of the replies that have not ended nobody knows the length; it is
taken to be the mean of those that have. Only while somebody waits does the pace say what the engine
can do; before, it says what it was asked to.
"""

from __future__ import annotations

import math

MEMORY_SECONDS = 30.0  # of full time, after which what was seen counts a third
LEAST_SECONDS = 5.0  # of full time, before anything is known
GUESSED_TOKENS = 256.0  # of a reply, as long as hardly any has ended; counts as one


class Turnover:
    """Tokens a second while somebody waits, and tokens a reply."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._seconds = self._tokens = self._ended = self._ended_tokens = 0.0

    def see(self, now: float, *, is_full: bool) -> None:
        """Since the last call somebody has waited, or nobody, which says nothing."""
        if self._last is not None and is_full and now > self._last:
            passed = now - self._last
            kept = math.exp(-passed / MEMORY_SECONDS)
            self._seconds = self._seconds * kept + passed
            self._tokens *= kept
            self._ended *= kept
            self._ended_tokens *= kept
        self._last = now

    def generated(self, tokens: int) -> None:
        """So many more."""
        self._tokens += tokens

    def ended(self, reply_tokens: int) -> None:
        """A reply of so many."""
        self._ended += 1
        self._ended_tokens += reply_tokens

    def seconds_for(self, requests: int) -> float:
        """How long one of so many takes in the mean; 0 while too little is known."""
        if self._seconds < LEAST_SECONDS or not self._tokens:
            return 0.0
        reply_tokens = (GUESSED_TOKENS + self._ended_tokens) / (1 + self._ended)
        return requests * reply_tokens * self._seconds / self._tokens
