"""Virtual time: an agenda of what happens when, and streams in which nothing is overtaken."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

from tests.simulation.chance import Chance

Action = Callable[[], None]


class Agenda:
    """What will happen, in the order of its time; what is due at one time keeps its order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Action]] = []
        self._numbers = count()

    def after(self, seconds: float, action: Action) -> None:
        """Let *action* happen *seconds* from now."""
        heapq.heappush(self._due, (self.now + seconds, next(self._numbers), action))

    def run_until(self, when: float) -> None:
        """Let everything happen that is due until *when*."""
        due = self._due
        while due and due[0][0] <= when:
            self.now, _, action = heapq.heappop(due)
            action()
        self.now = when


class Stream:
    """One direction of a connection: slow at times, never out of order; a cut loses a tail."""

    def __init__(self, agenda: Agenda, chance: Chance, *, pauses: float = 0.06) -> None:
        self._pauses = pauses
        self._agenda = agenda
        self._chance = chance
        self._in_flight: deque[Action] = deque()
        self._latest = 0.0
        self.is_open = True

    def send(self, action: Action) -> None:
        """Let *action* happen at the other end, after everything sent before; lost if closed."""
        if not self.is_open:
            return
        self._latest = max(
            self._latest, self._agenda.now + self._chance.latency(pauses=self._pauses)
        )
        self._in_flight.append(action)
        self._agenda.after(self._latest - self._agenda.now, self._deliver)

    def cut(self, *, arriving: int = 0) -> None:
        """Close it; of what is in flight the first *arriving* still arrive, at once."""
        self.is_open = False
        kept = [self._in_flight.popleft() for _ in range(min(arriving, len(self._in_flight)))]
        self._in_flight.clear()
        for action in kept:
            action()

    @property
    def in_flight(self) -> int:
        """How many messages have not arrived."""
        return len(self._in_flight)

    def _deliver(self) -> None:
        if self._in_flight:
            self._in_flight.popleft()()
