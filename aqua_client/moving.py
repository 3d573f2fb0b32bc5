"""Copies pieces from where they are to where they will be, beside what the program does.

While one is copied it stays readable where it was; the swap is `tiers`'. What goes where is
`evacuation`'s and `promotion`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from aqua_client import copying
from aqua_client.copying import Range
from aqua_client.slabs import Place
from aqua_client.streams import Streams

Move = tuple[Place, Sequence[Place]]  # a piece, and where it goes: as long together


def copy_piece(streams: Streams | None, source: Place, targets: Sequence[Place]) -> None:
    """Copy all of *source* to *targets*, which are as long together; it is over on return."""
    copy_pieces(streams, [(source, targets)])


def copy_pieces(streams: Streams | None, moves: Sequence[Move]) -> None:
    """As `copy_piece`, with as few calls as can be."""
    with _apart(streams, [one for source, targets in moves for one in (source, *targets)]):
        copying.copy_spans([pair for move in moves for pair in _pairs(*move)])


def _pairs(source: Place, targets: Sequence[Place]) -> Iterator[tuple[Range, Place]]:
    begin = source.offset
    for target in targets:
        yield Range(source.memory, begin, target.nbytes), target
        begin += target.nbytes


def _apart(streams: Streams | None, places: Sequence[Place]) -> AbstractContextManager[None]:
    """On a stream of the library's own, and all over at the end; on shared memory it is so."""
    for place in places:
        if streams is not None and place.memory.opened_on is not None:
            return streams.on_own_stream(place.memory.opened_on)
    return nullcontext()
