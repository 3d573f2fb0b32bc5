"""Brokers that take exchanges wrongly, each in one way: the oracle must see every one of them."""

from __future__ import annotations

from dataclasses import replace

from aqua_daemon.core.events import Event, ExchangeOffered
from aqua_daemon.core.instructions import AnswerExchange, Instruction, NoteMove, SendRevoke
from aqua_daemon.core.lifecycle import Move
from aqua_daemon.core.model import Revocation
from tests.simulation.wrapped_broker import BrokenBroker

_GIFT_SECONDS = 1.0


class SparesForNothing(BrokenBroker):
    """What was revoked stays, and nothing comes instead."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Forget to take what was offered."""
        done = self.inner.handle(event, now=now)
        if not isinstance(event, ExchangeOffered):
            return done
        return tuple(
            replace(one, revoked=()) if isinstance(one, AnswerExchange) else one
            for one in done
            if not isinstance(one, SendRevoke)
            and not (isinstance(one, NoteMove) and one.why == Move.EXCHANGED.value)
        )


class SparesOnlyInWords(BrokenBroker):
    """The holder is told that its lease stays, and the revoke goes on."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Answer, and forget to spare."""
        return tuple(
            one
            for one in self.inner.handle(event, now=now)
            if not (isinstance(one, NoteMove) and one.why == Move.SPARED.value)
        )


class GivesMoreTime(BrokenBroker):
    """What comes instead has a deadline of its own."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Begin the revoke anew."""
        done = self.inner.handle(event, now=now)
        if not isinstance(event, ExchangeOffered):
            return done
        return tuple(_later(one) for one in done)


class AnswersTheOtherWayRound(BrokenBroker):
    """The holder is told to keep what has to come."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Mix the two up."""
        return tuple(
            replace(one, spared=one.revoked, revoked=one.spared)
            if isinstance(one, AnswerExchange)
            else one
            for one in self.inner.handle(event, now=now)
        )


BROKEN_EXCHANGES: tuple[type[BrokenBroker], ...] = (
    SparesForNothing,
    SparesOnlyInWords,
    GivesMoreTime,
    AnswersTheOtherWayRound,
)


def _later(order: Instruction) -> Instruction:
    if isinstance(order, SendRevoke):
        return replace(order, deadline=order.deadline + _GIFT_SECONDS)
    if isinstance(order, NoteMove) and order.why == Move.EXCHANGED.value:
        given = order.lease.revocation
        if given is not None:
            later = Revocation(
                reason=given.reason,
                started_at=given.started_at,
                deadline=given.deadline + _GIFT_SECONDS,
            )
            return replace(order, lease=replace(order.lease, revocation=later))
    return order
