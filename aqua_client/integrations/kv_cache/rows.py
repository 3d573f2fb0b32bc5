"""Keys and values of consecutive tokens, one row of memory a token.

Models see `(batch, heads, tokens, head_dim)`, as a view; in memory tokens come first. So tokens are
added in place, without a copy of those before them, and any range of them is one range of memory,
which is stored and fetched as it is. Does not cover which tokens they are (`layer`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aqua_client.errors import InvalidRequest

TOKENS_FIRST = (2, 0, 1, 3)
TOKENS_THIRD = (1, 2, 0, 3)


@dataclass(slots=True)
class Rows:
    """Room for some tokens: `(capacity, batch, heads, head_dim)` of keys, and of values."""

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor, *, capacity: int) -> Rows:
        """Room for *capacity* tokens like those of these states; holds none of them yet."""
        return cls(_empty(capacity, keys), _empty(capacity, values))

    def like(self, capacity: int) -> Rows:
        """Other rows for tokens of the same shape."""
        return Rows.of(*self.states(0), capacity=capacity)

    @property
    def capacity(self) -> int:
        """In tokens."""
        return min(self.keys.shape[0], self.values.shape[0])

    @property
    def nbytes(self) -> int:
        """Of all the room."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.keys.device

    def put(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy states in, from row *start* on.

        Raises:
            InvalidRequest: they are of another batch size or other heads than those before.
        """
        end = start + keys.shape[-2]
        for rows, states in ((self.keys, keys), (self.values, values)):
            added = states.permute(TOKENS_FIRST)
            if added.shape[1:] != rows.shape[1:]:  # copy_ would perhaps repeat them
                raise InvalidRequest(
                    f"tokens of (batch, heads, head_dim) {tuple(added.shape[1:])} can't follow "
                    f"those of {tuple(rows.shape[1:])}: reset() the cache for another batch"
                )
            rows[start:end].copy_(added)

    def put_rows(self, start: int, other: Rows) -> None:
        """Copy all rows of *other* in, from row *start* on."""
        end = start + other.capacity
        self.keys[start:end].copy_(other.keys)
        self.values[start:end].copy_(other.values)

    def part(self, start: int, end: int) -> Rows:
        """These rows, in the same memory."""
        return Rows(self.keys[start:end], self.values[start:end])

    def copied(self, start: int, end: int, *, capacity: int | None = None) -> Rows:
        """These rows in memory of their own, perhaps with room for more behind them."""
        rows = self.like(end - start if capacity is None else capacity)
        rows.put_rows(0, self.part(start, end))
        return rows

    def reordered(self, order: torch.Tensor) -> Rows:
        """The same tokens, with row *order[i]* of the batch as row i."""
        rows = self.like(self.capacity)
        torch.index_select(self.keys, 1, order, out=rows.keys)
        torch.index_select(self.values, 1, order, out=rows.values)
        return rows

    def reorder(self, order: torch.Tensor) -> None:
        """The same in place."""
        for rows in (self.keys, self.values):
            rows.copy_(rows.index_select(1, order))
        if order.is_cuda:  # it was made on another stream, perhaps
            order.record_stream(torch.cuda.current_stream(order.device))

    def states(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first *count* tokens as models see them: views."""
        return (
            self.keys[:count].permute(TOKENS_THIRD),
            self.values[:count].permute(TOKENS_THIRD),
        )


def tokens_first(states: torch.Tensor) -> torch.Tensor:
    """A copy of states with a row a token."""
    rows = _empty(states.shape[-2], states)
    rows.copy_(states.permute(TOKENS_FIRST))
    return rows


def _empty(capacity: int, states: torch.Tensor) -> torch.Tensor:
    batch, heads, _, head_dim = states.shape
    with torch.inference_mode(mode=False):  # so that it can be written to outside of it too
        return torch.empty(
            (capacity, batch, heads, head_dim), dtype=states.dtype, device=states.device
        )
