"""One request, as the policy knows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Request:
    """A plan changes only what stands here of slices, the rest is changed by what is told."""

    request_id: str
    number: int  # in the order of arrival
    weight: float
    came_at: float
    known_tokens: int  # its prompt and what it has generated
    virtual_tokens: float  # its virtual run time
    kv_tokens: int = 0  # of the known ones, that are in the cache or parked
    generated_tokens: int = 0
    is_resident: bool = False  # it holds blocks
    has_had_slice: bool = False
    slice_left: int = 0  # iterations with a new token
    sure_left: int = 0  # of them, those for which its blocks are kept
    owed_iterations: int = 0  # of a slice that ended early, which the next is longer by

    @property
    def missing_tokens(self) -> int:
        """To compute before it has its next token."""
        return self.known_tokens - self.kv_tokens

    @property
    def is_prefilling(self) -> bool:
        """Its next token needs more than its last one."""
        return self.missing_tokens > 1

    @property
    def is_parked(self) -> bool:
        """It has keys and values, but no blocks."""
        return self.kv_tokens > 0 and not self.is_resident

    def compute(self, tokens: int, *, prompt_token_cost: float) -> int:
        """*tokens* of what is missing are in the cache now; how many new ones came of it, 0 or 1.

        A prompt's token costs *prompt_token_cost* in virtual run time, a generated one costs 1.
        """
        was_prefilling = self.is_prefilling
        self.is_resident = True
        self.kv_tokens += tokens
        answers = self.missing_tokens == 0
        if answers:
            self.known_tokens += 1
            self.generated_tokens += 1
            self.slice_left = max(0, self.slice_left - 1)
            self.sure_left = max(0, self.sure_left - 1)
            self.has_had_slice |= self.slice_left == 0
        given = (tokens * prompt_token_cost if was_prefilling else 0.0) + answers
        self.virtual_tokens += given / self.weight
        return int(answers)
