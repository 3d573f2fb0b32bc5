"""Times fetches that are only enqueued: by events of their device, because the caller waits for none.

Story of a timed fetch, of one tensor, several together or a pool's blocks: an event is recorded right
before its copy, another one as its end; whoever then finds it over, to let go of what it held
(`in_flight`), is told what lies between the two, and it counts for the lender (`tiers`). Some of each
lender's are enough for an order among them. Does not cover which (`streams`), nor fetches that are
over on return, which the clock times.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from aqua_client.slabs import Place
from aqua_client.streams import Event, Pieces, Streams, sum_of_bytes

# NVLink 4 carries so much in 11 us. Of a shorter copy too much is what lies between two calls of ours.
LEAST_BYTES = 4 * 2**20


class Timed:
    """Has the beginning of one lender's copy recorded with it."""

    def __init__(self, streams: Streams, lender_gpu: str) -> None:
        self._streams = streams
        self._lender_gpu = lender_gpu
        self.began: Event | None = None  # None: it is not timed, or torch's

    def concern(self, device: torch.device) -> bool:
        """As the streams say."""
        return self._streams.concern(device)

    def copy(self, device: torch.device, pieces: Pieces, *, may_torch: bool = False) -> bool:
        """As the streams do."""
        nbytes = sum_of_bytes(pieces)

        def begin() -> None:
            self.began = self._streams.begin_timing(device, self._lender_gpu, nbytes=nbytes)

        is_enqueued = self._streams.copy(
            device, pieces, may_torch=may_torch, begin=begin if nbytes >= LEAST_BYTES else None
        )
        if not is_enqueued:
            self.began = None
        return is_enqueued

    def upload(self, device: torch.device, numbers: torch.Tensor) -> torch.Tensor:
        """As the streams do."""
        return self._streams.upload(device, numbers)


def timed(streams: Streams, places: Iterable[Place]) -> Timed | None:
    """For a fetch from *places*; None: they say nothing of one link."""
    lenders = {None if place.slab is None else place.slab.lender_gpu for place in places}
    lender = lenders.pop() if len(lenders) == 1 else None
    return None if lender is None else Timed(streams, lender)


def began_by(timer: Timed | None) -> Event | None:
    """What the copy's end is recorded `since`."""
    return None if timer is None else timer.began
