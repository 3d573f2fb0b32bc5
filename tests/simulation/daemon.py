"""One incarnation of the daemon: the real broker, and models of the adapters around it.

It carries out instructions, watches processes as the kernel lets it, answers calls, and dies
with everything that only it knew. What it hears and orders, the oracle hears too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, assert_never

from aqua_daemon.core.errors import BrokerBug, BrokerError
from aqua_daemon.core.events import (
    Event,
    ExchangeOffered,
    HostRoomRequested,
    LeaseRequested,
    LeasesReleased,
    LossTold,
    OfferMade,
    PresenceEnded,
    ProcessEnded,
    ReclaimRequested,
    RevokeAcknowledged,
    SentinelEnded,
    SessionOpened,
    SessionReattached,
    Ticked,
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
from aqua_daemon.core.model import GpuUuid, RequestId, SessionId
from aqua_daemon.core.node_snapshot import NodeSnapshot
from tests.simulation.connection import Connection
from tests.simulation.keeper_link import KeeperLink
from tests.simulation.keepers import Keeper
from tests.simulation.probes import measure
from tests.simulation.stage import Stage
from tests.simulation.truth import Process

TICK_SECONDS = 0.1
Call = (
    LeaseRequested
    | LeasesReleased
    | RevokeAcknowledged
    | ExchangeOffered
    | HostRoomRequested
    | OfferMade
    | ReclaimRequested
)
Reply = Callable[[Answer | BrokerError], None]


class BrokerLike(Protocol):
    """The broker, or one that was broken on purpose."""

    def handle(self, event: Event, *, now: float) -> tuple[Instruction, ...]: ...

    def snapshot(self, now: float) -> NodeSnapshot: ...

    def check_integrity(self) -> None: ...

    def next_deadline(self) -> float | None: ...


class Witness(Protocol):
    """Who judges; it sees everything that goes in and comes out."""

    def heard(self, event: Event) -> None: ...

    def refused(self, event: Event, error: BrokerError) -> None: ...

    def admitted(self, event: SessionOpened | SessionReattached) -> None: ...

    def ordered(self, instruction: Instruction) -> None: ...

    def handled(self, event: Event) -> None: ...


@dataclass(slots=True)
class _Holder:
    process: Process
    has_told_process: bool = False
    has_told_sentinel: bool = False


class Daemon:
    """A daemon from its start to its death."""

    def __init__(
        self,
        broker: BrokerLike,
        *,
        stage: Stage,
        witness: Witness,
        families: dict[SessionId, Process],
    ) -> None:
        self.broker = broker
        self.is_up = True
        self.links: list[KeeperLink] = []
        self.connections: dict[SessionId, Connection] = {}
        self.waiting: dict[tuple[SessionId, RequestId], list[Reply]] = {}
        self._stage = stage
        self._witness = witness
        self._families = families  # what the kernel knows: it outlives every daemon
        self._holders: dict[SessionId, _Holder] = {}
        self._links: dict[GpuUuid, KeeperLink] = {}
        self._tick()

    def link_to(self, keeper: Keeper) -> None:
        """Attach to a keeper after a while, and again whenever the link breaks."""
        link = KeeperLink(
            keeper, stage=self._stage, submit=self.submit, adopt_holder=self._adopt_holder
        )
        self.links.append(link)
        for gpu in keeper.uuids:
            self._links[gpu] = link
        self._stage.agenda.after(self._stage.chance.between(0.0, 2.0), link.connect)

    def stop(self) -> None:
        """Die. What is in flight to keepers may still arrive; the rest is lost."""
        self.is_up = False
        for link in self.links:
            link.end()
        for connection in list(self.connections.values()):
            connection.close()

    def submit(self, event: Event) -> None:
        """Give the broker an event that nobody waits for an answer to."""
        self.handle(event)

    def handle(self, event: Event) -> BrokerError | None:
        """Give the broker an event and carry out what it says."""
        if not self.is_up:
            return None
        self._witness.heard(event)
        try:
            instructions = self.broker.handle(event, now=self._stage.now)
        except BrokerBug:
            raise
        except BrokerError as error:
            self._witness.refused(event, error)
            return error
        for instruction in instructions:
            self._witness.ordered(instruction)
        self._witness.handled(event)
        for instruction in instructions:
            self._carry_out(instruction)
        return None

    def hello(self, connection: Connection, event: SessionOpened | SessionReattached) -> None:
        """A client has opened a presence connection and said who it is."""
        if not self.is_up:
            connection.close()
            return
        session_id = event.session_id
        old = self.connections.get(session_id)
        self.connections[session_id] = connection
        connection.down.send(partial(connection.peer.welcomed, connection, session_id))
        error = self.handle(event)
        if error is not None:
            connection.down.send(partial(connection.peer.refused, connection))
            if old is None:
                del self.connections[session_id]
            else:
                self.connections[session_id] = old
            connection.close()
            return
        if old is not None:
            old.close()
        self._witness.admitted(event)
        connection.session_id = session_id
        self._families[session_id] = connection.peer.process
        self.watch(session_id, connection.peer.process)

    def frame(self, connection: Connection, event: Event) -> None:
        """A frame came over a presence connection."""
        if self.is_up and connection.is_open:
            self.handle(event)

    def hung_up(self, connection: Connection) -> None:
        """The client's end of a presence connection is closed."""
        session_id = connection.session_id
        connection.close()
        if session_id is not None and self.connections.get(session_id) is connection:
            del self.connections[session_id]
            self.handle(PresenceEnded(session_id=session_id))

    def receive(self, connection: Connection, event: Call, reply: Reply) -> None:
        """A unary call arrives with the token of *connection*; a dead token gets no further."""
        if not (self.is_up and connection.is_open) or connection.session_id is None:
            return
        key = (event.session_id, event.request_id)
        waiting = self.waiting.setdefault(key, [])
        waiting.append(reply)
        if len(waiting) > 1 and self._stage.chance.happens(0.7):
            return  # it joins the call that is being answered
        error = self.handle(event)
        if error is not None:
            waiting.remove(reply)
            if not waiting:
                self.waiting.pop(key, None)
            reply(error)

    def watch(self, session_id: SessionId, process: Process) -> None:
        """Hold pidfd and sentinel of a session; what has ended already is told soon."""
        self._holders.setdefault(session_id, _Holder(process))
        self.look_at(session_id)

    def look_at_process(self, process: Process) -> None:
        """A process, or a child of it, has ended."""
        for session_id, holder in self._holders.items():
            if holder.process is process:
                self.look_at(session_id)

    def look_at(self, session_id: SessionId) -> None:
        """Something may have ended in this session's family: the kernel will say."""
        for tell in (self._tell_process, self._tell_sentinel):
            self._stage.agenda.after(self._stage.chance.latency(), partial(tell, session_id))

    def _adopt_holder(self, session_id: SessionId) -> None:
        self.watch(session_id, self._families[session_id])

    def _tell_process(self, session_id: SessionId) -> None:
        holder = self._holders.get(session_id)
        if holder and not holder.process.is_alive and not holder.has_told_process:
            holder.has_told_process = True
            self.handle(ProcessEnded(session_id=session_id))

    def _tell_sentinel(self, session_id: SessionId) -> None:
        holder = self._holders.get(session_id)
        if holder and not holder.process.family_lives and not holder.has_told_sentinel:
            holder.has_told_sentinel = True
            self.handle(SentinelEnded(session_id=session_id))

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case AllocateSlab(tag=tag):
                self._links[tag.lender].allocate(instruction)
            case FreeSlab(gpu=gpu):
                self._links[gpu].free(instruction)
            case SendRevoke():
                self._push(instruction)
            case TellLost(lease_ids=lease_ids):
                self._push(instruction)
                told = LossTold(lease_ids=lease_ids)
                self._stage.agenda.after(self._stage.chance.latency(), partial(self.submit, told))
            case ForgetSession(session_id=session_id):
                self._forget(session_id)
            case AnswerKeepalive():
                self._push(instruction)
            case (
                AnswerGranted()
                | AnswerDenied()
                | AnswerReturned()
                | AnswerExchange()
                | AnswerHostRoom()
                | AnswerOffer()
                | AnswerReclaim()
                | AnswerQuota()
                | AnswerQuiesce()
                | AnswerDrain()
                | AnswerUndrain()
                | AnswerLinkProbe()
            ):
                self._answer(instruction)
            case ProbeLink():
                measure(instruction, self._stage, self.submit)
            case NoteMove() | NoteBrokenInvariant() | NoteRebalance() | NoteTrouble():
                pass
            case _:
                assert_never(instruction)

    def _push(self, order: SendRevoke | TellLost | AnswerKeepalive) -> None:
        if (connection := self.connections.get(order.session_id)) is not None:
            connection.down.send(partial(connection.peer.pushed, order))

    def _answer(self, answer: Answer) -> None:
        said = answer.error if isinstance(answer, AnswerDenied) else answer
        for reply in self.waiting.pop((answer.session_id, answer.request_id), ()):
            reply(said)

    def _forget(self, session_id: SessionId) -> None:
        self._holders.pop(session_id, None)
        if (connection := self.connections.pop(session_id, None)) is not None:
            connection.close()

    def _tick(self) -> None:
        if not self.is_up:
            return
        self.handle(Ticked())
        self._stage.agenda.after(TICK_SECONDS, self._tick)
        deadline = self.broker.next_deadline()
        if deadline is not None and 0.0 <= deadline - self._stage.now < TICK_SECONDS:
            self._stage.agenda.after(deadline - self._stage.now, partial(self.submit, Ticked()))
