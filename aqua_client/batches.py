"""Several tensors at once: all are parked, or none; all are fetched, or none has been written.

    handles = client.offload_many([keys, values])
    keys, values = client.fetch_many(handles)

Each handle is one like any other afterwards. Does not cover a tensor by itself (`tensors`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aqua_client import copying, enqueuing, prefetching, transfers
from aqua_client.errors import InvalidRequest
from aqua_client.layouts import Layout, check_out, layout_of
from aqua_client.pager import Pager
from aqua_client.slabs import Place, Stored
from aqua_client.streams import Copier, Enqueuer
from aqua_client.tensors import OffloadedTensor, safety_class


def offload_many(pager: Pager, tensors: Sequence[torch.Tensor], keep: str) -> list[OffloadedTensor]:
    """Copy all of *tensors* into leased memory or the host's.

    Raises:
        UnsupportedTensor: one of them is not a dense tensor with bytes of its own.
        InvalidRequest: *keep* is neither "store" nor "cache", or a CUDA graph is being captured.
        InsufficientMemory: there is no room for all of them; nothing is stored.
    """
    safety = safety_class(keep)
    sources = list(tensors)
    layouts = [layout_of(tensor) for tensor in sources]

    def copy(places: Sequence[Sequence[Place]]) -> None:
        def write(copier: Copier | None) -> None:
            for source, layout, spans in zip(sources, layouts, places, strict=True):
                copying.write(source, layout, spans, copier)

        enqueuing.together(pager.streams, write)
        enqueuing.used_here(pager.streams, sources)

    def make(stored: Sequence[Stored]) -> list[OffloadedTensor]:
        pairs = zip(stored, layouts, strict=True)
        return [OffloadedTensor(pager, one, layout) for one, layout in pairs]

    return transfers.store(
        pager,
        [layout.nbytes for layout in layouts],
        [layout.device for layout in layouts],
        safety=safety,
        copy=copy,
        make=make,
    )


def fetch_many(
    pager: Pager,
    handles: Sequence[OffloadedTensor],
    outs: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """The tensors of all *handles*; into *outs*, one for each, when these are given.

    Raises:
        HandleReleased: one of them was released; nothing is written.
        LeaseLost: the bytes of one are gone; nothing is written.
        InvalidRequest: one is another client's, or an out does not fit; or a CUDA graph is being
            captured.
    """
    pieces = [_inside(handle, pager) for handle in handles]
    if outs is not None and len(outs) != len(pieces):
        raise InvalidRequest(f"{len(outs)} outs for {len(pieces)} handles")
    checked = [
        check_out(out, layout)
        for out, (_, layout) in zip(outs or (), pieces, strict=outs is not None)
    ]
    transfers.check_may_copy(pager)
    taken = [
        prefetching.take(pager, stored) if stored.prefetched is not None else None
        for stored, _ in pieces
    ]
    targets = checked or [
        copying.new_tensor(layout) if source is None else source
        for source, (_, layout) in zip(taken, pieces, strict=True)
    ]
    _load(pager, pieces, taken, targets)
    for source, (_, layout), target in zip(taken, pieces, targets, strict=True):
        if source is not None and source is not target:
            copying.copy_tensor(source, layout, target)
        if outs is None and layout.requires_grad:
            target.requires_grad_()
    return targets


def _load(
    pager: Pager,
    pieces: Sequence[tuple[Stored, Layout]],
    taken: Sequence[torch.Tensor | None],
    targets: Sequence[torch.Tensor],
) -> None:
    """Read those that were not taken from what was prefetched."""
    rest = [
        (stored, layout, target)
        for (stored, layout), source, target in zip(pieces, taken, targets, strict=True)
        if source is None
    ]

    def copy(places: Sequence[Sequence[Place]], enqueuer: Enqueuer | None) -> None:
        def read(copier: Copier | None) -> None:
            for spans, (_, layout, target) in zip(places, rest, strict=True):
                copying.read(spans, layout, target, copier)

        enqueuing.together(enqueuer, read)

    devices = [target.device for _, _, target in rest]
    transfers.load(pager, [stored for stored, _, _ in rest], devices, copy=copy)


def _inside(handle: OffloadedTensor, pager: Pager) -> tuple[Stored, Layout]:
    if not isinstance(handle, OffloadedTensor):
        raise InvalidRequest(
            f"{type(handle).__qualname__} is no handle: pass what offload returned"
        )
    if handle._pager is not pager:  # noqa: SLF001 - a part of it, in a file of its own
        raise InvalidRequest("a handle is another client's: fetch it there, or by itself")
    return handle._stored, handle._layout  # noqa: SLF001 - as above
