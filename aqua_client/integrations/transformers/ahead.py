"""Brings near what comes back next: copied to the engine's device before there are blocks for it.

A thread reads the parked blocks of those that the policy names into memory beside the cache, while
the model computes. When their turn comes one copy within the device puts them in place, instead of
one over the link for each piece that was written ahead. What is not there by then is read as ever.

Never more than `most_bytes` are beside the cache; whoever is named no longer makes room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import torch

from aqua_client.errors import AquaError
from aqua_client.integrations.transformers.copies import Parked, Staged
from aqua_client.torch_streams import new_stream


@dataclass(frozen=True, slots=True, kw_only=True)
class _Near:
    """Of one request; on CUDA *event* is when its bytes are there."""

    groups: tuple[Staged, ...]
    event: torch.cuda.Event | None


class Ahead:
    """Made by `paging`, whose thread calls all of it."""

    def __init__(self, *, most_bytes: int, stream: torch.cuda.Stream | None) -> None:
        self._most_bytes = most_bytes
        self._compute_stream = stream
        self._side = None if stream is None else new_stream(stream.device)
        self._coming: dict[str, tuple[Future[_Near | None], int]] = {}  # each with its bytes
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="aqua-ahead")

    def want(self, request_ids: Sequence[str], parked: Callable[[str], Sequence[Parked]]) -> None:
        """These come next, in this order; *parked* says what there is of one."""
        for request_id in [one for one in self._coming if one not in request_ids]:
            self.forget(request_id)
        left = self._most_bytes - sum(nbytes for _, nbytes in self._coming.values())
        for request_id in request_ids:
            if request_id in self._coming:
                continue
            groups = parked(request_id)
            nbytes = sum(one.nbytes for one in groups)
            if nbytes > left:
                return
            left -= nbytes
            self._coming[request_id] = (self._reader.submit(self._read, groups), nbytes)

    def take(self, request_id: str) -> tuple[Staged, ...] | None:
        """What was brought near of it, once it is all there; None: it is to be read."""
        future, _ = self._coming.pop(request_id, (None, 0))
        if future is None or future.cancel():
            return None
        near = future.result()
        if near is None:
            return None
        if near.event is not None and self._compute_stream is not None:
            self._compute_stream.wait_event(near.event)
            for staged in near.groups:
                staged.used_on(self._compute_stream)
        return near.groups

    def forget(self, request_id: str) -> None:
        """It does not come back, or not soon."""
        future, _ = self._coming.pop(request_id, (None, 0))
        if future is not None:
            future.cancel()

    def finish(self) -> None:
        """Wait until nothing is being read."""
        self._reader.submit(lambda: None).result()

    def close(self) -> None:
        """End the thread."""
        self._coming.clear()
        self._reader.shutdown(cancel_futures=True)

    def _read(self, parked: Sequence[Parked]) -> _Near | None:
        """In the thread. Whatever fails is met again by whoever reads it when it is needed."""
        with suppress(AquaError, RuntimeError), torch.cuda.stream(self._side):  # also: no memory
            groups = tuple(one.stage() for one in parked)
            event = None if self._side is None else self._side.record_event()
            return _Near(groups=groups, event=event)
        return None
