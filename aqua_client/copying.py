"""The client's door to memory: maps slabs, makes host buffers, and moves tensors' bytes.

Everything is torch's own `copy_` between views, so a tensor may be on any device; but the bytes of
a small one that lie in the CPU's memory as they are stored are moved in one step, because making
the view takes as long as copying them. Between a CUDA tensor and a CUDA slab the copies are only
enqueued, on the current stream, and by the streams' own means where the bytes lie as they are stored;
all others are done on return. Does not cover which bytes go where (`tiers`), who waits for what is
enqueued (`streams`), nor when a slab may be unmapped (`slabs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd.graph import increment_version

from aqua_client import libc
from aqua_client.held_copies import HELD_COPIES
from aqua_client.layouts import Layout
from aqua_client.opening import Mapped, UnusableSlab, open_slab
from aqua_client.records import Grant
from aqua_client.streams import Copier, Piece

__all__ = [
    "CHUNK_BYTES",
    "Memory",
    "Range",
    "Span",
    "UnusableSlab",
    "copy_spans",
    "copy_tensor",
    "new_tensor",
    "read",
    "write",
]

# Between two chunks other threads get their turn at the memory, and a closing client is noticed.
CHUNK_BYTES = 16 * 2**20


class Memory:
    """Bytes that tensors are copied to and from: a slab's, or a buffer of the host."""

    __slots__ = ("_mapped", "_views", "address", "is_pinned", "opened_on", "ordinal", "pointer")

    def __init__(self, whole: torch.Tensor, mapped: Mapped | None = None) -> None:
        self._views = {torch.uint8: whole}
        self._mapped = mapped
        self.ordinal = None if mapped is None else mapped.ordinal  # None: the CPU's
        self.pointer = whole.data_ptr()  # as its device knows it; 0: closed
        self.address = self.pointer if whole.is_cpu else 0  # 0: not there, or closed
        self.opened_on = None if mapped is None else mapped.opened_on
        self.is_pinned = False  # the host's, and a device copies by itself

    @classmethod
    def of_grant(cls, grant: Grant, *, home_gpu: str | None = None) -> Memory:
        """Map a granted slab. The grant's descriptor is closed, whatever happens.

        Raises:
            UnusableSlab: it can't be mapped here, or is not the slab that it is said to be.
        """
        mapped = open_slab(grant, home_gpu=home_gpu)
        return cls(mapped.whole(), mapped)

    @classmethod
    def of_host(cls, nbytes: int) -> Memory:
        """A new buffer in this process's memory.

        Raises:
            MemoryError: there is none.
        """
        try:
            with _no_inference():
                return cls(torch.empty(nbytes, dtype=torch.uint8, device="cpu"))
        except RuntimeError as error:
            raise MemoryError(f"{nbytes} bytes of host memory can't be had: {error}") from error

    @classmethod
    def of_pages(cls, pages: npt.NDArray[np.uint8], *, pinned_on: int | None = None) -> Memory:
        """A buffer of memory that is there already, and goes with the last view of it.

        *pinned_on*: a device that copies to and from it by itself, as to and from a slab.
        """
        with _no_inference():
            made = cls(torch.from_numpy(pages))
        made.opened_on = pinned_on
        made.is_pinned = pinned_on is not None
        return made

    @property
    def nbytes(self) -> int:
        """How much it is, until it is given up."""
        return self._views[torch.uint8].numel()

    def view(self, dtype: torch.dtype) -> torch.Tensor:
        """All of it as *dtype*; kept, because making one costs as much as a small copy."""
        view = self._views.get(dtype)
        if view is None:
            with _no_inference():
                view = self._views[torch.uint8].view(dtype)
            self._views[dtype] = view
        return view

    def enlarge(self, nbytes: int) -> bool:
        """Have some pages of a slab's first *nbytes* be larger ones; False: nothing is left to do."""
        return self._mapped is not None and self._mapped.enlarge(nbytes)

    def close(self) -> None:
        """Give the memory up; a slab is unmapped. Idempotent.

        Raises:
            BufferError: somebody still copies. It is as before and may be tried again.
        """
        whole = self._views.get(torch.uint8)
        if whole is None:
            return
        self._views.clear()
        self.address = self.pointer = 0
        del whole
        if self._mapped is None:
            return
        try:
            self._mapped.close()
        except BufferError:
            whole = self._views[torch.uint8] = self._mapped.whole()
            self.pointer = whole.data_ptr()
            self.address = self.pointer if whole.is_cpu else 0
            raise


