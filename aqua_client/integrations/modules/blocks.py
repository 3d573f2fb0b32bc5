"""Blocks: a span's bytes, in its tensors or parked, and back again.

    blocks = park_all(module.named_parameters(), client.offload_many, immutable=False)
    resume_all(blocks)

1. A tensor is in one block at most. Whoever meets a parked tensor finds its block here, so a module
   that is parked twice, or in part, is parked once, and any way to resume it resumes it.
2. A block's bytes are gone from its tensors only when all that is parked with it has been stored.
3. An immutable block keeps its copy when it comes back, and needs no second one until a tensor of it
   is written to, which torch counts (`_version`), or lies elsewhere.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from aqua_client.errors import HandleReleased, LeaseLost
from aqua_client.integrations.modules.spans import Span, View, spans_of
from aqua_client.tensors import OffloadedTensor

OffloadMany = Callable[[Sequence[torch.Tensor]], list[OffloadedTensor]]


class Block:
    """Bytes of one or several tensors. Threads may share it."""

    def __init__(self, views: Sequence[View], handle: OffloadedTensor, *, immutable: bool) -> None:
        """Made by `park_all`; the bytes are in both places until `empty`."""
        self.views = tuple(views)
        self.handle: OffloadedTensor | None = handle
        self.is_parked = False
        self._immutable = immutable
        self._lock = threading.Lock()
        self._marks: list[object] = []

    @property
    def names(self) -> list[str]:
        """Of its tensors."""
        return [view.name for view in self.views]

    def empty(self) -> None:
        """Take the bytes from the tensors: from here on they are parked."""
        with self._lock, torch.inference_mode(mode=False):
            for view in self.views:
                view.empty()
            self.is_parked = True
            _parked.add(self)

    def resume(self) -> None:
        """Let the tensors have their bytes again, if they are parked.

        Raises:
            LeaseLost, HandleReleased, ForkedChild: as `fetch`; the tensors stay as they are.
        """
        with self._lock, torch.inference_mode(mode=False):
            if not self.is_parked or self.handle is None:
                return
            span = self.handle.fetch()
            for view in self.views:
                view.point_into(span)
            self.is_parked = False
            _parked.discard(self)
            if self._immutable:
                self._marks = self._marks_now()
            else:
                self.handle.release()
                self.handle = None

    def has_copy(self) -> bool:
        """Whether what its tensors hold, in their own memory, is stored as well."""
        if self.is_parked or self.handle is None or not self._marks:
            return False
        try:
            return self.handle.tier != "lost" and self._marks_now() == self._marks
        except HandleReleased:  # its client closed
            return False

    def abandon_in_child(self) -> None:
        """Forget who was resuming it."""
        self._lock = threading.Lock()

    def _marks_now(self) -> list[object]:
        return [_mark(view.tensor()) for view in self.views]


def park_all(
    named: Iterable[tuple[str, torch.Tensor]], offload_many: OffloadMany, *, immutable: bool
) -> list[Block]:
    """Park all these tensors; the blocks that they are in, those that were parked before as well.

    Raises:
        UnsupportedTensor, InsufficientMemory, ...: as `offload_many`; nothing is parked.
    """
    # Two that park the same module at once would each store it: they take turns, copies included.
    with _turn, torch.no_grad():
        tensors = list(named)
        blocks = {_blocks[one] for _, one in tensors if one in _blocks}
        present = {id(one) for _, one in tensors}
        kept = {one for one in blocks if one.is_parked or (immutable and _is_whole(one, present))}
        done = {id(view.tensor()) for block in kept for view in block.views}
        spans = spans_of((name, one) for name, one in tensors if id(one) not in done)
        made = _store(spans, offload_many, immutable=immutable)
        for block in (*kept, *made):
            if not block.is_parked:
                block.empty()
        return [*kept, *made]


def resume_all(blocks: Iterable[Block]) -> None:
    """Resume all of them that can be.

    Raises:
        LeaseLost: the bytes of some are gone; the message names their tensors, which stay empty.
    """
    lost: list[str] = []
    reasons: list[str] = []
    for block in blocks:
        try:
            block.resume()
        except LeaseLost as error:
            lost += block.names
            reasons.append(str(error))
    if lost:
        raise LeaseLost(
            f"the parked bytes of {', '.join(lost)} are gone ({reasons[0]}): make the module anew "
            "and load its weights from where they came"
        )


def blocks_of(tensors: Iterable[torch.Tensor]) -> list[Block]:
    """The parked blocks of these tensors, each once."""
    if not _parked:
        return []
    found = {_blocks[one]: None for one in tensors if one in _blocks}
    return [block for block in found if block.is_parked]


def _store(spans: Sequence[Span], offload_many: OffloadMany, *, immutable: bool) -> list[Block]:
    handles = offload_many([span.content for span in spans]) if spans else []
    made = []
    for span, handle in zip(spans, handles, strict=True):
        block = Block(span.views, handle, immutable=immutable)
        for view in span.views:
            tensor = view.tensor()
            if tensor is not None:
                _blocks[tensor] = block
        made.append(block)
    return made


def _is_whole(block: Block, present: set[int]) -> bool:
    """Whether all its tensors are to be parked, and need no copy."""
    return block.has_copy() and all(id(view.tensor()) in present for view in block.views)


def _mark(tensor: torch.Tensor | None) -> object:
    if tensor is None:
        return None
    # Inference tensors have no version; nobody writes to them outside of that mode.
    version = None if tensor.is_inference() else int(tensor._version)  # noqa: SLF001 - documented
    return (tensor.data_ptr(), version, tensor.shape, tensor.stride(), tensor.dtype)


def _abandon_all() -> None:
    """In a forked child: who had a lock is not here, and fetching says ForkedChild."""
    global _turn  # noqa: PLW0603 - as the process has one
    _turn = threading.Lock()
    for block in _parked:
        block.abandon_in_child()


_turn = threading.Lock()
_blocks = WeakTensorKeyDictionary()
_parked: weakref.WeakSet[Block] = weakref.WeakSet()
os.register_at_fork(after_in_child=_abandon_all)
