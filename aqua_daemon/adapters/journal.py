"""The story of the node: one JSON line per event, instruction and refusal, and the last few in words.

Covers which lines the log has and the words that `aquactl events` shows. Does not cover counting
(metrics.py), keeping the words (happenings.py) nor a line's form (json_lines). A line has the record's
name under `event`, `instruction` or `refused`, and its fields by their own names, so that all
lines of one lease are found by its id.

What comes many times a second in a quiet node (ticks, keepalives, reports) is logged at debug, and
so is that an observer came and went, which is in no words either: who looks every second at what
happened last would see nothing but himself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from aqua_daemon.adapters.happenings import Happenings, TenantsOfSessions
from aqua_daemon.adapters.json_lines import Line, LoggedLines
from aqua_daemon.core import events, instructions
from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.events import Event
from aqua_daemon.core.instructions import Instruction
from aqua_daemon.core.limits import Quota
from aqua_daemon.core.model import LeaseId, LeaseState, SessionId
from aqua_daemon.core.sizes import MIB
from aqua_daemon.ports import Clock, Journal

LOGGER_NAME = "aqua"
_ROUTINE = frozenset(  # in no words either
    {
        events.Ticked,
        events.KeepaliveReceived,
        events.LinksUsed,
        events.GpuReported,
        instructions.AnswerKeepalive,
    }
)
_TOLD_BY_MOVES = frozenset(  # the rest of a grant and a return: in no words
    {
        events.LeaseRequested,
        events.SlabAllocated,
        events.LeasesReleased,
        events.SlabFreed,
        instructions.AllocateSlab,
        instructions.AnswerGranted,
        instructions.AnswerReturned,
        instructions.FreeSlab,
    }
)
_COMING_AND_GOING = (
    events.SessionOpened,
    events.PresenceEnded,
    events.ProcessEnded,
    events.SentinelEnded,
    events.SessionClosed,
    instructions.ForgetSession,
)


class LogJournal:
    """Logs everything, and remembers in words what a person wants to know."""

    def __init__(self, *, clock: Clock, logger: logging.Logger | None = None) -> None:
        """Lines go to *logger*, the `aqua` one unless given."""
        self.happenings = Happenings()
        self._clock = clock
        self._logger = logging.getLogger(LOGGER_NAME) if logger is None else logger
        self._tenants = TenantsOfSessions()
        self._observers: set[SessionId] = set()
        self._begun: list[Line] = []  # of the event that is being applied

    def event(self, event: Event) -> None:
        """Something happened; its line goes with those of what comes of it."""
        self._tenants.happened(event)
        if isinstance(event, events.SessionOpened) and event.is_observer:
            self._observers.add(event.session_id)
        self._begun += self._noted("event", event)

    def instructed(self, *wanted: Instruction) -> None:
        """The broker wants all this done about the last event."""
        lines = self._taken()
        for instruction in wanted:
            lines += self._noted("instruction", instruction)
            self._tenants.instructed(instruction)
            if isinstance(instruction, instructions.ForgetSession):
                self._observers.discard(instruction.session_id)
        self._log(lines)

    def refused(self, event: Event, error: Exception) -> None:
        """The broker refused an event."""
        self._log(self._taken() + self._noted("refused", event, error))
        self._tenants.refused(event)
        if isinstance(event, events.SessionOpened):
            self._observers.discard(event.session_id)

    def _noted(
        self, kind: str, record: Event | Instruction, error: Exception | None = None
    ) -> list[Line]:
        """Remember in words what is news to people; the line of it, if the log is to have it."""
        level = logging.INFO
        if error is None and type(record) in _TOLD_BY_MOVES:
            pass
        elif error is None and (type(record) in _ROUTINE or self._is_observers(record)):
            level = logging.DEBUG
        else:
            if isinstance(record, instructions.NoteBrokenInvariant):
                level = logging.ERROR
            words = in_words(record, error)
            if words:
                tenant = self._tenants.of(record)
                self.happenings.remember(words, at=self._clock(), tenant=tenant)
        return [Line(level, kind, record, error)] if self._logger.isEnabledFor(level) else []

    def _taken(self) -> list[Line]:
        begun, self._begun = self._begun, []
        return begun

    def _log(self, lines: Sequence[Line]) -> None:
        if lines:
            self._logger.handle(LoggedLines(self._logger.name, lines))

    def _is_observers(self, record: Event | Instruction) -> bool:
        return isinstance(record, _COMING_AND_GOING) and record.session_id in self._observers


class FanOut:
    """One journal that is several."""

    def __init__(self, *journals: Journal) -> None:
        self._journals = journals

    def event(self, event: Event) -> None:
        """Something happened."""
        for journal in self._journals:
            journal.event(event)

    def instructed(self, *wanted: Instruction) -> None:
        """The broker wants all this done about the last event."""
        for journal in self._journals:
            journal.instructed(*wanted)

    def refused(self, event: Event, error: Exception) -> None:
        """The broker refused an event."""
        for journal in self._journals:
            journal.refused(event, error)


def in_words(record: Event | Instruction, error: Exception | None = None) -> str:
    """One line for people; empty for what they need not see."""
    if error is not None:
        reason = error.reason if isinstance(error, BrokerError) else "fault"
        return f"refused {type(record).__name__} ({reason}): {error}"
    match record:
        case instructions.NoteMove(before=before, after=after, lease=lease, why=why):
            if after is LeaseState.FREEING:  # its end is said a moment later
                return ""
            states = f"{before.value if before else 'new'} -> {after.value if after else 'gone'}"
            what = f"lease {lease.lease_id[:8]} of {lease.tenant} on {lease.lender}"
            return f"{what}: {states}" + (f" ({why})" if why else "")
        case instructions.NoteRebalance(nbytes=nbytes, reason=reason, block=block):
            done = (
                f"{nbytes / MIB:g} MiB asked back" if block is None else f"blocked: {block.value}"
            )
            return f"rebalance, {done}: {reason}"
        case instructions.NoteTrouble(gpu=gpu, trouble=trouble):
            return f"{gpu} lends nothing: {trouble}" if trouble else f"{gpu} is well again"
        case instructions.TellLost(lease_ids=lease_ids, reason=reason):
            return f"{_these(lease_ids)} lost: {reason}"
        case events.SessionOpened(tenant=tenant, process=process):
            return f"session of {tenant} opened by process {process.pid}"
        case events.ProcessEnded(session_id=session_id):
            return f"process of session {session_id[:8]} ended"
        case events.KeeperAttached(reports=reports, slabs=slabs):
            return f"keeper of {len(reports)} GPUs attached, holding {len(slabs)} slabs"
        case events.KeeperDetached(gpus=gpus):
            return f"keeper of {', '.join(gpus)} does not answer"
        case events.KeeperEnded(gpus=gpus):
            return f"keeper of {', '.join(gpus)} ended"
        case events.OfferMade(gpu=gpu, nbytes=nbytes):
            return f"offer of {nbytes} bytes on {gpu}"
        case events.ReclaimRequested(gpu=gpu, nbytes=nbytes):
            return f"reclaim of {nbytes} bytes on {gpu}"
        case instructions.AnswerReclaim(freed_bytes=freed_bytes, seconds=seconds):
            return f"reclaim ended: {freed_bytes} bytes freed in {seconds:.3f} s"
        case instructions.AnswerExchange(gpu=gpu, spared=spared, revoked=revoked):
            return f"{_these(spared)} kept on {gpu}, {_these(revoked)} given back instead"
        case instructions.AnswerQuiesce(gpu=gpu, seconds=seconds):
            return f"{gpu} is quiesced for {seconds:.0f} s" if seconds else f"{gpu} goes on"
        case instructions.AnswerDrain(is_dry_run=False, gpus=gpus, hits=hits):
            nbytes = sum(hit.nbytes for hit in hits)
            return (
                f"{', '.join(gpus)} drained: {nbytes / MIB:g} MiB of {len(hits)} sessions go back"
            )
        case instructions.AnswerUndrain(gpus=gpus) if gpus:
            return f"{', '.join(gpus)} undrained"
        case instructions.AnswerLinkProbe(outcomes=outcomes):
            measured = [str(one.pair) for one in outcomes if not one.problem]
            missed = [f"not {one.pair} ({one.problem})" for one in outcomes if one.problem]
            return f"measured {', '.join(measured + missed)}"
        case instructions.AnswerQuota(tenant=tenant, outcome=outcome, quota=quota):
            words = f"quota of {tenant} is {_quota_in_words(quota)}, revision {quota.revision}"
            return f"{words} ({outcome.value})"
        case _:
            return ""


def _these(lease_ids: Sequence[LeaseId]) -> str:
    return f"{'lease' if len(lease_ids) == 1 else 'leases'} {', '.join(x[:8] for x in lease_ids)}"


def _quota_in_words(quota: Quota) -> str:
    size = "the default" if quota.nbytes is None else f"{quota.nbytes} bytes"
    leases = "" if quota.leases is None else f", {quota.leases} leases"
    sessions = "" if quota.sessions is None else f", {quota.sessions} sessions"
    weight = "" if quota.weight is None else f", weight {quota.weight:g}"
    priority = "" if quota.priority is None else f", priority {quota.priority}"
    return size + leases + sessions + weight + priority