class Span(Protocol):
    """A range of some memory."""

    @property
    def memory(self) -> Memory:
        """Where it is."""

    @property
    def offset(self) -> int:
        """In bytes; a multiple of every dtype's size."""

    @property
    def nbytes(self) -> int:
        """Its length."""


@dataclass(frozen=True, slots=True)
class Range:
    """A span that is nobody's place."""

    memory: Memory
    offset: int
    nbytes: int


def write(
    source: torch.Tensor, layout: Layout, spans: Sequence[Span], streams: Copier | None = None
) -> None:
    """Copy a tensor into *spans*, in this order."""
    if streams is not None and streams.concern(source.device):
        pieces = _pieces(source, layout, spans)
        if pieces and streams.copy(source.device, pieces):
            return
    if (
        layout.is_plain
        and layout.nbytes <= HELD_COPIES.most_bytes
        and len(spans) == 1
        and not source.is_neg()
    ):
        span, address = spans[0], source.data_ptr()
        if address and span.memory.address:  # none: torch keeps the bytes in a way of its own
            libc.move(span.memory.address + span.offset, address, layout.nbytes)
            return
    if source.requires_grad:
        source = source.detach()
    if layout.copy_dtype is not layout.dtype:
        source = source.view(layout.copy_dtype)
    if _is_small(layout, spans):
        _typed(layout, spans[0]).copy_(source)
    elif spans:
        flat = _flat(source, layout)
        for start, there in _chunks(spans):
            there.copy_(flat[start : start + there.numel()])


