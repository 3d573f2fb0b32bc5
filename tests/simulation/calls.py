"""Unary calls of a client: lost, repeated, late, timed out; and a process that may be stopped.

Each call is a stream of its own, so calls overtake each other and the presence connection.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.instructions import Answer
from aqua_daemon.core.model import SessionId
from tests.simulation.connection import Connection
from tests.simulation.daemon import Call, Daemon
from tests.simulation.stage import Stage
from tests.simulation.truth import Process

Done = Callable[[Answer | BrokerError | None], None]

_LOST = 0.03  # of requests, and again of replies
_REPEATED = 0.04


class Calling(Protocol):
    """Whose calls they are."""

    process: Process

    @property
    def session(self) -> tuple[Daemon, Connection, SessionId] | None: ...


class Caller:
    """Makes the calls of one process and holds back what arrives while it is stopped."""

    def __init__(self, owner: Calling, stage: Stage) -> None:
        self._owner = owner
        self._stage = stage
        self._inbox: list[Callable[[], None]] = []

    def awake(self, action: Callable[[], None]) -> None:
        """Do it when the process runs: now, or when it is continued, or never."""
        process = self._owner.process
        if not process.is_alive:
            return
        if process.is_stopped:
            self._inbox.append(action)
        else:
            action()

    def resume(self) -> None:
        """The process is continued: what waited in its sockets and timers happens now."""
        inbox, self._inbox = self._inbox, []
        for action in inbox:
            self.awake(action)

    def call(self, event: Call, done: Done, *, seconds: float) -> None:
        """Call; *done* hears the answer, or None when none came in time."""
        call = _PendingCall(done)
        chance, agenda = self._stage.chance, self._stage.agenda
        agenda.after(seconds, partial(self.awake, partial(call.finish, None)))
        if self._owner.session is None:
            return
        daemon, connection, _ = self._owner.session
        if chance.strikes(_LOST):
            self._stage.count("requests lost")
        else:
            deliver = partial(daemon.receive, connection, event, partial(self._reply, call))
            agenda.after(chance.latency(), deliver)
        if chance.strikes(_REPEATED):
            self._stage.count("requests repeated late")
            again = partial(daemon.receive, connection, event, _nobody)
            agenda.after(chance.between(0.0, 3.0), again)

    def _reply(self, call: _PendingCall, answer: Answer | BrokerError) -> None:
        if self._stage.chance.strikes(_LOST):
            self._stage.count("replies lost")
            return
        arrive = partial(self.awake, partial(call.finish, answer))
        self._stage.agenda.after(self._stage.chance.latency(), arrive)


class _PendingCall:
    def __init__(self, done: Done) -> None:
        self._done: Done | None = done

    def finish(self, answer: Answer | BrokerError | None) -> None:
        """The first of answer and time-out counts."""
        done, self._done = self._done, None
        if done is not None:
            done(answer)


def _nobody(answer: Answer | BrokerError) -> None:
    """A repeated message has nobody who waits for its answer."""
