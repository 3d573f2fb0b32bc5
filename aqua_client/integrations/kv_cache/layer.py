"""One layer of the cache: its newest tokens resident, the others stored, or resident as well.

    tokens   0 ........... stored ........ length
    away     [ segments  ][ rows: the tail ]
    here     [ rows ......................  ]     segments stay stored, and are not written again

A layer is brought back by whoever needs its tokens, and goes away when `residents` says so. The tail
is kept so that a crop of a few tokens, as assisted generation does after each step, touches nothing
stored. What the stock layer does by assigning `keys` and `values` (another batch) makes a layer of
which nothing is stored.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicLayer

from aqua_client.errors import InvalidRequest
from aqua_client.integrations.kv_cache.arrival import Arrival
from aqua_client.integrations.kv_cache.residents import Residents
from aqua_client.integrations.kv_cache.rows import Rows, tokens_first
from aqua_client.integrations.kv_cache.segments import Segments, Unsaved

GROWTH = 16  # a resident layer gets room for one more token in so many, or for a tail


class AquaLayer(DynamicLayer):
    """Keys and values of one layer."""

    def __init__(self, residents: Residents, segments: Segments, *, tail_tokens: int) -> None:
        self._residents = residents
        self._segments = segments
        self._tail_tokens = tail_tokens
        self._rows: Rows | None = None  # tokens from `start` on
        self._start = 0
        self._length = 0
        self._arrival: Arrival | None = None  # of the tokens before `start`
        super().__init__()  # type: ignore[no-untyped-call]  # it is not annotated
        self._number = residents.add(self)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take dtype, device and shape from the first states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._rows = Rows.of(key_states, value_states, capacity=0)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens; keys and values of all of them.

        Raises:
            InvalidRequest: gradients are wanted.
            LeaseLost: tokens that were stored are gone.
            InsufficientMemory: another layer must go away, and nowhere is room.
        """
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise InvalidRequest("tokens are added in place: call the model under torch.no_grad()")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows = self._bring(room=key_states.shape[-2])
        rows.put(self._length, key_states, value_states)
        self._length += key_states.shape[-2]
        return rows.states(self._length)

    def get_seq_length(self) -> int:
        """How many tokens there are, wherever they are."""
        return self._length

    @property
    def keys(self) -> torch.Tensor | None:
        """All keys, brought back if they are away; a view, good until the cache changes."""
        return self._states(0)

    @keys.setter
    def keys(self, states: torch.Tensor | None) -> None:
        self._assign("keys", states)

    @property
    def values(self) -> torch.Tensor | None:
        """All values, as `keys`."""
        return self._states(1)

    @values.setter
    def values(self, states: torch.Tensor | None) -> None:
        self._assign("values", states)

    def offload(self) -> None:
        """Store all but the tail, and let go of what is stored. InsufficientMemory: it stays."""
        self._drop_arrival()
        rows = self._rows
        if rows is None:
            return
        if self._start < self._segments.tokens or self._unsaved_tokens >= 2 * self._tail_tokens:
            unsaved = self._unsaved(self._length - self._tail_tokens)
            if unsaved is not None and unsaved.rows.capacity >= self._tail_tokens:
                self._segments.store(unsaved)
            self._keep_from(self._segments.tokens)

    def prefetch(self) -> None:
        """Begin to bring back what is away, in the background."""
        if self._start and self._arrival is None and self._rows is not None:
            self._residents.enter(self._number)
            rows = self._rows.like(self._length + self._tail_tokens)
            self._arrival = Arrival(
                rows, self._segments.reading(rows), only_enqueues=self._segments.are_on_peers
            )

    def reset(self) -> None:
        """Forget all tokens, and give their memory back."""
        self._drop_arrival()
        self._segments.cut(0)
        self._residents.leave(self._number)
        self._rows, self._start, self._length = None, 0, 0
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, as the stock layer would."""
        left = _left_by_crop(self._length, tokens_to_remove)
        if left >= self._length or self._rows is None:
            return
        if self._arrival is not None and left < self._start:
            self._bring()
        if left < self._start:
            self._start, self._rows = self._segments.read_last(self._rows, before=left)
        self._segments.cut(left)
        self._length = left

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row *beam_idx[i]* of the batch is row i from now on; what is stored stays where it is."""
        if self._rows is None:
            return
        if beam_idx.shape[0] != self._rows.keys.shape[1]:  # another batch: that is other rows
            super().reorder_cache(beam_idx)
            return
        self._land()
        order = beam_idx.to(self.device, copy=True)
        self._rows = self._rows.reordered(order)
        self._segments.reorder(order)

    def unsaved(self) -> Unsaved | None:
        """All that is not stored."""
        return self._unsaved(self._length)

    def parked(self) -> None:
        """All is stored: let go of it."""
        self._drop_arrival()
        self._keep_from(self._segments.tokens)
        self._residents.leave(self._number)

    def resume(self) -> None:
        """Have all tokens resident, as far as the layers that may be allow it."""
        self.prefetch()
        self._land()

    @property
    def segments(self) -> Segments:
        """What is stored."""
        return self._segments

    @property
    def resident_bytes(self) -> int:
        """What it has on its device, or will have in a moment."""
        coming = 0 if self._arrival is None else self._arrival.rows.nbytes
        return coming + (0 if self._rows is None else self._rows.nbytes)

    @property
    def _unsaved_tokens(self) -> int:
        return self._length - self._segments.tokens

    def _drop_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _bring(self, room: int = 0) -> Rows:
        """All tokens, and room for more behind them; the next layer begins to come, too."""
        self._residents.use(self._number)
        self.prefetch()
        self._residents.prefetch_next()
        self._land()
        rows = self._rows
        assert rows is not None, "tokens of a layer that was not initialised"  # noqa: S101
        needed = self._length + room
        if rows.capacity < needed:
            more = max(self._tail_tokens, needed // GROWTH)
            self._rows = rows = rows.copied(0, self._length, capacity=needed + more)
        return rows

    def _land(self) -> None:
        """Wait for what is on its way, and put the tail behind it."""
        tail, arrival = self._rows, self._arrival
        if arrival is None or tail is None:
            return
        if not arrival.has_come():
            self._arrival = None
            self._segments.reading(arrival.rows)()
        arrival.rows.put_rows(self._start, tail.part(0, self._length - self._start))
        self._rows, self._arrival, self._start = arrival.rows, None, 0

    def _unsaved(self, end: int) -> Unsaved | None:
        start = self._segments.next_start(shortest=self._tail_tokens)
        start = max(start, self._start)
        if self._rows is None or end <= self._segments.tokens:
            return None
        return Unsaved(start=start, rows=self._rows.part(start - self._start, end - self._start))

    def _keep_from(self, start: int) -> None:
        if self._rows is not None:
            self._rows = self._rows.copied(start - self._start, self._length - self._start)
            self._start = start

    def _states(self, which: int) -> torch.Tensor | None:
        if self._rows is None:
            return None
        if not self._length:
            return torch.tensor([], dtype=self.dtype, device=self.device)
        return self._bring().states(self._length)[which]

    def _assign(self, name: str, states: torch.Tensor | None) -> None:
        if states is None:  # the stock layer's way to say that there are none
            return
        if self._rows is None or states.dim() != 4 or states.shape[-2] != self._length:
            raise InvalidRequest(
                f"{name} of {self._length} tokens can be replaced by those of as many; update() "
                "adds tokens, crop() removes some"
            )
        rows = self._bring()
        self._segments.cut(0)
        setattr(rows, name, tokens_first(states))


def _left_by_crop(length: int, tokens_to_remove: int) -> int:
    """The stock layer's own answer, which differs between versions: it is asked without bytes."""
    stock = DynamicLayer()
    bare = torch.empty((1, 1, length, 1), device="meta")
    stock.lazy_initialization(bare, bare)
    stock.keys = stock.values = bare
    stock.crop(tokens_to_remove)
    return int(stock.keys.shape[-2])
