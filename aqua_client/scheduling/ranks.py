"""Who goes before whom, and those who wait, in that order.

A rank changes only when a request runs: all grow older at the same pace, so that ageing is an
advance for having come early. That newcomers go before all of them is not a matter of rank, but of
`packing`, which bounds how much of the engine they may have so.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from aqua_client.scheduling.requests import Request
from aqua_client.scheduling.settings import FairSettings, Order

Rank = tuple[float, int]  # smaller goes first; the last is the order of arrival


def rank(request: Request, settings: FairSettings) -> Rank:
    """Its place, by virtual run time less what it is given for its age, or by age alone."""
    if settings.order is Order.OLDEST:
        return (0.0, request.number)
    aged = settings.ageing_tokens_per_second * request.came_at
    return (request.virtual_tokens + aged, request.number)


class Line:
    """Requests that wait, in order of rank."""

    def __init__(self, settings: FairSettings) -> None:
        self._settings = settings
        self._places: list[tuple[Rank, Request]] = []
        self._ranks: dict[str, Rank] = {}

    def __iter__(self) -> Iterator[tuple[Rank, Request]]:
        """First in rank first. Not to be changed meanwhile."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._places)

    def add(self, request: Request) -> None:
        """It waits from now on."""
        place = rank(request, self._settings)
        self._ranks[request.request_id] = place
        insort(self._places, (place, request), key=_place)

    def remove(self, request: Request) -> None:
        """It waits no longer; whoever did not is ignored."""
        place = self._ranks.pop(request.request_id, None)
        if place is not None:
            del self._places[bisect_left(self._places, place, key=_place)]


def _place(entry: tuple[Rank, Request]) -> Rank:
    return entry[0]
