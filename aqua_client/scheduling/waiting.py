"""All who wait, by what they need first: a prompt to be computed, or only their blocks back."""

from __future__ import annotations

from aqua_client.scheduling.ranks import Line
from aqua_client.scheduling.requests import Request
from aqua_client.scheduling.settings import FairSettings


class Waiting:
    """Three lines."""

    def __init__(self, settings: FairSettings) -> None:
        self.newcomers = Line(settings)  # who had no slice yet
        self.parked = Line(settings)  # who lack one token, as all who decode do
        self.lost = Line(settings)  # who have to compute again what they had

    def add(self, request: Request) -> None:
        """It waits from now on."""
        self._line(request).add(request)

    def remove(self, request: Request) -> None:
        """It waits no longer. To be called before anything of the request changes."""
        self._line(request).remove(request)

    def _line(self, request: Request) -> Line:
        if not request.has_had_slice:
            return self.newcomers
        return self.lost if request.is_prefilling else self.parked
