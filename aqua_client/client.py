"""The client: what a program talks to, and the one that the module's own functions use.

    with aqua_client.connect() as client:
        handle = client.offload(tensor)

Covers making, closing and forking. What is done with tensors is `tensors`'.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch

from aqua_client import awaiting, batches, own_device, tensors
from aqua_client.errors import HandleReleased, InvalidSetting
from aqua_client.immutables import Immutables
from aqua_client.pager import Pager
from aqua_client.pools import BlockPool
from aqua_client.session import Session
from aqua_client.settings import ClientSettings, Fallback
from aqua_client.tensors import OffloadedTensor


class Client:
    """One link to the node's memory. Threads may share it. Close it, or use `with`."""

    def __init__(self, settings: ClientSettings | None = None) -> None:
        """Connect; without a daemon it works on host memory, and goes on trying.

        Raises:
            InvalidSetting: the environment has a value that is not allowed.
        """
        settings = settings or ClientSettings.from_environment()
        if settings.home_gpu is None:  # then it is the one that torch uses, if it does
            settings = replace(settings, home_gpu=own_device.torch_gpu())
        self._pager = Pager(settings, Session)
        self._immutables = Immutables(self._pager)
        _open_pagers.add(self._pager)
        _made_pagers.add(self._pager)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def offload(
        self,
        tensor: torch.Tensor,
        *,
        keep: str = "store",
        immutable: bool = False,
        overlap: bool = False,
    ) -> OffloadedTensor:
        """Copy *tensor* into memory leased from other GPUs, or the host's where there is none.

        *keep*: "store" survives when a lease is taken back, "cache" may be dropped then.
        *immutable*: the tensor, and what is fetched, is not written to any more; offering one of
        them again gives the same handle while it has the bytes, and copies nothing.
        *overlap*: copy beside the current CUDA stream; the tensor must not be written to before
        `handle.wait()`.

        Raises:
            UnsupportedTensor: it is not a dense tensor with bytes of its own.
            InsufficientMemory: nowhere is room; the tensor is as it was.
            BrokerUnreachable: there is no leased memory, and `fallback="error"`.
            ForkedChild: connect anew in this process.
        """
        if immutable:
            return self._immutables.offload(tensor, keep, overlap=overlap)
        return tensors.offload(self._pager, tensor, keep, overlap=overlap)

    async def offload_async(
        self, tensor: torch.Tensor, *, keep: str = "store", immutable: bool = False
    ) -> OffloadedTensor:
        """`offload` in a thread of the library's own, while the event loop goes on.

        The tensor must not be written to meanwhile. Cancelled, it parks nothing.

            handle = await client.offload_async(kv_cache)
            kv_cache = await handle.fetch_async()
        """
        self._pager.check_not_forked()
        return await awaiting.in_thread(
            lambda: self.offload(tensor, keep=keep, immutable=immutable),
            device=getattr(
                tensor, "device", torch.device("cpu")
            ),  # what is no tensor is told there
            undo=lambda handle: None if immutable else handle.release(),  # it may be somebody's
        )

    def offload_many(
        self, sources: Sequence[torch.Tensor], *, keep: str = "store"
    ) -> list[OffloadedTensor]:
        """`offload` of several tensors: all of them are parked, or an error is raised and none is.

        Raises:
            UnsupportedTensor, InsufficientMemory, BrokerUnreachable, ForkedChild: as `offload`.
        """
        return batches.offload_many(self._pager, sources, keep)

    def fetch_many(
        self, handles: Sequence[OffloadedTensor], outs: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """`fetch` of several handles, into *outs* if given: when one can't be, none is written.

        Raises:
            HandleReleased, LeaseLost, InvalidRequest: as `OffloadedTensor.fetch`, for any of them.
        """
        return batches.fetch_many(self._pager, handles, outs)

    def pool(
        self, block_shape: Sequence[int], dtype: torch.dtype, *, keep: str = "store"
    ) -> BlockPool:
        """A pool that parks scattered blocks of a paged cache in one step: `pools` has an example.

        *block_shape*: of one block; caches are `(n_blocks, *block_shape)`. *keep* as in `offload`.

        Raises:
            InvalidRequest: blocks of that shape have no bytes, or *keep* is not allowed.
            ForkedChild: connect anew in this process.
        """
        self._pager.check_not_forked()
        return BlockPool(self._pager, block_shape, dtype, tensors.safety_class(keep))

    def stats(self) -> dict[str, object]:
        """What went where and why, by name.

        Now: `attached` to the daemon or not, and the `reason`; the `tenant`; `peer_bytes` and
        `host_bytes` that are parked; `host_reserved_bytes` at the daemon; `evacuation_buffer_bytes`
        of host memory kept touched, or pinned; `pinned_bytes`, those used among them;
        `prefetched_bytes` not fetched yet; `leases` by lender's GPU: `slabs`, their `bytes` and
        `used_bytes`; `copy_ways`: by CUDA device and then by number and size of blocks, the
        microseconds that each way of copying them was measured to take there.

        Since it was made: `offloads`, `fetches`, `prefetches`, `releases`; `peer_out_bytes` and
        `host_out_bytes` offloaded, `peer_in_bytes` and `host_in_bytes` fetched or prefetched;
        `revokes_served` (leases), `evacuated_bytes` out of these, `promoted_bytes` from the host back
        to leases, `leases_granted`, `leases_lost`,
        `leases_exchanged` (revoked, and kept because others went back instead);
        `session_opens`, `session_reattaches`, `session_detaches`; `breaker_openings`; `fallbacks`
        to host memory and `call_failures`, each by reason.

            print(aqua_client.stats()["fallbacks"])  # {} or {"no_daemon": 3}

        Raises:
            ForkedChild: connect anew in this process.
        """
        return self._pager.stats()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._pager.is_closed

    def close(self) -> None:
        """Give everything back; handles hold nothing afterwards. Idempotent, and quick."""
        if self._pager in _open_pagers:
            _open_pagers.discard(self._pager)
            self._pager.close()

    def __del__(self) -> None:
        # Only warns: the handles that it made may live on, and closing is not a finalizer's work.
        if not _open_pagers:  # none is open, or the interpreter has taken this module apart
            return
        if getattr(self, "_pager", None) in _open_pagers and self is not _default.client:
            warnings.warn("a Client was never closed", ResourceWarning, stacklevel=2)


class _Default:
    """The client of the module's own functions, made at its first use."""

    def __init__(self) -> None:
        self.client: Client | None = None
        self.lock = threading.Lock()
        self.has_ended = False  # the interpreter ends: no other is made
        self._replaced: list[Client] = []

    def replace(self, client: Client) -> None:
        """Another one from now on. The handles of the one before live on, and so does it."""
        if self.client is not None and not self.client.is_closed:
            self._replaced.append(self.client)
        self.client = client


def connect(
    *, socket: str | None = None, home_gpu: str | None = None, fallback: str | None = None
) -> Client:
    """A new client, which `aqua_client.offload` uses too from now on.

    What is not given comes from the environment. In a forked child this is how to begin anew.

    Raises:
        InvalidSetting: a value is not allowed.
    """
    settings = ClientSettings.from_environment()
    if socket is not None:
        settings = replace(settings, socket_path=socket)
    if home_gpu is not None:
        settings = replace(settings, home_gpu=home_gpu)
    if fallback is not None:
        settings = replace(settings, fallback=_fallback(fallback))
    client = Client(settings)
    with _default.lock:
        _default.replace(client)
    return client


def offload(
    tensor: torch.Tensor, *, keep: str = "store", immutable: bool = False, overlap: bool = False
) -> OffloadedTensor:
    """`Client.offload` of the process's own client, which needs no set-up."""
    return _own_client().offload(tensor, keep=keep, immutable=immutable, overlap=overlap)


async def offload_async(
    tensor: torch.Tensor, *, keep: str = "store", immutable: bool = False
) -> OffloadedTensor:
    """`Client.offload_async` of the process's own client."""
    return await _own_client().offload_async(tensor, keep=keep, immutable=immutable)


def offload_many(sources: Sequence[torch.Tensor], *, keep: str = "store") -> list[OffloadedTensor]:
    """`Client.offload_many` of the process's own client."""
    return _own_client().offload_many(sources, keep=keep)


def fetch_many(
    handles: Sequence[OffloadedTensor], outs: Sequence[torch.Tensor] | None = None
) -> list[torch.Tensor]:
    """`Client.fetch_many` of the process's own client."""
    return _own_client().fetch_many(handles, outs)


def pool(block_shape: Sequence[int], dtype: torch.dtype, *, keep: str = "store") -> BlockPool:
    """`Client.pool` of the process's own client."""
    return _own_client().pool(block_shape, dtype, keep=keep)


def stats() -> dict[str, object]:
    """`Client.stats` of the process's own client."""
    return _own_client().stats()


def _own_client() -> Client:
    client = _default.client
    if client is None or client.is_closed:
        with _default.lock:
            client = _default.client
            if _default.has_ended:
                raise HandleReleased("the interpreter ends: nothing is parked any more")
            if client is None or client.is_closed:
                client = _default.client = Client()
    return client


def _fallback(value: str) -> Fallback:
    try:
        return Fallback(value)
    except ValueError:
        allowed = " or ".join(repr(one.value) for one in Fallback)
        raise InvalidSetting.of("fallback", value, allowed) from None


def _close_all() -> None:
    # A daemon thread that goes on would be in a copy when the interpreter ends, which torch
    # answers with an abort. (Not under the lock: who has it may be waiting for a daemon.)
    _default.has_ended = True
    for pager in tuple(_open_pagers):
        _open_pagers.discard(pager)
        pager.close()
    awaiting.await_background(_END_SECONDS)


def _abandon_all() -> None:
    """In a forked child: everything raises ForkedChild, until it connects anew."""
    for pager in _made_pagers:
        pager.abandon_in_child()
    _open_pagers.clear()
    _default.lock = threading.Lock()


_END_SECONDS = 0.2  # what the end of a process may be held up by
_default = _Default()
_open_pagers: set[Pager] = set()
# Those that are closed too: some thread may have been closing one, with its lock, as another forked.
_made_pagers: weakref.WeakSet[Pager] = weakref.WeakSet()
atexit.register(_close_all)
os.register_at_fork(after_in_child=_abandon_all)
