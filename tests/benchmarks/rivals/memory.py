"""The rivals that need nothing: a buffer that is there, shared memory reused, or made each time."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import torch

from tests.benchmarks.rivals.rounds import least_us, medians_us

ROUNDS = 400


def touched_buffer(
    source: torch.Tensor, out: torch.Tensor, *, rounds: int = ROUNDS
) -> Mapping[str, float]:
    """The least that anybody can pay: nobody else sees it, and it is there for good."""
    buffer = torch.zeros_like(source)
    return medians_us(
        lambda: buffer.copy_(source), lambda _: out.copy_(buffer), lambda _: None, rounds=rounds
    )


def shared_buffer(tensors: Sequence[torch.Tensor], *, rounds: int = ROUNDS) -> Mapping[str, float]:
    """One piece for all of them, as long as each other, there for good; figures are of all."""
    nbytes = tensors[0].nbytes
    rows = _new_shared(nbytes * len(tensors)).view(len(tensors), nbytes).zero_().unbind()

    def park() -> None:
        for row, tensor in zip(rows, tensors, strict=True):
            row.copy_(tensor)

    return least_us(park, lambda _: None, lambda _: None, rounds=rounds)


def shared_memory_reused(source: torch.Tensor, out: torch.Tensor) -> Mapping[str, float]:
    """One piece, mapped once and written again and again."""
    shared = _new_shared(source.nbytes)
    return medians_us(
        lambda: shared.copy_(source), lambda _: out.copy_(shared), lambda _: None, rounds=ROUNDS
    )


def shared_memory_made(
    source: torch.Tensor,
    out: torch.Tensor,
    *others: torch.Tensor,
    measured: Callable[..., Mapping[str, float]] = medians_us,
) -> Mapping[str, float]:
    """A piece for each tensor by `multiprocessing.shared_memory`, which another process may open.

    *others*: as long as the first, parked in turns with it.
    """
    turns = cycle((source, *others))

    def park() -> SharedMemory:
        source = next(turns)
        shared = SharedMemory(create=True, size=source.nbytes)
        np.ndarray(source.nbytes, np.uint8, shared.buf)[:] = source.numpy()
        return shared

    def back(shared: SharedMemory) -> None:
        out.numpy()[:] = np.ndarray(out.nbytes, np.uint8, shared.buf)

    def forget(shared: SharedMemory) -> None:
        shared.close()
        shared.unlink()

    return measured(park, back, forget, rounds=ROUNDS)


def memfd_made(
    source: torch.Tensor,
    out: torch.Tensor,
    *others: torch.Tensor,
    measured: Callable[..., Mapping[str, float]] = medians_us,
) -> Mapping[str, float]:
    """The same with nothing around it: a file descriptor, mapped."""
    turns = cycle((source, *others))
    return measured(
        lambda: _new_shared(source.nbytes).copy_(next(turns)),
        out.copy_,
        lambda _: None,
        rounds=ROUNDS,
    )


def _new_shared(nbytes: int) -> torch.Tensor:
    """It goes with its last reference."""
    descriptor = os.memfd_create("rival", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, nbytes)
        return torch.from_numpy(np.frombuffer(mmap.mmap(descriptor, nbytes), dtype=np.uint8))
    finally:
        os.close(descriptor)
