"""Which slabs to give back instead of those that were asked for, where that saves copies.

The daemon proposes by what it was told last, up to a third of a term ago; here is known what is empty
by now. Pure: it looks, and changes nothing. What comes of it is `exchanging`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aqua_client.slabs import Slab


@dataclass(frozen=True, slots=True)
class Swap:
    """A slab to be kept, and those that go back for it: at least as many bytes, of the same GPU."""

    kept: Slab
    given: tuple[Slab, ...]


def swaps(revoked: Iterable[Slab], held: Iterable[Slab]) -> list[Swap]:
    """For those of *revoked* that would have to be copied, others of *held* that would not.

    What is emptiest goes first. `cache` bytes are dropped for it only where fewer are than would have
    to be copied.
    """
    free = [slab for slab in held if not slab.is_fenced and not slab.copy_bytes]
    free.sort(key=lambda slab: (slab.extents.used_bytes, slab.nbytes))
    found: list[Swap] = []
    for slab in sorted(revoked, key=lambda slab: slab.copy_bytes, reverse=True):
        given = _enough([one for one in free if one.lender_gpu == slab.lender_gpu], slab.nbytes)
        dropped_bytes = sum(one.extents.used_bytes for one in given)
        if given and dropped_bytes < slab.copy_bytes:
            found.append(Swap(slab, tuple(given)))
            free = [one for one in free if one not in given]
    return found


def _enough(slabs: Sequence[Slab], nbytes: int) -> list[Slab]:
    """The first of *slabs* that have so many bytes together, without those that need not be there."""
    taken: list[Slab] = []
    for slab in slabs:
        if sum(one.nbytes for one in taken) >= nbytes:
            break
        taken.append(slab)
    spare_bytes = sum(one.nbytes for one in taken) - nbytes
    if spare_bytes < 0:
        return []
    for slab in sorted(taken, key=lambda one: one.nbytes):
        if slab.nbytes <= spare_bytes:
            taken.remove(slab)
            spare_bytes -= slab.nbytes
    return taken
