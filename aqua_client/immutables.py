"""Tensors that are never written to: parking one again costs nothing, because its copy is kept.

    parked = client.offload(weights, immutable=True)
    del weights
    weights = parked.fetch()
    assert client.offload(weights, immutable=True) is parked  # nothing is copied

A tensor is known by itself, not by its values, and by its version, which every write in place
raises: one that was written to after all is copied, into a handle of its own. Does not see writes
through `tensor.data`, nor to tensors made within `torch.inference_mode`, which have no version.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch

from aqua_client import tensors
from aqua_client.layouts import Layout
from aqua_client.pager import Pager
from aqua_client.records import SafetyClass
from aqua_client.slabs import Stored
from aqua_client.tensors import OffloadedTensor, safety_class


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A tensor whose bytes a handle has, as long as both are there. Holds neither of them."""

    tensor: weakref.ref[torch.Tensor]
    version: int | None
    handle: weakref.ref[ImmutableTensor]


class Immutables:
    """One a client. Threads may share it: each step on the table is one of the interpreter's."""

    def __init__(self, pager: Pager) -> None:
        self._pager = pager
        self._known: dict[int, _Known] = {}

    def offload(self, tensor: torch.Tensor, keep: str, *, overlap: bool) -> OffloadedTensor:
        """The handle that has the bytes of *tensor*, which is unchanged; else a new one.

        Raises:
            UnsupportedTensor, InvalidRequest, InsufficientMemory: as `tensors.offload`.
        """
        pager = self._pager
        pager.check_not_forked()
        handle = self._find(tensor, safety_class(keep))
        if handle is not None:
            return handle

        def make(pager: Pager, stored: Stored, layout: Layout) -> OffloadedTensor:
            made = ImmutableTensor(pager, stored, layout, self)
            self.note(tensor, made)
            return made

        return tensors.offload(pager, tensor, keep, overlap=overlap, make=make)

    def note(self, tensor: torch.Tensor, handle: ImmutableTensor) -> None:
        """From now on *tensor*, as it is, is what *handle* has."""
        key = id(tensor)

        def forget(gone: weakref.ref[torch.Tensor]) -> None:
            known = self._known.get(key)
            if known is not None and known.tensor is gone:  # not another's, at the same address
                self._known.pop(key, None)

        self._known[key] = _Known(
            tensor=weakref.ref(tensor, forget),
            version=_version(tensor),
            handle=weakref.ref(handle),
        )

    def _find(self, tensor: torch.Tensor, safety: SafetyClass) -> ImmutableTensor | None:
        known = self._known.get(id(tensor))
        if known is None or known.tensor() is not tensor or known.version != _version(tensor):
            return None
        handle = known.handle()
        is_there = handle is not None and not self._pager.is_closed and handle.has_bytes(safety)
        return handle if is_there else None


class ImmutableTensor(OffloadedTensor):
    """A handle whose tensors are known when they are offered again."""

    __slots__ = ("_immutables",)

    def __init__(
        self, pager: Pager, stored: Stored, layout: Layout, immutables: Immutables
    ) -> None:
        super().__init__(pager, stored, layout)
        self._immutables = immutables

    def fetch(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """As `OffloadedTensor.fetch`; offering what it gives again costs nothing."""
        tensor = super().fetch(out)
        self._immutables.note(tensor, self)
        return tensor

    def has_bytes(self, safety: SafetyClass) -> bool:
        """Whether they are still there, in that class."""
        stored = self._stored
        return not (stored.is_released or stored.lost_reason) and stored.safety is safety


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else int(tensor._version)  # noqa: SLF001 - torch documents it
