"""What a forward saves for its backward, parked until then.

    layers = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 8))
    with aqua_client.offload_activations(min_bytes=64 * 2**10) as saved:
        loss = layers(torch.randn(256, 512)).sum()
    loss.backward()  # brings each back when its turn comes, the one before it meanwhile
    print(saved.offloaded_bytes)

Parameters and their views stay where they are, and so does what is small. What is saved several
times is stored once, and comes back once. Does not cover recomputing (`torch.utils.checkpoint`),
whose hooks win inside of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from aqua_client import client as own
from aqua_client.errors import AquaError, BrokerUnreachable, InsufficientMemory
from aqua_client.integrations.modules.spans import ALIGNMENT
from aqua_client.tensors import OffloadedTensor

MIB = 2**20
Offload = Callable[[torch.Tensor], OffloadedTensor]


@contextmanager
def offload_activations(
    *, min_bytes: int = MIB, client: own.Client | None = None
) -> Iterator[Activations]:
    """Within the block, park what a forward saves, if it has at least *min_bytes*.

    The backward may be inside or after it, may be called again (`retain_graph`), and may itself be
    differentiated. What has no room stays where it is, and is counted.

    *client*: whose memory; the process's own, unless given.

    Raises, in the backward:
        LeaseLost: the GPU or keeper that held an activation failed; run the forward again.
        HandleReleased: the client closed meanwhile.
    """
    activations = Activations(own.offload if client is None else client.offload, min_bytes)
    with saved_tensors_hooks(activations.pack, unpack):
        yield activations


class Activations:
    """What was done with the tensors that were saved."""

    def __init__(self, offload: Offload, min_bytes: int) -> None:
        """Made by `offload_activations`."""
        self.offloaded_bytes = 0
        self.kept_bytes = 0  # of those that would have been, but there was no room
        self.reason = ""  # why
        self._offload = offload
        self._min_bytes = min_bytes
        self._stored: weakref.WeakValueDictionary[object, _Stored] = weakref.WeakValueDictionary()
        self._last: weakref.ref[_Stored] | None = None

    def pack(self, tensor: torch.Tensor) -> _Kept | _Parked:
        """What autograd keeps in the place of *tensor*."""
        if tensor.nbytes < max(1, self._min_bytes) or _stays(tensor):
            return _Kept(tensor)
        try:
            with torch.no_grad():
                return self._park(tensor)
        except (InsufficientMemory, BrokerUnreachable) as error:
            self.kept_bytes += tensor.nbytes
            self.reason = error.reason
            return _Kept(tensor)

    def _park(self, tensor: torch.Tensor) -> _Parked:
        storage = StorageWeakRef(tensor.untyped_storage())
        layout = (tensor.dtype, tensor.shape, tensor.stride())
        start, offset, length = _reach(tensor)
        # Of one with gaps only its own elements are stored; else all views of these bytes are one.
        has_gaps = length - offset > tensor.nbytes
        key = (storage.cdata, start, length, _version(tensor), layout if has_gaps else None)
        stored = self._stored.get(key)
        if stored is None:
            source = tensor.detach() if has_gaps else _bytes_of(tensor, start, length)
            handle = self._offload(source)
            stored = _Stored(storage=storage, handle=handle, before=self._last)
            self.offloaded_bytes += source.nbytes
            self._stored[key] = stored
            self._last = weakref.ref(stored)
        return _Parked(stored, *layout, offset=offset, has_gaps=has_gaps)


def unpack(packed: _Kept | _Parked) -> torch.Tensor:
    """The tensor again."""
    return packed.unpack()


class _Kept:
    """A tensor that stays. Torch looks at versions only where there are no hooks: we do it here."""

    def __init__(self, tensor: torch.Tensor) -> None:
        # Detached: an output that its own graph holds would never go.
        self._tensor = tensor if tensor.is_leaf else tensor.detach()
        self._saved_version = _version(tensor)

    def unpack(self) -> torch.Tensor:
        version = _version(self._tensor)
        if version != self._saved_version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: {self._tensor.dtype} {list(self._tensor.shape)} is at version "
                f"{version}; expected version {self._saved_version} instead"
            )
        return self._tensor


@dataclass(slots=True, weakref_slot=True, kw_only=True, eq=False)
class _Stored:
    """Bytes that are parked, as long as anything that autograd keeps needs them."""

    storage: StorageWeakRef  # for as long as it is held, no other storage has the same name
    handle: OffloadedTensor
    before: weakref.ref[_Stored] | None  # the one saved before it, which a backward needs next
    users: weakref.WeakSet[_Parked] = field(default_factory=weakref.WeakSet)

    def fetch(self, like: _Parked) -> torch.Tensor:
        """The bytes, or with gaps the tensor; every other user is handed them, too."""
        out = None
        if like.has_gaps:
            device = self.handle.device
            out = torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device=device)
        fetched = self.handle.fetch(out)
        for user in self.users:
            user.fetched = fetched
        before = None if self.before is None else self.before()
        if before is not None:
            with suppress(AquaError):  # its own fetch says so
                before.handle.prefetch()
        return fetched


class _Parked:
    """A tensor that was saved, and where its bytes are."""

    def __init__(
        self,
        stored: _Stored,
        dtype: torch.dtype,
        shape: torch.Size,
        stride: tuple[int, ...],
        *,
        offset: int,
        has_gaps: bool,
    ) -> None:
        self.dtype, self.shape, self.stride, self.has_gaps = dtype, shape, stride, has_gaps
        self._offset = offset  # in what is stored, in bytes
        self.fetched: torch.Tensor | None = None  # by another user of the same bytes
        self._stored = stored
        stored.users.add(self)

    def unpack(self) -> torch.Tensor:
        fetched = self.fetched
        if fetched is None:
            with torch.no_grad():
                fetched = self._stored.fetch(self)
        self.fetched = None
        if self.has_gaps:
            return fetched
        empty = torch.empty(0, dtype=self.dtype, device=fetched.device)
        start = self._offset // self.dtype.itemsize
        return empty.set_(fetched.untyped_storage(), start, self.shape, self.stride)


def _stays(tensor: torch.Tensor) -> bool:
    """Whether somebody holds it anyway, or its bytes are not all of it."""
    base = tensor._base  # noqa: SLF001 - torch documents it
    is_owned = isinstance(tensor, torch.nn.Parameter) or isinstance(base, torch.nn.Parameter)
    return (
        is_owned
        or (tensor.is_leaf and tensor.requires_grad)
        or type(tensor) is not torch.Tensor
        or tensor.is_nested
        or tensor.layout is not torch.strided
        or tensor.is_meta
        or tensor.is_quantized
        or tensor.is_conj()
        or tensor.is_neg()
    )


def _reach(tensor: torch.Tensor) -> tuple[int, int, int]:
    """What of its storage is to be stored, its start and length, and where in that it lies; in bytes.

    It comes back as aligned as it was: a kernel may choose its way by the address, and round
    otherwise.
    """
    strides = zip(tensor.stride(), tensor.shape, strict=True)
    last = sum(step * (length - 1) for step, length in strides)
    first = int(tensor.storage_offset()) * tensor.itemsize
    offset = first % ALIGNMENT
    return first - offset, offset, offset + (last + 1) * tensor.itemsize


def _bytes_of(tensor: torch.Tensor, start: int, length: int) -> torch.Tensor:
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), start, (length,), (1,))


def _version(tensor: torch.Tensor) -> int:
    return int(tensor._version)  # noqa: SLF001 - torch documents it
