"""The story of the node: one JSON line per event, instruction and refusal, and the last few in words.

Covers the log's lines and the words that `aquactl events` shows. Does not cover counting
(metrics.py), keeping the words (happenings.py) nor what a slab's step says (audit). A line has the
record's name under `event`, `instruction` or `refused`, and its fields by their own names, so that all
lines of one lease are found by its id.

What comes many times a second in a quiet node (ticks, keepalives, reports) is logged at debug, and
so is that an observer came and went, which is in no words either: who looks every second at what
happened last would see nothing but himself.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import NamedTuple, cast

from aqua_daemon.adapters.audit import audited
from aqua_daemon.adapters.happenings import Happenings, TenantsOfSessions
from aqua_daemon.core import events, instructions
from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.events import Event
from aqua_daemon.core.instructions import Instruction
from aqua_daemon.core.limits import Quota
from aqua_daemon.core.model import Lease, LeaseId, LeaseState, SessionId
from aqua_daemon.core.sizes import MIB
from aqua_daemon.ports import Clock, Journal

LOGGER_NAME = "aqua"
_ROUTINE = (
    events.Ticked,
    events.KeepaliveReceived,
    events.GpuReported,
    instructions.AnswerKeepalive,
)
_COMING_AND_GOING = (
    events.SessionOpened,
    events.PresenceEnded,
    events.ProcessEnded,
    events.SentinelEnded,
    events.SessionClosed,
    instructions.ForgetSession,
)
_AS_IT_IS = frozenset({str, int, float, bool, type(None)})  # in JSON, too: most of all fields
_LOGGED_FIELDS = "fields"
_LEASE_FIELDS = ("lease_id", "session_id", "tenant", "lender", "nbytes", "safety_class", "state")

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


class LogJournal:
    """Logs everything, and remembers in words what a person wants to know."""

    def __init__(self, *, clock: Clock, logger: logging.Logger | None = None) -> None:
        """Lines go to *logger*, the `aqua` one unless given."""
        self.happenings = Happenings()
        self._clock = clock
        self._logger = logging.getLogger(LOGGER_NAME) if logger is None else logger
        self._tenants = TenantsOfSessions()
        self._observers: set[SessionId] = set()

    def event(self, event: Event) -> None:
        """Something happened."""
        self._tenants.happened(event)
        if isinstance(event, events.SessionOpened) and event.is_observer:
            self._observers.add(event.session_id)
        self._note("event", event)

    def instruction(self, instruction: Instruction) -> None:
        """The broker wants something done."""
        self._note("instruction", instruction)
        self._tenants.instructed(instruction)
        if isinstance(instruction, instructions.ForgetSession):
            self._observers.discard(instruction.session_id)

    def refused(self, event: Event, error: Exception) -> None:
        """The broker refused an event."""
        self._note("refused", event, error)
        self._tenants.refused(event)
        if isinstance(event, events.SessionOpened):
            self._observers.discard(event.session_id)

    def _note(self, kind: str, record: Event | Instruction, error: Exception | None = None) -> None:
        is_routine = error is None and type(record) in _ROUTINE
        if is_routine and not self._logger.isEnabledFor(logging.DEBUG):
            return  # it is in no words either
        is_no_news = error is None and self._is_observers(record)
        words = in_words(record, error)
        if words and not is_no_news:
            tenant = self._tenants.of(record)
            self.happenings.remember(words, at=self._clock(), tenant=tenant)
        level = logging.INFO
        if isinstance(record, instructions.NoteBrokenInvariant):
            level = logging.ERROR
        elif is_no_news or is_routine:
            level = logging.DEBUG
        if not self._logger.isEnabledFor(level):
            return
        self._logger.handle(_Logged(self._logger.name, level, _Line(kind, record, error)))

    def _is_observers(self, record: Event | Instruction) -> bool:
        return isinstance(record, _COMING_AND_GOING) and record.session_id in self._observers


class _Logged(logging.LogRecord):
    """A line on its way to the handlers.

    Made by hand: where in this file it comes from is nobody's question, and finding out costs more
    than the line.
    """

    def __init__(self, name: str, level: int, line: _Line) -> None:
        created = time.time()  # noqa: TID251 - for people: when it was
        self.__dict__.update(
            _BLANK,
            name=name,
            levelno=level,
            levelname=logging.getLevelName(level),
            msg=type(line.record).__name__,
            created=created,
            msecs=created % 1.0 * 1000,
        )
        self.fields = line  # see `_LOGGED_FIELDS`


_BLANK = vars(logging.makeLogRecord({}))  # all that some handler may look for


class _Line(NamedTuple):
    """What a line is of; put into words when it is written."""

    kind: str
    record: Event | Instruction
    error: Exception | None

    def fields(self) -> dict[str, Json]:
        fields: dict[str, Json] = {self.kind: type(self.record).__name__, **_fields(self.record)}
        if isinstance(self.record, instructions.NoteMove):
            fields |= audited(self.record)
        if self.error is not None:
            fields["error"] = _plain(self.error)
        return fields


class FanOut:
    """One journal that is several."""

    def __init__(self, *journals: Journal) -> None:
        self._journals = journals

    def event(self, event: Event) -> None:
        """Something happened."""
        for journal in self._journals:
            journal.event(event)

    def instruction(self, instruction: Instruction) -> None:
        """The broker wants something done."""
        for journal in self._journals:
            journal.instruction(instruction)

    def refused(self, event: Event, error: Exception) -> None:
        """The broker refused an event."""
        for journal in self._journals:
            journal.refused(event, error)


class JsonLines(logging.Formatter):
    """Every log record as one JSON object on one line."""

    def __init__(self, *, has_priority: bool = False) -> None:
        """*has_priority*: as the systemd journal wants it, which takes the prefix off again."""
        super().__init__()
        self._has_priority = has_priority
        self._second = (0, "")  # the last one, in words

    def format(self, record: logging.LogRecord) -> str:
        """The record's fields, if a journal gave it some, else its message."""
        line: dict[str, Json] = {
            "time": self._time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        given = getattr(record, _LOGGED_FIELDS, None)
        line |= given.fields() if isinstance(given, _Line) else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        prefix = f"<{_priority(record.levelno)}>" if self._has_priority else ""
        return prefix + json.dumps(line)

    def _time(self, created: float) -> str:
        # Thousands of lines a second begin alike.
        second = int(created)
        if second != self._second[0]:
            words = time.strftime(self.default_time_format, self.converter(created))
            self._second = (second, words)
        return f"{self._second[1]},{int((created - second) * 1000):03d}"


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


def _priority(level: int) -> int:
    """The priority of syslog, which is the journal's: the lower, the graver."""
    at_least = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
    return next((priority for least, priority in at_least if level >= least), 7)


def _quota_in_words(quota: Quota) -> str:
    size = "the default" if quota.nbytes is None else f"{quota.nbytes} bytes"
    leases = "" if quota.leases is None else f", {quota.leases} leases"
    sessions = "" if quota.sessions is None else f", {quota.sessions} sessions"
    weight = "" if quota.weight is None else f", weight {quota.weight:g}"
    priority = "" if quota.priority is None else f", priority {quota.priority}"
    return size + leases + sessions + weight + priority


def _fields(record: object) -> dict[str, Json]:
    names = _field_names(type(record))  # type: ignore[arg-type]  # mypy: of a type it takes its instances' hash
    found: dict[str, Json] = {}
    for name in names:
        value = getattr(record, name)
        found[name] = value if type(value) in _AS_IT_IS else _plain(value)
    return found


@cache
def _field_names(kind: type[object]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


def _plain(value: object) -> Json:
    """*value* in what JSON has: records by their fields, enums by value, errors by their reason."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, BaseException):
        reason = value.reason if isinstance(value, BrokerError) else "fault"
        return {"type": type(value).__name__, "reason": reason, "message": str(value)}
    if isinstance(value, Lease):  # the rest of it is in the lines before
        return {name: _plain(getattr(value, name)) for name in _LEASE_FIELDS}
    if isinstance(value, tuple | list | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        mapping = cast("Mapping[object, object]", value)
        return {str(key): _plain(item) for key, item in mapping.items()}
    return _fields(value) or str(value)
