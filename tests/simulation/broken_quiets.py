"""Brokers that disturb a quiet GPU, or hurry nobody: the oracle must see every one of them."""

from __future__ import annotations

from dataclasses import replace

from aqua_daemon.core.events import Event, QuiesceRequested, ReclaimRequested
from aqua_daemon.core.instructions import AnswerQuiesce, Instruction, NoteMove, SendRevoke
from aqua_daemon.core.model import LeaseState
from tests.simulation.wrapped_broker import BrokenBroker

_INSTANT = 0.001


class LeavesNoGpuAlone(BrokenBroker):
    """A GPU is quiet for an instant, and the answer says as long as was asked for."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Ask for less than was asked for."""
        if not isinstance(event, QuiesceRequested) or not event.seconds:
            return self.inner.handle(event, now=now)
        done = self.inner.handle(replace(event, seconds=_INSTANT), now=now)
        return tuple(
            replace(one, seconds=event.seconds) if isinstance(one, AnswerQuiesce) else one
            for one in done
        )


class TakesNothingBack(BrokenBroker):
    """What is lent stays where an owner wants all of its GPU."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Leave it alone as it is."""
        if isinstance(event, QuiesceRequested):
            event = replace(event, takes_back=False)
        return self.inner.handle(event, now=now)


class HurriesNobody(BrokenBroker):
    """Who has less time now is not told so."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Tell only those that are told for the first time."""
        done = self.inner.handle(event, now=now)
        if not isinstance(event, ReclaimRequested):
            return done
        fresh = {
            move.lease.lease_id
            for move in done
            if isinstance(move, NoteMove) and move.after is LeaseState.REVOKING
        }
        return tuple(
            one
            for one in done
            if not isinstance(one, SendRevoke) or fresh.issuperset(one.lease_ids)
        )


class HurriesNobodyAtAll(BrokenBroker):
    """A reclaim in need waits as long as the one before it."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Give each the longest time that there is."""
        if isinstance(event, ReclaimRequested):
            event = replace(event, deadline_seconds=60.0)
        return self.inner.handle(event, now=now)


class BuysTime(BrokenBroker):
    """Each reminder of a revoke gives a second more."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Remember when everybody was to be done, and be generous."""
        done = self.inner.handle(event, now=now)
        moved = {one.lease.lease_id for one in done if isinstance(one, NoteMove)}
        return tuple(
            replace(one, deadline=one.deadline + 1.0)
            if isinstance(one, SendRevoke) and moved.isdisjoint(one.lease_ids)
            else one
            for one in done
        )


BROKEN_QUIETS: tuple[type[BrokenBroker], ...] = (
    LeavesNoGpuAlone,
    TakesNothingBack,
    HurriesNobody,
    HurriesNobodyAtAll,
    BuysTime,
)
