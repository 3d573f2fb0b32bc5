"""Which bytes a module's tensors are made of: those that share memory are one span.

Tied weights, views and tensors that lie beside each other in one storage are stored once, and lie in
one storage again when they come back. Copies nothing; that is `blocks`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch

from aqua_client.errors import UnsupportedTensor
from aqua_client.layouts import layout_of

# Bytes, of torch's allocator: what comes back is as aligned as it was. A kernel may choose its way by
# the address, and round otherwise.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A tensor, and where it lies in its span. Doesn't keep it alive."""

    name: str
    tensor: weakref.ref[torch.Tensor]
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    start_bytes: int

    def point_into(self, span: torch.Tensor) -> None:
        """Let the tensor, if it is still there, lie in *span*, the bytes of its span."""
        tensor = self.tensor()
        if tensor is not None:
            tensor.data = torch.empty(0, dtype=self.dtype, device=span.device).set_(
                span.untyped_storage(),
                self.start_bytes // self.dtype.itemsize,
                self.shape,
                self.stride,
            )

    def empty(self) -> None:
        """Let the tensor, if it is still there, have no bytes."""
        tensor = self.tensor()
        if tensor is not None:
            tensor.data = torch.empty(0, dtype=self.dtype, device=tensor.device)


class Span(NamedTuple):
    """Bytes in one storage, and the tensors that are made of them."""

    content: torch.Tensor
    views: tuple[View, ...]


class _Piece(NamedTuple):
    """What one tensor uses of its storage, from *low* to *high*, in bytes."""

    low: int
    high: int
    name: str
    tensor: torch.Tensor


def spans_of(named: Iterable[tuple[str, torch.Tensor]]) -> list[Span]:
    """The spans of all tensors that have bytes.

    Raises:
        UnsupportedTensor: one of them can't be parked; the message names it.
    """
    pieces: dict[int, list[_Piece]] = {}
    for name, tensor in named:
        _check(name, tensor)
        if tensor.numel():
            storage = tensor.untyped_storage()
            pieces.setdefault(storage.data_ptr(), []).append(_piece(name, tensor))
    return [span for shared in pieces.values() for span in _spans(shared)]


def _check(name: str, tensor: torch.Tensor) -> None:
    try:
        layout_of(tensor)
    except UnsupportedTensor as error:
        raise UnsupportedTensor(f"{name} can't be parked: {error}") from None
    if tensor.is_conj() or tensor.is_neg():
        raise UnsupportedTensor(
            f"{name} can't be parked: it is a lazy conjugate or negative; resolve_conj() or "
            "resolve_neg() gives it bytes of its own"
        )


def _piece(name: str, tensor: torch.Tensor) -> _Piece:
    last = sum(
        step * (length - 1) for step, length in zip(tensor.stride(), tensor.shape, strict=True)
    )
    low = int(tensor.storage_offset()) * tensor.itemsize
    high = low + (last + 1) * tensor.itemsize
    return _Piece(low // ALIGNMENT * ALIGNMENT, -(-high // ALIGNMENT) * ALIGNMENT, name, tensor)


def _spans(pieces: list[_Piece]) -> Iterator[Span]:
    """Of one storage: pieces that overlap or touch are one span."""
    reach = 0
    number = 0

    def numbered(piece: _Piece) -> int:
        nonlocal reach, number
        number += piece.low > reach
        reach = max(reach, piece.high)
        return number

    for _, group in groupby(sorted(pieces, key=lambda piece: piece[:2]), key=numbered):
        yield _span(list(group))


def _span(pieces: list[_Piece]) -> Span:
    storage = max((one.tensor.untyped_storage() for one in pieces), key=lambda one: one.nbytes())
    low = pieces[0].low
    high = min(max(one.high for one in pieces), storage.nbytes())
    content = torch.empty(0, dtype=torch.uint8, device=pieces[0].tensor.device)
    views = tuple(
        View(
            name=one.name,
            tensor=weakref.ref(one.tensor),
            dtype=one.tensor.dtype,
            shape=one.tensor.shape,
            stride=one.tensor.stride(),
            start_bytes=int(one.tensor.storage_offset()) * one.tensor.itemsize - low,
        )
        for one in pieces
    )
    return Span(content.set_(storage, low, (high - low,), (1,)), views)
