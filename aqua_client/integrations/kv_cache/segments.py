"""What of one layer is stored: ranges of tokens, one after another from the first.

Stored tokens are never written again but for two reasons: a crop ended inside their segment, or
the segment was short and more tokens have come after it. Where beams change places only the new order
is noted, and followed when they are read. Does not cover what is resident (`layer`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from aqua_client.errors import LeaseLost
from aqua_client.integrations.kv_cache.rows import Rows
from aqua_client.tensors import OffloadedTensor

# Of keys, or of values, at most. Between two such pieces a copy ahead notices that nobody wants it any
# more: at the end of a process it would be in torch, which answers with an abort.
PIECE_BYTES = 16 * 2**20


class Paging(Protocol):
    """What is used of a client."""

    def offload_many(self, sources: Sequence[torch.Tensor], *, keep: str) -> list[OffloadedTensor]:
        """All are stored, or an error is raised and none is."""

    def fetch_many(
        self, handles: Sequence[OffloadedTensor], outs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """All are copied into *outs*, or an error is raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Stored tokens, from *start* to before *end*."""

    start: int
    end: int
    keys: OffloadedTensor
    values: OffloadedTensor
    order: torch.Tensor | None = None  # which stored row of the batch is now row i; None: row i

    def release(self) -> None:
        """Give the memory back."""
        self.keys.release()
        self.values.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsaved:
    """Rows that are to be stored, the first being token *start*."""

    start: int
    rows: Rows

    def pieces(self) -> Iterator[Unsaved]:
        """The same in pieces of about the same length, none of them too large."""
        count = self.rows.capacity
        largest = max(self.rows.keys.nbytes, self.rows.values.nbytes)
        step = math.ceil(count / max(1, math.ceil(largest / PIECE_BYTES)))
        for first in range(0, count, step):
            last = min(first + step, count)
            yield Unsaved(start=self.start + first, rows=self.rows.part(first, last))


class Segments:
    """Of one layer."""

    def __init__(self, paging: Paging, keep: str) -> None:
        self._paging = paging
        self._keep = keep
        self._segments: list[Segment] = []

    @property
    def tokens(self) -> int:
        """How many are stored."""
        return self._segments[-1].end if self._segments else 0

    @property
    def nbytes(self) -> int:
        """Of what is stored."""
        return sum(one.keys.nbytes + one.values.nbytes for one in self._segments)

    @property
    def are_on_peers(self) -> bool:
        """Whether all of it is in leased memory."""
        return all({one.keys.tier, one.values.tier} == {"peer"} for one in self._segments)

    def next_start(self, *, shortest: int) -> int:
        """The first token to store next, where all are at hand: that of a last short segment."""
        if self._segments and self._segments[-1].end - self._segments[-1].start < shortest:
            return self._segments[-1].start
        return self.tokens

    def store(self, unsaved: Unsaved) -> None:
        """Store more tokens. InsufficientMemory: nowhere is room, and nothing has changed."""
        store_all(self._paging, self._keep, [(self, unsaved)])

    def reorder(self, order: torch.Tensor) -> None:
        """Row *order[i]* of the batch is row i from now on."""
        self._segments = [
            replace(one, order=order if one.order is None else one.order.index_select(0, order))
            for one in self._segments
        ]

    def reading(self, rows: Rows) -> Callable[[], None]:
        """A call that copies all that is stored now into the first of *rows*.

        It raises LeaseLost when some of it is gone.
        """
        segments = tuple(self._segments)
        return lambda: self._read(segments, rows, first=0)

    def cut(self, tokens: int) -> None:
        """Keep segments that end at or before *tokens*."""
        while self.tokens > tokens:
            self._segments.pop().release()

    def read_last(self, like: Rows, *, before: int) -> tuple[int, Rows]:
        """The tokens before *before* of the segment that has it inside; the first one's number."""
        for one in self._segments:
            if one.start < before < one.end:
                rows = like.like(one.end - one.start)
                self._read([one], rows, first=one.start)
                return one.start, rows.copied(0, before - one.start)
        return before, like.like(0)

    def _read(self, segments: Sequence[Segment], rows: Rows, *, first: int) -> None:
        for group in _groups(segments):
            parts = [rows.part(one.start - first, one.end - first) for one in group]
            handles = [handle for one in group for handle in (one.keys, one.values)]
            outs = [out for part in parts for out in (part.keys, part.values)]
            fetch(self._paging, handles, outs)
            for one, part in zip(group, parts, strict=True):
                if one.order is not None:
                    part.reorder(one.order)

    def _put(self, start: int, end: int, keys: OffloadedTensor, values: OffloadedTensor) -> None:
        self.cut(start)
        self._segments.append(Segment(start=start, end=end, keys=keys, values=values))


def store_all(paging: Paging, keep: str, work: Sequence[tuple[Segments, Unsaved]]) -> None:
    """Store tokens of several layers: all, or none.

    Raises:
        InsufficientMemory, BrokerUnreachable, ForkedChild: as `offload_many`; nothing has changed.
    """
    pieces = [(segments, piece) for segments, unsaved in work for piece in unsaved.pieces()]
    sources = [tensor for _, one in pieces for tensor in (one.rows.keys, one.rows.values)]
    handles = paging.offload_many(sources, keep=keep)
    for (segments, one), keys, values in zip(pieces, handles[::2], handles[1::2], strict=True):
        segments._put(one.start, one.start + one.rows.capacity, keys, values)  # noqa: SLF001 - theirs


def _groups(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """What is read in one call: small segments together."""
    group: list[Segment] = []
    nbytes = 0
    for one in segments:
        group.append(one)
        nbytes += one.keys.nbytes
        if nbytes >= PIECE_BYTES // 2:
            yield group
            group, nbytes = [], 0
    if group:
        yield group


def fetch(paging: Paging, handles: Sequence[OffloadedTensor], outs: Sequence[torch.Tensor]) -> None:
    """Copy what is stored into *outs*. LeaseLost: some is gone, and the conversation with it."""
    try:
        paging.fetch_many(handles, outs)
    except LeaseLost as error:
        raise LeaseLost(
            "keys and values that were stored are gone, and with them the conversation: "
            f"reset() the cache and give the whole prompt again ({error})"
        ) from error
