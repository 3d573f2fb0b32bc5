"""Text as it comes, token by token, up to a stop.

Covers characters of several tokens, and stops that begin in one piece and end in another: what may
be the beginning of one is held back until it is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Pieces:
    """One answer's text."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False

    def add(self, tokens: Iterable[int]) -> str:
        """What can be said of the text now that *tokens* have come; nothing after a stop."""
        for token in tokens:
            if not self.is_stopped:
                self._held += self._stream.step(self._tokenizer, token) or ""
                self._cut()
        kept = 0 if self.is_stopped else self._beginning_of_a_stop()
        said, self._held = (
            self._held[: len(self._held) - kept],
            self._held[len(self._held) - kept :],
        )
        return said

    def end(self) -> str:
        """What was held back for a stop that did not come."""
        said, self._held = self._held, ""
        return said

    def _cut(self) -> None:
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self._held = self._held[: min(found)]
            self.is_stopped = True

    def _beginning_of_a_stop(self) -> int:
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
