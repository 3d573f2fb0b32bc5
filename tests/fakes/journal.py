"""A journal that remembers everything, in order."""

from __future__ import annotations

from aqua_daemon.core.events import Event
from aqua_daemon.core.instructions import Instruction


class FakeJournal:
    """Implements ports.Journal."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.instructions: list[Instruction] = []
        self.refusals: list[tuple[Event, Exception]] = []
        self.story: list[str] = []  # the records' names, in the order in which they came

    def event(self, event: Event) -> None:
        self.events.append(event)
        self.story.append(type(event).__name__)

    def instructed(self, *wanted: Instruction) -> None:
        self.instructions += wanted
        self.story += [type(instruction).__name__ for instruction in wanted]

    def refused(self, event: Event, error: Exception) -> None:
        self.refusals.append((event, error))
        self.story.append(f"{type(error).__name__} for {type(event).__name__}")
