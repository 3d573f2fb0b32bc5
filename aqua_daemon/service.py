"""The single writer: one event at a time goes to the broker, and its instructions are carried out.

Covers the order of events, who waits for which answer, ticks, and what happens when the broker
itself fails. Decides nothing about memory: that is `core.broker`. Reaches the outside only through
`ports`.

All of it runs on one event loop. An event that an adapter submits while instructions are being
carried out waits in a queue until they all are, so no instruction ever sees half of another event.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from aqua_daemon.core.errors import BrokerBug, BrokerError, InvalidRequest, UnknownSession
from aqua_daemon.core.events import (
    DrainRequested,
    Event,
    ExchangeOffered,
    HostRoomRequested,
    KeepaliveReceived,
    LeaseRequested,
    LeasesReleased,
    LinkProbeRequested,
    OfferMade,
    QuiesceRequested,
    QuotaSet,
    ReclaimRequested,
    RevokeAcknowledged,
    SessionOpened,
    SessionReattached,
    Ticked,
    UndrainRequested,
)
from aqua_daemon.core.instructions import (
    AllocateSlab,
    Answer,
    AnswerDenied,
    AnswerDrain,
    AnswerExchange,
    AnswerGranted,
    AnswerHostRoom,
    AnswerKeepalive,
    AnswerLinkProbe,
    AnswerOffer,
    AnswerQuiesce,
    AnswerQuota,
    AnswerReclaim,
    AnswerReturned,
    AnswerUndrain,
    ForgetSession,
    FreeSlab,
    Instruction,
    NoteBrokenInvariant,
    NoteMove,
    NoteRebalance,
    NoteTrouble,
    ProbeLink,
    SendRevoke,
    TellLost,
)
from aqua_daemon.core.model import LeaseState, RequestId, SessionId
from aqua_daemon.core.node_snapshot import NodeSnapshot
from aqua_daemon.ports import Clock, Journal, Keepers, Sessions

Request = (
    SessionReattached
    | KeepaliveReceived
    | LeaseRequested
    | LeasesReleased
    | RevokeAcknowledged
    | ExchangeOffered
    | HostRoomRequested
    | OfferMade
    | ReclaimRequested
    | QuotaSet
    | QuiesceRequested
    | DrainRequested
    | UndrainRequested
    | LinkProbeRequested
)

TICK_SECONDS = 0.1
_SHORTEST_TICK_SECONDS = 0.01  # a deadline that stays due must not make the loop spin
_HANDLE_IS_USELESS = (None, LeaseState.RETURNED, LeaseState.LOST)

logger = logging.getLogger("aqua.service")


class Deciding(Protocol):
    """What the service needs of `core.broker.Broker`."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]:
        """Change the books; raises BrokerError, and then nothing has changed."""

    def snapshot(self, now: float) -> NodeSnapshot:
        """The books as they are."""

    def next_deadline(self) -> float | None:
        """When a tick will have something to do at the latest."""


