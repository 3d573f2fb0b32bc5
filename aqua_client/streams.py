"""What the client needs of CUDA streams: whose turn a copy is, and when it is over.

`Event` and `Streams` are all that the rest of the client knows of them, so that its rules are
tested without a GPU; `cuda_streams` is what they are with one. The rules:

1. A copy is enqueued on the caller's current stream, or on a side stream that waits for it; there is
   one for each direction, so that what comes and what goes use the link at once.
2. Its event holds the pins: nothing it touches is freed, moved or unmapped before that is done.
3. On a stream that is being captured nothing is enqueued: a graph would replay it with addresses
   that have long been given back.
4. Whatever is asked of an event is asked in the relaxed capture mode: otherwise one question ends
   the capture that a server does in another thread.

Does not cover who keeps the pins (`in_flight`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from aqua_client.crossover import Crossover, Way

# To, from, bytes: one copy between addresses that the device reaches. Many are rows of an array.
Piece = tuple[int, int, int]
Pieces = Sequence[Piece] | npt.NDArray[np.uint64]
Begin = Callable[[], None]


def sum_of_bytes(pieces: Pieces) -> int:
    """Of all of them."""
    if isinstance(pieces, np.ndarray):
        return int(pieces[:, 2].sum())
    return sum(nbytes for _, _, nbytes in pieces)


class Event(Protocol):
    """The end of a copy that was enqueued."""

    @property
    def nanoseconds(self) -> int:
        """What it took on its device, once it is known to be over; 0: it was not timed."""

    @property
    def nbytes(self) -> int:
        """How much was copied in that time."""

    def is_done(self) -> bool:
        """Whether it is over. Never waits; raises RuntimeError when the device has failed."""

    def wait_on_current_stream(self) -> None:
        """Let what is enqueued from now on come after it. The caller itself does not wait."""

    def wait(self) -> None:
        """Let the caller wait. RuntimeError: the device has failed."""


class Copier(Protocol):
    """Who enqueues copies by addresses."""

    def concern(self, device: torch.device) -> bool:
        """Whether copies of tensors there are enqueued, not done on return."""

    def copy(self, device: torch.device, pieces: Sequence[Piece]) -> bool:
        """Enqueue them; False: torch is to do it."""


class Enqueuer(Protocol):
    """Who enqueues many copies by addresses, in whatever way is the quickest."""

    def concern(self, device: torch.device) -> bool:
        """Whether copies of tensors there are enqueued, not done on return."""

    def copy(self, device: torch.device, pieces: Pieces, *, may_torch: bool = False) -> bool:
        """As the streams do."""

    def upload(self, device: torch.device, numbers: torch.Tensor) -> torch.Tensor:
        """As the streams do."""


class Streams(Protocol):
    """One a client."""

    @property
    def home_ordinal(self) -> int | None:
        """The device whose tensors were parked last; None: none was."""

    def concern(self, device: torch.device) -> bool:
        """Whether copies of tensors there are enqueued, not done on return."""

    def check_not_capturing(self) -> None:
        """Raise InvalidRequest while the current stream is being captured."""

    def begin_timing(self, device: torch.device, lender_gpu: str, *, nbytes: int) -> Event | None:
        """The beginning of a copy from that lender, to be recorded `since`; None: it is not timed.

        Never raises.
        """

    def record(
        self, device: torch.device, ordinals: Sequence[int], *, since: Event | None = None
    ) -> Event | None:
        """The end of what is enqueued so far on the current stream of a tensor's device.

        *ordinals* are the devices of the slabs that it was copied to or from. None: there is
        nothing to wait for. RuntimeError: it can't be known.
        """

    def copy(
        self,
        device: torch.device,
        pieces: Pieces,
        *,
        may_torch: bool = False,
        begin: Begin | None = None,
    ) -> bool:
        """Enqueue copies on the current stream of a tensor's device, by the quickest way known.

        *begin* is called right before the driver gets them, where the time from then on is mostly
        theirs. False: torch is to do it. It is quicker (*may_torch*), or the only one that can;
        nothing is known of what these would have written.
        """

    def copy_by(
        self, way: Way, device: torch.device, pieces: Pieces, *, begin: Begin | None = None
    ) -> None:
        """The same by a way that is none of torch's. RuntimeError: it can't be."""

    def upload(self, device: torch.device, numbers: torch.Tensor) -> torch.Tensor:
        """The same numbers on a device, without waiting for what its stream has to do."""

    def crossover(self, device: torch.device) -> Crossover | None:
        """What was measured there, to be filled; None: nothing can be measured."""

    def told(self) -> dict[str, object]:
        """What was measured, by device, for people."""

    def measuring(self, device: torch.device) -> AbstractContextManager[Callable[[], None]]:
        """On a stream of the library's own, for a thread of its own; what it gives waits for that."""

    def aside(self, tensor: torch.Tensor, *, inward: bool) -> AbstractContextManager[None]:
        """Enqueue copies of *tensor* beside the current stream, after what that has been given.

        *inward*: to the tensor. Its memory is given to nobody else before they are over.
        """

    def used_here(self, tensor: torch.Tensor) -> None:
        """The current stream uses a tensor that was made under another, perhaps."""

    def on_own_stream(self, ordinal: int) -> AbstractContextManager[None]:
        """Copy on a stream of the library's; all of it is over at the end of the block."""


class Never:
    """The end of a copy of which nothing can be known: what it touches is never given back."""

    nanoseconds = nbytes = 0

    def is_done(self) -> bool:
        """It is not."""
        return False

    def wait_on_current_stream(self) -> None:
        """There is nothing to wait for."""

    def wait(self) -> None:
        """It would never end."""
        raise RuntimeError("the end of a copy can't be known: its device has failed")
