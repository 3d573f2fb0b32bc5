"""What every part of a simulated node needs: its time, its dice and its story."""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.agenda import Agenda
from tests.simulation.chance import Chance
from tests.simulation.story import Story


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Time, dice and story of one run."""

    agenda: Agenda
    chance: Chance
    story: Story

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self.agenda.now

    def tell(self, text: str, *values: object) -> None:
        """A line of the story."""
        self.story.tell(self.agenda.now, text, *values)

    def count(self, what: str) -> None:
        """Count something that happened."""
        self.story.counts[what] += 1
