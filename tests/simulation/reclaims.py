"""What producers were promised: an answer in time, and true figures in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aqua_daemon.core.events import ReclaimRequested
from aqua_daemon.core.instructions import AnswerReclaim
from aqua_daemon.core.model import GpuUuid, LeaseId, LeaseState, RequestId, SessionId
from aqua_daemon.core.sizes import REVOKE_GRACE_SECONDS
from tests.simulation.books import Books
from tests.simulation.judge import require
from tests.simulation.stage import Stage
from tests.simulation.truth import Process

_COMING = (
    LeaseState.ALLOCATING,
    LeaseState.REVOKING,
    LeaseState.RETURNED,
    LeaseState.FREEING,
)
_SLACK = 0.15  # a tick, and half of one


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reclaim:
    gpu: GpuUuid
    by: float
    freed_before_bytes: int
    is_permitted: bool


class Reclaims:
    """The reclaims that one daemon has heard and not answered."""

    def __init__(self, stage: Stage, find_process: Callable[[SessionId], Process | None]) -> None:
        self._stage = stage
        self._find_process = find_process
        self._waiting: dict[tuple[SessionId, RequestId], _Reclaim] = {}
        self._started: dict[RequestId, None] = {}
        self._answered: dict[RequestId, None] = {}  # a repeated request hears its old answer

    def asked(self, event: ReclaimRequested, books: Books) -> None:
        """A daemon hears of a reclaim, perhaps again."""
        self._stage.count("reclaims")
        ends_at = self._stage.now + (event.deadline_seconds or books.standard_revoke_seconds())
        if event.deadline_seconds is None:  # what is on its way already is waited for
            ends_at = max(ends_at, books.latest_revoke_deadline(event.gpu))
        reclaim = _Reclaim(
            gpu=event.gpu,
            by=ends_at + REVOKE_GRACE_SECONDS + _SLACK,
            freed_before_bytes=books.freed_bytes.get(event.gpu, 0),
            is_permitted=self._is_owner(event.session_id, event.gpu, books),
        )
        self._waiting.setdefault((event.session_id, event.request_id), reclaim)

    def started(self, event: ReclaimRequested, books: Books) -> None:
        """It was accepted: as many bytes are on their way by its deadline, or all that are lent."""
        if event.request_id in self._started:
            return
        self._started[event.request_id] = None
        by = self._stage.now + (event.deadline_seconds or books.standard_revoke_seconds()) + 1e-6
        missing = event.nbytes
        late: list[LeaseId] = []
        for lease_id, lease in books.leases.items():
            is_late = lease.state is LeaseState.REVOKING and books.revoke_deadlines[lease_id] > by
            is_late = is_late and not books.has_process_ended(lease.session_id)
            if lease.lender == event.gpu and (is_late or lease.state is LeaseState.LEASED):
                late.append(lease_id)
            elif lease.lender == event.gpu and lease.state in _COMING:
                missing -= lease.nbytes
        require(missing <= 0 or not late, "{}: {} come too late", event, late)

    def waits_for(self, gpu: GpuUuid) -> bool:
        """Whether a producer waits for what comes back there."""
        return any(reclaim.gpu == gpu for reclaim in self._waiting.values())

    def last_by(self) -> float:
        """By when the last of them must be answered."""
        return max((reclaim.by for reclaim in self._waiting.values()), default=0.0)

    def refused(self, event: ReclaimRequested) -> None:
        """It was raised at once."""
        self._waiting.pop((event.session_id, event.request_id), None)

    def abandoned(self, session_id: SessionId) -> None:
        """The producer has ended: nobody waits any more."""
        for key in [key for key in self._waiting if key[0] == session_id]:
            del self._waiting[key]

    def answered(self, answer: AnswerReclaim, books: Books) -> None:
        """The figures must be true, by what keepers answered since it was asked."""
        self._stage.count("reclaims answered")
        reclaim = self._waiting.pop((answer.session_id, answer.request_id), None)
        if reclaim is None or answer.request_id in self._answered:
            return
        self._answered[answer.request_id] = None
        require(reclaim.is_permitted, "{} for a stranger to {}", answer, reclaim.gpu)
        freed = books.freed_bytes.get(reclaim.gpu, 0) - reclaim.freed_before_bytes
        require(answer.freed_bytes <= freed, "{}, but {} were freed", answer, freed)
        gone = answer.freed_bytes + answer.quarantined_bytes
        require(gone <= answer.revoked_bytes, "{}: more came than was asked", answer)
        if answer.quarantined_bytes:
            self._stage.count("reclaims answered in part")

    def look_at_the_clock(self) -> None:
        """Every one is answered by its deadline and a grace."""
        for key, reclaim in self._waiting.items():
            in_time = self._stage.now <= reclaim.by
            require(in_time, "reclaim {} unanswered by {}", key, reclaim.by)

    def _is_owner(self, session_id: SessionId, gpu: GpuUuid, books: Books) -> bool:
        process, report = self._find_process(session_id), books.reports.get(gpu)
        return bool(process and report and process.identity.pid in report.owner_bytes)