def read(
    spans: Sequence[Span],
    layout: Layout,
    target: torch.Tensor,
    streams: Copier | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Copy *spans* into a tensor of the layout's shape and dtype; *check* may end it by raising."""
    concerned = streams is not None and streams.concern(target.device)
    if streams is not None and concerned and _is_read_by(streams, spans, layout, target):
        return
    if (
        layout.is_plain
        and layout.nbytes <= HELD_COPIES.most_bytes
        and len(spans) == 1
        and target.is_cpu
        and target.stride() == layout.stride
        and not target.is_neg()
    ):
        has_version = not target.is_inference()
        span, address = spans[0], target.data_ptr()
        if address and span.memory.address and (has_version or torch.is_inference_mode_enabled()):
            libc.move(address, span.memory.address + span.offset, layout.nbytes)
            if has_version:
                increment_version(target)  # as torch's own copies do
            return
    if target.requires_grad:
        target = target.detach()
    if layout.copy_dtype is not layout.dtype:
        target = target.view(layout.copy_dtype)
    if _is_small(layout, spans):
        target.copy_(_typed(layout, spans[0]))
    elif spans:
        plain = target.stride() == layout.stride and not (target.is_conj() or target.is_neg())
        whole = target if plain else new_tensor(layout, dtype=layout.copy_dtype)
        flat = _flat(whole, layout)
        for start, there in _chunks(spans):
            check()
            flat[start : start + there.numel()].copy_(there)
        if not plain:
            target.copy_(whole)


def _is_read_by(
    streams: Copier, spans: Sequence[Span], layout: Layout, target: torch.Tensor
) -> bool:
    """Whether the streams do it by themselves."""
    has_version = not target.is_inference()
    if not has_version and not torch.is_inference_mode_enabled():
        return False  # an error, which is torch's to raise
    pieces = [(to, source, nbytes) for source, to, nbytes in _pieces(target, layout, spans)]
    if not pieces or not streams.copy(target.device, pieces):
        return False
    if has_version:
        increment_version(target)  # as torch's own copies do
    return True


def _pieces(tensor: torch.Tensor, layout: Layout, spans: Sequence[Span]) -> list[Piece]:
    """Each span's address, its part of the tensor and its length; none: that is not all there is.

    The bytes must lie in the tensor as they are stored, on the device that has the slabs open.
    """
    address = tensor.data_ptr()
    if not address or tensor.stride() != layout.stride or tensor.is_neg() or tensor.is_conj():
        return []
    ordinal = tensor.device.index
    found: list[Piece] = []
    for span in spans:
        memory = span.memory
        if memory.opened_on is None or ordinal not in (None, memory.opened_on):
            return []
        found.append((memory.pointer + span.offset, address, span.nbytes))
        address += span.nbytes
    return found


def new_tensor(layout: Layout, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An empty tensor of this layout on its device."""
    return torch.empty_strided(
        layout.shape, layout.stride, dtype=dtype or layout.dtype, device=layout.device
    )


def copy_tensor(source: torch.Tensor, layout: Layout, target: torch.Tensor) -> None:
    """Copy a tensor of this layout into another of its shape and dtype."""
    target = target.detach() if target.requires_grad else target
    if layout.copy_dtype is not layout.dtype:
        source, target = source.view(layout.copy_dtype), target.view(layout.copy_dtype)
    target.copy_(source)


def copy_spans(pairs: Iterable[tuple[Span, Span]]) -> None:
    """Copy bytes from each first to each second, of the same length.

    In the host's memory each chunk is one call, of however many spans. A thread that comes back from
    a call waits for the interpreter, 5 ms and more where another one computes in Python.
    """
    here: list[torch.Tensor] = []
    there: list[torch.Tensor] = []
    chunk_bytes = 0
    for source, target in pairs:
        is_host = source.memory.ordinal is None and target.memory.ordinal is None
        whole = source.memory.view(torch.uint8)
        for start, part in _chunks([target]):
            begin, nbytes = source.offset + start, part.numel()
            if not is_host:
                part.copy_(whole[begin : begin + nbytes])
                continue
            if chunk_bytes + nbytes > CHUNK_BYTES:
                torch._foreach_copy_(there, here)
                here, there, chunk_bytes = [], [], 0
            here.append(whole[begin : begin + nbytes])
            there.append(part)
            chunk_bytes += nbytes
    if here:
        torch._foreach_copy_(there, here)


def _no_inference() -> AbstractContextManager[object]:
    """What is made in it may be written outside of inference mode, too."""
    # Where nobody is in it there is nothing to leave, which costs more than a view.
    return torch.inference_mode(mode=False) if torch.is_inference_mode_enabled() else nullcontext()


def _is_small(layout: Layout, spans: Sequence[Span]) -> bool:
    return len(spans) == 1 and layout.nbytes <= CHUNK_BYTES


def _typed(layout: Layout, span: Span) -> torch.Tensor:
    whole = span.memory.view(layout.copy_dtype)
    return whole.as_strided(layout.shape, layout.stride, span.offset // layout.itemsize)


def _flat(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Its elements' bytes in the order of memory; a copy only where it is not dense."""
    plain = tensor.resolve_conj().resolve_neg()
    if plain.stride() != layout.stride:
        plain = plain.contiguous()
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)


def _chunks(spans: Sequence[Span]) -> Iterator[tuple[int, torch.Tensor]]:
    """The spans' bytes piece by piece, each with its place in the whole."""
    start = 0
    for span in spans:
        whole = span.memory.view(torch.uint8)
        for begin in range(0, span.nbytes, CHUNK_BYTES):
            length = min(CHUNK_BYTES, span.nbytes - begin)
            yield start + begin, whole[span.offset + begin : span.offset + begin + length]
        start += span.nbytes
