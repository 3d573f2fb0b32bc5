"""Quiet GPUs: nothing is granted there, nothing is asked back by choice, nothing is freed unasked.

And GPUs that are taken back: all that is lent there has been asked back, and comes off at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from aqua_daemon.core.events import (
    Event,
    PresenceEnded,
    ProcessEnded,
    QuiesceRequested,
    SessionClosed,
    Ticked,
)
from aqua_daemon.core.instructions import AnswerQuiesce
from aqua_daemon.core.model import (
    GpuUuid,
    Lease,
    LeaseId,
    LeaseState,
    RequestId,
    RevokeReason,
    SessionId,
)
from tests.simulation.judge import require
from tests.simulation.stage import Stage

_OWED = (RevokeReason.RECLAIM, RevokeReason.OWNER)
_BY_ITSELF = (RevokeReason.RESERVE, RevokeReason.REBALANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quiet:
    ends_at: float
    takes_back: bool


class Quiets:
    """Which GPUs one daemon was told to leave alone, and what may happen there meanwhile."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._held: dict[GpuUuid, dict[SessionId, _Quiet]] = {}
        self._asked: dict[RequestId, QuiesceRequested] = {}

    def hear(self, event: Event) -> None:
        """Take down what is asked for, and what ends."""
        match event:
            case QuiesceRequested(request_id=request_id):
                self._asked[request_id] = event
                if not event.seconds:
                    self._held.get(event.gpu, {}).pop(event.session_id, None)
            case PresenceEnded(session_id=gone) | ProcessEnded(session_id=gone):
                self._forget(gone)
            case SessionClosed(session_id=gone):
                self._forget(gone)
            case Ticked():
                now = self._stage.now
                for held in self._held.values():
                    for session_id in [one for one, quiet in held.items() if quiet.ends_at <= now]:
                        del held[session_id]
            case _:
                pass

    def is_quiet(self, gpu: GpuUuid) -> bool:
        """Whether it is to be left alone."""
        return bool(self._held.get(gpu))

    def is_taken_back(self, gpu: GpuUuid) -> bool:
        """Whether somebody waits for whatever comes back there, or asks for it just now."""
        held = any(quiet.takes_back for quiet in self._held.get(gpu, {}).values())
        return held or any(one.gpu == gpu and one.takes_back for one in self._asked.values())

    def answered(
        self, answer: AnswerQuiesce, leases: dict[LeaseId, Lease], deadlines: dict[LeaseId, float]
    ) -> float:
        """A daemon says how long; returns the latest deadline there, of what is asked back at once."""
        event = self._asked.pop(answer.request_id, None)
        if event is None:
            return -1.0  # said again
        require(0 <= answer.seconds <= event.seconds + 1e-6, "{} for {}", answer, event)
        held = self._held.setdefault(event.gpu, {})
        before = held.pop(event.session_id, None)
        takes_back = event.takes_back or (before is not None and before.takes_back)
        if event.seconds:
            ends_at = self._stage.now + answer.seconds
            held[event.session_id] = _Quiet(ends_at=ends_at, takes_back=takes_back)
        self._stage.count("quiets that take back" if event.takes_back else "quiets")
        if not event.takes_back:
            return -1.0
        self.look(leases)
        there = [
            one.lease_id
            for one in leases.values()
            if one.lender == event.gpu and one.state is LeaseState.REVOKING
        ]
        return max((deadlines.get(one, -1.0) for one in there), default=-1.0)

    def revokes(self, lease: Lease) -> None:
        """A lease is asked back: on a quiet GPU only because somebody wants it, or its holder is gone."""
        reason = lease.revocation.reason if lease.revocation is not None else None
        is_wrong = self.is_quiet(lease.lender) and reason in _BY_ITSELF
        require(not is_wrong, "{} is asked back on a quiet GPU", lease)

    def frees(self, lease: Lease, *, is_waited_for: bool) -> None:
        """A slab is to be freed: on a quiet GPU only what somebody waits for."""
        if not self.is_quiet(lease.lender) or is_waited_for:
            return
        is_owed = lease.revocation is not None and lease.revocation.reason in _OWED
        self._stage.count("slabs freed on quiet GPUs")
        is_right = is_owed or self.is_taken_back(lease.lender)
        require(is_right, "{} is freed on a quiet GPU", lease)

    def look(self, leases: dict[LeaseId, Lease]) -> None:
        """Of a GPU that is taken back nothing stays lent."""
        for lease in leases.values():
            if lease.state is LeaseState.LEASED and self.is_taken_back(lease.lender):
                require(False, "{} stays where all is taken back", lease)  # noqa: FBT003 - never holds

    def _forget(self, session_id: SessionId) -> None:
        for held in self._held.values():
            held.pop(session_id, None)
