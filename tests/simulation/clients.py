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
    ExchangeOffered,
    HostRoomRequested,
    LeaseRequested,
    LeasesReleased,
    RevokeAcknowledged,
    SessionClosed,
)
from aqua_daemon.core.instructions import (
    Answer,
    AnswerExchange,
    AnswerGranted,
    AnswerHostRoom,
    AnswerKeepalive,
    SendRevoke,
    TellLost,
)
from aqua_daemon.core.model import Lease, LeaseId, RequestId, SafetyClass, SessionId
from tests.simulation.daemon import Daemon
from tests.simulation.holdings import Holdings
from tests.simulation.linking import LinkedProcess

Told = Callable[[Answer | BrokerError | None], None]

_EXCHANGE_SECONDS = 0.3  # so long an answer is waited for
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
            case SendRevoke():
                self._serve_revoke(order)
            case TellLost(lease_ids=lease_ids):
                self._lose(lease_ids, "lost")
            case AnswerKeepalive(ended=ended):
                self._lose(tuple(i for i in ended if i in self.holdings.slabs), "ended")
            case _:
                assert_never(order)

    def _serve_revoke(self, order: SendRevoke) -> None:
        lease_ids = order.lease_ids
        unknown = tuple(i for i in lease_ids if i not in self.holdings.slabs)
        if unknown:
            self._stage.count("revokes of unknown leases")
            self._acknowledge(unknown)
        for lease_id in [i for i in lease_ids if i in self.holdings.slabs]:
            self.holdings.slabs[lease_id].revokes += 1
        fresh = [i for i in lease_ids if i not in unknown and not self.holdings.slabs[i].is_fenced]
        if not fresh:
            return
        self._stage.count(f"revokes served: {order.reason.value}")
        for lease_id in fresh:
            self.holdings.slabs[lease_id].is_fenced = True
        if self._offers_others(order, fresh):
            return
        self._split(fresh)

    def _split(self, fresh: list[LeaseId]) -> None:
        middle = len(fresh) // 2 if self._stage.chance.strikes(0.3) else 0
        for part in (tuple(fresh[:middle]), tuple(fresh[middle:])):
            if part:
                self._plan(part)

    def _offers_others(self, order: SendRevoke, fresh: list[LeaseId]) -> bool:
        """Sometimes other slabs there are offered for some; whether the answer is waited for."""
        others = self.holdings.others_on(order.gpu)
        if not others or self.session_id is None or not self._stage.chance.happens(0.7):
            return False
        event = ExchangeOffered(
            session_id=self.session_id,
            request_id=RequestId(self._stage.chance.new_id()),
            spared=tuple(fresh[: self._stage.chance.pick((1, 1, 2))]),
            offered=tuple(others[: self._stage.chance.pick((1, 2, 3))]),
        )
        revokes = {one: self.holdings.slabs[one].revokes for one in event.spared}
        waits = not self._stage.chance.strikes(0.2)  # else its acknowledgement crosses the answer
        told = partial(self._exchanged, event, fresh, revokes, waits)
        call = partial(self._call_exchange, event, told)
        late = self._stage.chance.strikes(0.4)
        delay = self._stage.chance.between(0.3, 2.5) if late else 0.0
        self._stage.agenda.after(delay, partial(self.caller.awake, call))
        return waits

    def _call_exchange(self, event: ExchangeOffered, told: Told) -> None:
        self.caller.call(event, told, seconds=_EXCHANGE_SECONDS)
        look_back = partial(self._look_back_at_exchange, self._daemon)
        self._stage.agenda.after(_EXCHANGE_SECONDS, look_back)

    def _look_back_at_exchange(self, daemon: Daemon | None) -> None:
        if not self.process.is_alive:
            self._stage.count("holders that died during an exchange")
        elif daemon is not None and not daemon.is_up:
            self._stage.count("daemons that died during an exchange")

    def _exchanged(
        self,
        event: ExchangeOffered,
        fresh: list[LeaseId],
        revokes: dict[LeaseId, int],
        has_waited: bool,  # noqa: FBT001 - bound by position
        answer: Answer | BrokerError | None,
    ) -> None:
        if event.session_id != self.session_id:
            return
        held = self.holdings.slabs
        if isinstance(answer, AnswerExchange):
            taken = [i for i in answer.revoked if i in held and not held[i].is_fenced]
            for lease_id in taken:  # its revoke is on its way, too
                held[lease_id].is_fenced = True
            kept = [i for i in answer.spared if i in held and held[i].revokes == revokes[i]]
            if len(kept) < len(answer.spared):
                self._stage.count("exchanges told too late to be heeded")
            if has_waited:
                for lease_id in kept:
                    held[lease_id].is_fenced = False
                fresh = [lease_id for lease_id in fresh if lease_id not in kept]
            self._split(taken)
        if has_waited:
            self._split([lease_id for lease_id in fresh if lease_id in held])

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
