"""A client process: what it borrows, and how it answers what is pushed.

It is honest: it unmaps before it says so, names every lease it knows, answers unknown revokes
at once. What it is not is reliable: it may be slow, stuck, stopped, forked or dead. Its process
and its connection to the daemon are `linking`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import assert_never

from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.events import (
    HostRoomRequested,
    LeaseRequested,
    LeasesReleased,
    RevokeAcknowledged,
    SessionClosed,
)
from aqua_daemon.core.instructions import (
    Answer,
    AnswerGranted,
    AnswerHostRoom,
    AnswerKeepalive,
    SendRevoke,
    TellLost,
)
from aqua_daemon.core.model import Lease, LeaseId, RequestId, SafetyClass, SessionId
from tests.simulation.holdings import Holdings
from tests.simulation.linking import LinkedProcess

Told = Callable[[Answer | BrokerError | None], None]

_STUCK = 0.12  # of revokes: never answered while faults strike
_SLOW = 0.15  # of revokes: answered when it is too late


class Client(LinkedProcess):
    """One process of a tenant that uses the client library."""

    def say_goodbye(self) -> None:
        """Unmap everything and end the session; the process goes on and may open another."""
        if self.session is None:
            return
        daemon, connection, session_id = self.session
        held = tuple(self.holdings.slabs)
        for lease_id in held:
            self._close(lease_id)
        for number in list(self.holdings.items):
            self.holdings.forget(number)
        self._judge.claimed(held)
        self._judge.left(session_id)
        closed = SessionClosed(session_id=session_id)
        connection.up.send(partial(daemon.frame, connection, closed))
        connection.up.send(partial(daemon.hung_up, connection))
        connection.down.cut()
        self.session_id = self.connection = None
        self.stuck.clear()
        self.holdings = Holdings(self.process, self._stage)
        self.connect_after(self._stage.chance.between(0.1, 3.0))

    def acquire(
        self,
        nbytes: int,
        safety_class: SafetyClass,
        *,
        wanted_bytes: int = 0,
        told: Told = lambda _: None,
    ) -> None:
        """Borrow a slab, one of *wanted_bytes*; *told* hears of what came, once something did."""
        if self.session_id is None:
            told(None)
            return
        event = LeaseRequested(
            session_id=self.session_id,
            request_id=RequestId(self._stage.chance.new_id()),
            lease_id=LeaseId(self._stage.chance.new_id()),
            nbytes=nbytes,
            safety_class=safety_class,
            wanted_bytes=wanted_bytes,
        )
        self._acquire(event, told, tries=3)

    def release(self, lease_ids: tuple[LeaseId, ...]) -> None:
        """Give slabs back that are not needed; their items go to host memory or are dropped."""
        self._give_back(lease_ids, kind=LeasesReleased)

    def unstick(self) -> None:
        """Answer the revokes that were not answered."""
        stuck, self.stuck = self.stuck, []
        for lease_ids in stuck:
            self.caller.awake(partial(self._acknowledge, lease_ids))

    def pushed(self, order: SendRevoke | TellLost | AnswerKeepalive) -> None:
        """The daemon said something over the presence connection."""
        self.caller.awake(partial(self._serve, order, self.session_id))

    def hold_in_host(self, nbytes: int) -> None:
        """Keep an item in host memory, if the ledger has room for it."""
        if self.session_id is None:
            return
        self.holdings.asked_bytes += nbytes
        event = HostRoomRequested(
            session_id=self.session_id,
            request_id=RequestId(self._stage.chance.new_id()),
            host_room=self.holdings.host_room(),
        )
        self.caller.call(event, partial(self._host_room_told, self.holdings, nbytes), seconds=1.0)

    # --- private -----------------------------------------------------------------------------

    def _acquire(self, event: LeaseRequested, told: Told, *, tries: int) -> None:
        seconds = self._stage.chance.pick((0.2, 1.0, 3.0))
        self.caller.call(event, partial(self._acquired, event, told, tries), seconds=seconds)

    def _acquired(
        self, event: LeaseRequested, told: Told, tries: int, answer: Answer | BrokerError | None
    ) -> None:
        if event.session_id != self.session_id:
            told(None)
            return
        match answer:
            case AnswerGranted(lease=lease):
                self._take(lease)
            case None if tries > 0 and self._stage.chance.happens(0.7):
                self._stage.count("acquires repeated")
                again = replace(event, lease_id=LeaseId(self._stage.chance.new_id()))
                self._acquire(again, told, tries=tries - 1)
                return
            case BrokerError():
                self._stage.count(f"refused: {answer.reason}")
            case _:
                self._stage.count("acquires given up")
        told(answer)

    def _take(self, lease: Lease) -> None:
        lease_id = lease.lease_id
        if lease_id in self.closed_leases or lease_id in self.holdings.slabs:
            return
        slab = self._find_slab(lease_id)
        self._judge.mapped(self.process, lease, slab)
        if slab is None:
            self._give_back((lease_id,), kind=LeasesReleased)  # it can't be opened: its keeper died
        else:
            self.holdings.take(lease, slab)

    def _serve(
        self, order: SendRevoke | TellLost | AnswerKeepalive, session_id: SessionId | None
    ) -> None:
        if session_id != self.session_id:
            return  # of a session that it has left
        match order:
            case SendRevoke(lease_ids=lease_ids):
                self._serve_revoke(lease_ids, order.reason.value)
            case TellLost(lease_ids=lease_ids):
                self._lose(lease_ids, "lost")
            case AnswerKeepalive(ended=ended):
                self._lose(tuple(i for i in ended if i in self.holdings.slabs), "ended")
            case _:
                assert_never(order)

    def _serve_revoke(self, lease_ids: tuple[LeaseId, ...], reason: str) -> None:
        unknown = tuple(i for i in lease_ids if i not in self.holdings.slabs)
        if unknown:
            self._stage.count("revokes of unknown leases")
            self._acknowledge(unknown)
        fresh = [i for i in lease_ids if i not in unknown and not self.holdings.slabs[i].is_fenced]
        if not fresh:
            return
        self._stage.count(f"revokes served: {reason}")
        for lease_id in fresh:
            self.holdings.slabs[lease_id].is_fenced = True
        middle = len(fresh) // 2 if self._stage.chance.strikes(0.3) else 0
        for part in (tuple(fresh[:middle]), tuple(fresh[middle:])):
            if part:
                self._plan(part)

    def _plan(self, lease_ids: tuple[LeaseId, ...]) -> None:
        if self.never_acknowledges or self._stage.chance.strikes(_STUCK):
            self._stage.count("revokes left unanswered")
            self.stuck.append(lease_ids)
            return
        is_slow = self._stage.chance.strikes(_SLOW)
        seconds = self._stage.chance.between(*((1.5, 6.0) if is_slow else (0.005, 0.8)))
        act = partial(self.caller.awake, partial(self._acknowledge, lease_ids))
        self._stage.agenda.after(seconds, act)

    def _acknowledge(self, lease_ids: tuple[LeaseId, ...]) -> None:
        self._give_back(lease_ids, kind=RevokeAcknowledged)

    def _give_back(
        self, lease_ids: tuple[LeaseId, ...], *, kind: type[LeasesReleased | RevokeAcknowledged]
    ) -> None:
        if self.session_id is None:
            return
        for lease_id in lease_ids:
            if lease_id in self.holdings.slabs:
                self.holdings.evacuate(lease_id)
            self._close(lease_id)
        self._judge.claimed(lease_ids)
        event = kind(
            session_id=self.session_id,
            request_id=RequestId(self._stage.chance.new_id()),
            lease_ids=lease_ids,
            host_room=self.holdings.host_room(),
        )
        self._insist(event)

    def _host_room_told(
        self, holdings: Holdings, nbytes: int, answer: Answer | BrokerError | None
    ) -> None:
        holdings.asked_bytes -= nbytes
        if isinstance(answer, AnswerHostRoom):
            if answer.host_room.nbytes >= holdings.host_bytes + holdings.asked_bytes + nbytes:
                self._stage.count("offloads to host")
                holdings.put_in_host(nbytes)
        elif isinstance(answer, BrokerError):
            self._stage.count(f"refused: {answer.reason}")

    def _insist(self, event: LeasesReleased | RevokeAcknowledged) -> None:
        if event.session_id == self.session_id:
            seconds = self._stage.chance.between(0.2, 1.0)
            self.caller.call(event, partial(self._given_back, event), seconds=seconds)

    def _given_back(
        self, event: LeasesReleased | RevokeAcknowledged, answer: Answer | BrokerError | None
    ) -> None:
        if answer is None:
            self._insist(event)
        elif isinstance(answer, BrokerError) and event.session_id == self.session_id:
            self._judge.wrongly_refused(event, answer)

    def _lose(self, lease_ids: tuple[LeaseId, ...], how: str) -> None:
        for lease_id in lease_ids:
            held = self.holdings.slabs.get(lease_id)
            if held is not None:
                self._judge.told_gone(lease_id, held.slab, how)
                self.holdings.evacuate(lease_id)
            self._close(lease_id)

    def _close(self, lease_id: LeaseId) -> None:
        self.closed_leases[lease_id] = None
        if lease_id in self.holdings.slabs:
            self.holdings.close(lease_id)
