"""Drained GPUs: nothing is granted there, all that is lent there is asked back, whoever serves.

What admins have drained outlives every daemon, so the judge keeps it over restarts.
"""

from __future__ import annotations

from collections.abc import Iterable

from aqua_daemon.core.instructions import AnswerDrain, AnswerUndrain
from aqua_daemon.core.model import GpuUuid, LeaseState
from tests.simulation.books import Books
from tests.simulation.judge import require
from tests.simulation.stage import Stage

_WITH_HOLDER = (
    LeaseState.ALLOCATING,
    LeaseState.LEASED,
    LeaseState.REVOKING,
    LeaseState.QUARANTINED,
)


class Drains:
    """Judges what comes of drains."""

    def __init__(self, stage: Stage) -> None:
        self._drained: dict[GpuUuid, None] = {}
        self._stage = stage

    def drained(self, answer: AnswerDrain, books: Books) -> None:
        """A drain, or what one would do, is answered; what comes of it was ordered before."""
        self._stage.count("drains told ahead" if answer.is_dry_run else "drains")
        there = [x for x in books.leases.values() if x.lender in answer.gpus]
        held = sum(x.nbytes for x in there if x.state in _WITH_HOLDER)
        said = sum(hit.nbytes for hit in answer.hits)
        require(said == held, "a drain says {} bytes, {} are held there", said, held)
        if not answer.is_dry_run:
            self._drained.update(dict.fromkeys(answer.gpus))
            self.look(books)

    def undrained(self, answer: AnswerUndrain) -> None:
        """GPUs lend again: all that were drained, of those that were named."""
        self._stage.count("undrains")
        for gpu in answer.gpus:
            require(gpu in self._drained, "{} was not drained", gpu)
            del self._drained[gpu]

    def grants(self, gpu: GpuUuid) -> None:
        """A slab is ordered there."""
        require(gpu not in self._drained, "slab on {}, which is drained", gpu)

    def look(self, books: Books) -> None:
        """Whatever is lent there has been asked back."""
        for lease in books.leases.values():
            stays = lease.state is LeaseState.LEASED and lease.lender in self._drained
            require(not stays, "{} stays on a drained GPU", lease)

    def shown(self, drained: Iterable[GpuUuid]) -> None:
        """What the books say is drained, at any moment."""
        require(set(drained) == set(self._drained), "{}, not {}", drained, list(self._drained))