class BrokerService:
    """Feeds the broker and does what it says."""

    def __init__(self, broker: Deciding, *, clock: Clock, journal: Journal) -> None:
        """Carries nothing out before `connect`: call that before the first event."""
        self.faults = 0  # bugs that were caught here: the loop went on
        self._broker = broker
        self._clock = clock
        self._journal = journal
        self._keepers: Keepers | None = None
        self._sessions: Sessions | None = None
        self._queue: deque[_Submission] = deque()
        self._is_draining = False
        self._pending: dict[tuple[SessionId, RequestId], _Pending] = {}

    def connect(self, *, keepers: Keepers, sessions: Sessions) -> None:
        """Say who carries out orders; they need the service to exist, hence not in `__init__`."""
        self._keepers = keepers
        self._sessions = sessions

    def submit(self, event: Event) -> None:
        """Apply *event*, now or after those that came before it. Never raises."""
        self._queue.append(_Submission(event=event, pending=None))
        self._drain()

    def admit(self, event: SessionOpened) -> None:
        """Let a session in, now.

        Raises:
            BrokerError: the broker refused.
        """
        submission = _Submission(event=event, pending=None)
        self._queue.append(submission)
        self._drain()
        if submission.error is not None:
            raise submission.error

    async def request(self, event: Request, *, timeout_seconds: float) -> Answer:
        """Apply *event* and wait for the answer to its request id.

        A request whose id is still pending joins it: one effect, one answer for both. When the
        time is over the request goes on without its caller, who may ask again with the same id.

        Raises:
            BrokerError: the broker refused, now or after having asked a keeper.
            TimeoutError: no answer in time.
        """
        pending = self._pending_for(event)
        if pending.outcome is None:  # most are answered in the step that applied them
            await pending.concluded(timeout_seconds=timeout_seconds)
        return pending.answer()

    def answer_now(self, event: Request) -> Answer:
        """Apply *event*, one that the broker answers in the same step.

        Raises:
            BrokerError: the broker refused; BrokerBug where it left the answer for later.
        """
        return self._pending_for(event).answer()

    def snapshot(self) -> NodeSnapshot:
        """The books as they are now."""
        return self._broker.snapshot(self._clock())

    async def run(self) -> None:
        """Tick until cancelled: each `TICK_SECONDS`, and when the broker's next deadline is due."""
        while True:
            self.submit(Ticked())
            await asyncio.sleep(self._seconds_to_next_tick())

    def _pending_for(self, event: Request) -> _Pending:
        key = (event.session_id, event.request_id)
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _Pending(key=key, kind=type(event))
            self._queue.append(_Submission(event=event, pending=pending))
            self._drain()
        elif pending.kind is not type(event):
            msg = (
                f"request id {event.request_id} belongs to another call that is still pending; "
                "use a new id for each call"
            )
            raise InvalidRequest(msg)
        return pending

    def _seconds_to_next_tick(self) -> float:
        deadline = self._broker.next_deadline()
        if deadline is None:
            return TICK_SECONDS
        return min(TICK_SECONDS, max(_SHORTEST_TICK_SECONDS, deadline - self._clock()))

    def _drain(self) -> None:
        if self._is_draining:
            return
        self._is_draining = True
        try:
            while self._queue:
                self._apply(self._queue.popleft())
        finally:
            self._is_draining = False

    def _apply(self, submission: _Submission) -> None:
        event = submission.event
        self._journal.event(event)
        try:
            instructions = self._broker.handle(event, now=self._clock())
        except BrokerBug as error:
            self._note_fault(event, error)
            self._refuse(submission, error)
        except BrokerError as error:
            self._journal.refused(event, error)
            self._refuse(submission, error)
        except Exception as error:  # noqa: BLE001 - one bad event must not end everybody's daemon
            self._note_fault(event, error)
            bug = BrokerBug(f"{type(event).__name__} failed inside the broker: {error!r}")
            self._refuse(submission, bug)
        else:
            self._journal.instructed(*instructions)
            for instruction in instructions:
                self._do(instruction, event)

    def _note_fault(self, event: Event, error: Exception) -> None:
        self.faults += 1
        self._journal.refused(event, error)
        logger.error("fault while applying %s", type(event).__name__, exc_info=error)

    def _refuse(self, submission: _Submission, error: BrokerError) -> None:
        submission.error = error
        if submission.pending is None:
            return
        del self._pending[submission.pending.key]
        submission.pending.conclude(error)

    def _do(self, instruction: Instruction, event: Event) -> None:
        try:
            self._carry_out(instruction)
        except Exception as error:  # noqa: BLE001 - ports promise not to raise; the rest goes on
            self._note_fault(event, error)

    def _carry_out(self, instruction: Instruction) -> None:
        if self._keepers is None or self._sessions is None:
            msg = "connect() the service before its first event"
            raise RuntimeError(msg)
        match instruction:
            case AllocateSlab():
                self._keepers.allocate(instruction)
            case FreeSlab():
                self._keepers.free(instruction)
            case ProbeLink():
                self._keepers.probe(instruction)
            case SendRevoke():
                seconds = max(0.0, instruction.deadline - self._clock())
                self._sessions.send_revoke(instruction, seconds=seconds)
            case TellLost():
                self._sessions.tell_lost(instruction)
            case ForgetSession(session_id=session_id):
                self._end_requests_of(session_id)
                self._sessions.forget(session_id)
            case NoteBrokenInvariant() | NoteRebalance() | NoteTrouble():
                pass  # the journal has it
            case NoteMove(after=after, lease=lease):
                if after in _HANDLE_IS_USELESS:
                    self._keepers.drop_handle(lease.lease_id)
            case AnswerDenied(session_id=session_id, request_id=request_id, error=error):
                pending = self._pending.pop((session_id, request_id), None)
                if pending is not None:
                    pending.conclude(error)
            case (
                AnswerGranted()
                | AnswerReturned()
                | AnswerExchange()
                | AnswerKeepalive()
                | AnswerHostRoom()
                | AnswerOffer()
                | AnswerReclaim()
                | AnswerQuota()
                | AnswerQuiesce()
                | AnswerDrain()
                | AnswerUndrain()
                | AnswerLinkProbe()
            ):
                pending = self._pending.pop((instruction.session_id, instruction.request_id), None)
                if pending is not None:
                    pending.conclude(instruction)
            case _:
                assert_never(instruction)

    def _end_requests_of(self, session_id: SessionId) -> None:
        for key in [key for key in self._pending if key[0] == session_id]:
            error = UnknownSession(
                "the session ended before the request was answered; connect anew"
            )
            self._pending.pop(key).conclude(error)


@dataclass(slots=True, kw_only=True)
class _Pending:
    """A request that somebody waits for, or waited for and may ask about again."""

    key: tuple[SessionId, RequestId]
    kind: type[Request]
    outcome: Answer | BrokerError | None = None  # None: it is to come
    waiters: list[asyncio.Future[None]] = field(default_factory=list)  # one for each caller

    def answer(self) -> Answer:
        """The outcome, which is there; raises BrokerError for a no."""
        if self.outcome is None or isinstance(self.outcome, BrokerError):
            raise self.outcome or BrokerBug(f"{self.kind.__name__} was not answered yet")
        return self.outcome

    async def concluded(self, *, timeout_seconds: float) -> None:
        """Return when the outcome is there; raises TimeoutError when it is not in time."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self.waiters.append(waiter)
        # By hand: `asyncio.timeout` around a shield takes three times as long.
        timer = loop.call_later(timeout_seconds, _give_up, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self.waiters.remove(waiter)

    def conclude(self, outcome: Answer | BrokerError) -> None:
        self.outcome = outcome
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)


def _give_up(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


@dataclass(slots=True, kw_only=True)
class _Submission:
    event: Event
    pending: _Pending | None
    error: BrokerError | None = None  # why it was refused, if it was
