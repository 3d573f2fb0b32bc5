"""One request, as the policy knows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Request:
    """Of what stands here only `slice_left` is changed by a plan, the rest by what is told."""

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
    slice_left: int = 0  # iterations with a new token that it is still sure of

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

    @property
    def is_protected(self) -> bool:
        """It is within its slice."""
        return self.is_resident and self.slice_left > 0

    def compute(self, tokens: int, *, cost: float) -> None:
        """*tokens* of what is missing are in the cache now; *cost* of each in virtual run time."""
        was_prefilling = self.is_prefilling
        self.is_resident = True
        self.kv_tokens += tokens
        given = tokens * cost if was_prefilling else float(tokens)
        if self.missing_tokens <= 0:
            self.known_tokens = self.kv_tokens + 1
            self.generated_tokens += 1
            self.slice_left -= self.slice_left > 0
            self.has_had_slice |= self.slice_left == 0
            given += was_prefilling  # its first token comes with the last of the prompt
        self.virtual_tokens += given / self.weight
