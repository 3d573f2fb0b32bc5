"""The oracle: what was promised, checked against the truth and against its own sums.

It hears every event before the broker does and every instruction that comes out, and it sees what
processes map and keepers hold. It never asks the broker for a sum to judge by. `books` keeps the
oracle's own books, `grants` and `moves` judge what is granted and moved, `audit` compares whole states.
"""

from __future__ import annotations

from collections.abc import Callable

from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.events import (
    Event,
    ExchangeOffered,
    KeepaliveReceived,
    ProcessEnded,
    ReclaimRequested,
    SessionClosed,
    SessionOpened,
    SessionReattached,
)
from aqua_daemon.core.instructions import (
    AllocateSlab,
    AnswerDrain,
    AnswerExchange,
    AnswerGranted,
    AnswerLinkProbe,
    AnswerOffer,
    AnswerQuiesce,
    AnswerReclaim,
    AnswerUndrain,
    ForgetSession,
    FreeSlab,
    Instruction,
    NoteMove,
    ProbeLink,
    SendRevoke,
)
from aqua_daemon.core.model import (
    BrokerSettings,
    Lease,
    LeaseId,
    LeaseState,
    SessionId,
)
from aqua_daemon.core.sizes import (
    REVOKE_GRACE_SECONDS,
)
from tests.simulation.books import Books
from tests.simulation.drains import Drains
from tests.simulation.exchanges import Exchanges
from tests.simulation.grants import Grants
from tests.simulation.judge import require
from tests.simulation.moves import Moves
from tests.simulation.probes import Probes
from tests.simulation.reclaims import Reclaims
from tests.simulation.stage import Stage
from tests.simulation.truth import Process, Slab

_DEAD_SECONDS = 1.0  # until what a dead process held may not be leased any more
_SLACK = 0.15  # a tick, and half of one: what a promise in seconds may take longer


class Oracle:
    """Judges one run."""

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        stage: Stage,
        find_slab: Callable[[LeaseId], Slab | None],
        find_process: Callable[[SessionId], Process | None],
    ) -> None:
        self.settings = settings
        self.books = Books(settings, stage)
        # After a restart holders state what another daemon gave them, and all of it counts.
        self.has_restarted = False
        self.claimed_leases: dict[LeaseId, None] = {}  # what holders have unmapped and said so
        self.left_sessions: dict[SessionId, None] = {}  # whose process said goodbye
        self._stage = stage
        self._find_process = find_process
        self.moves = Moves(stage, find_slab)
        self.drains = Drains(stage)
        self.exchanges = Exchanges(stage)
        self.reclaims = Reclaims(stage, find_process)
        self.probes = Probes(stage)
        self.grants = Grants(settings, stage, moves=self.moves, drains=self.drains)

    def daemon_started(self) -> None:
        """A new daemon knows nothing: the oracle forgets what the old one knew."""
        self.has_restarted = self._stage.now > 0
        self.books = Books(self.settings, self._stage)
        self.reclaims = Reclaims(self._stage, self._find_process)
        self.exchanges = Exchanges(self._stage)
        self.probes = Probes(self._stage)
        self.grants = Grants(self.settings, self._stage, moves=self.moves, drains=self.drains)

    # --- what a daemon hears and orders ------------------------------------------------------

    def heard(self, event: Event) -> None:
        """An event is about to be handled."""
        self._stage.story.counts["events"] += 1
        self.exchanges.heard(event)
        self.books.hear(event)
        if isinstance(event, ReclaimRequested):
            self.reclaims.asked(event, self.books)
        elif isinstance(event, ProcessEnded | SessionClosed):
            self.reclaims.abandoned(event.session_id)
        if type(event).__name__ not in {"Ticked", "GpuReported", "KeepaliveReceived"}:
            self._stage.tell("-> {}", event)

    def refused(self, event: Event, error: BrokerError) -> None:
        """The broker raised: nothing has changed."""
        self._stage.tell("   refused: {!r}", error)
        self._stage.count(f"raised {type(error).__name__}")
        self.books.unhear(event)
        if isinstance(event, ReclaimRequested):
            self.reclaims.refused(event)
        elif isinstance(event, ExchangeOffered):
            self.exchanges.refused(error)
        elif isinstance(event, SessionReattached):
            self._reattach_refused(event, error)
        if isinstance(event, KeepaliveReceived) and self.books.is_open(event.session_id):
            self.wrongly_refused(event, error)

    def admitted(self, event: SessionOpened | SessionReattached) -> None:
        """A session has begun, or is back: only its own process may be."""
        if isinstance(event, SessionOpened):
            self.books.opened[event.session_id] = event.tenant
            has = self.books.tenant_sessions(event.tenant)
            most = self.settings.tenant_quota_sessions
            require(has <= most, "{} has {} sessions of {}", event.tenant, has, most)
        else:
            self._stage.count("sessions re-attached")
            process = self._find_process(event.session_id)
            mine = process is None or process.identity == event.process
            require(mine, "{} took the session of another", event.process)

    def ordered(self, instruction: Instruction) -> None:
        """The broker gave an instruction."""
        match instruction:
            case NoteMove(before=before, after=after, lease=lease):
                self._stage.tell(
                    "   {}: {} -> {}, {}", lease.lease_id, before, after, instruction.why
                )
                self.exchanges.moved(before, after, lease, self.books)
                self.moves.moved(before, after, lease, self.books)
                self._moved_on_quiet_gpu(instruction)
                return
            case AllocateSlab():
                self.grants.ordered(instruction, self.books)
            case FreeSlab(lease_id=lease_id):
                self._stage.count("frees ordered")
                self.moves.must_be_returned(lease_id, self.books, "ordered to be freed")
            case AnswerGranted(session_id=session_id, lease=lease):
                self.grants.granted(session_id, instruction.request_id, lease, self.books)
            case SendRevoke():
                self._revoking(instruction)
            case AnswerDrain():
                self.drains.drained(instruction, self.books)
            case AnswerQuiesce():
                self._quiet(instruction)
            case AnswerUndrain():
                self.drains.undrained(instruction)
            case ProbeLink():
                self.probes.ordered(instruction)
            case AnswerLinkProbe():
                self.probes.answered(instruction)
            case AnswerExchange():
                self.exchanges.answered(instruction, self.books)
            case AnswerReclaim():
                self.reclaims.answered(instruction, self.books)
            case AnswerOffer(request_id=request_id):
                self._stage.count("offers")
                self.books.offered(request_id)
            case ForgetSession(session_id=session_id):
                self.books.opened.pop(session_id, None)
                self._stage.count("sessions forgotten")
                require(
                    not self.books.leases_of(session_id), "{} forgotten with leases", session_id
                )
            case _:
                pass
        if type(instruction).__name__ != "AnswerKeepalive":
            self._stage.tell("   {}", instruction)

    def handled(self, event: Event) -> None:
        """All instructions were given."""
        if isinstance(event, ReclaimRequested):
            self.reclaims.started(event, self.books)

    # --- what is really so -------------------------------------------------------------------

    def mapped(self, process: Process, lease: Lease, slab: Slab | None) -> None:
        """A client opens what it was granted."""
        if slab is None:
            lost = lease.lease_id not in self.claimed_leases
            require(lost, "granted {} after it was given back", lease.lease_id)
            self._stage.count("grants whose keeper was gone")
            return
        tag = slab.tag
        require(
            tag.tenant == process.tenant and tag.holder == process.identity,
            "{} opens a slab made for {}",
            process.identity,
            tag,
        )
        require(tag.nbytes == lease.nbytes, "{} is not as large as its slab", lease)
        others = [tenant for tenant in slab.readers if tenant != process.tenant]
        require(not others, "slab {} readable to {} too", lease.lease_id, others)

    def claimed(self, lease_ids: tuple[LeaseId, ...]) -> None:
        """A holder has unmapped these and is about to say so."""
        self.claimed_leases.update(dict.fromkeys(lease_ids))

    def left(self, session_id: SessionId) -> None:
        """A process has unmapped everything and says goodbye."""
        self.left_sessions[session_id] = None

    def told_gone(self, lease_id: LeaseId, slab: Slab, how: str) -> None:
        """A holder was told that a lease which it maps is lost, or not its own any more."""
        self._stage.count(f"leases told {how}")
        require(slab.is_lost, "{} was told {}, but its keeper holds it", lease_id, how)

    def wrongly_refused(self, event: object, error: BrokerError) -> None:
        """A living, honest client was refused what it can't be refused."""
        require(False, "refused {!r}: {}", error, event)  # noqa: FBT003 - never holds

    def freed(self, slab: Slab) -> None:
        """A keeper frees a slab, and takes its bytes away from whoever maps it."""
        lease_id = slab.tag.lease_id
        self._stage.count("slabs freed")
        for process in slab.mappers:
            is_child = process.identity != slab.tag.holder
            require(
                is_child and lease_id in self.claimed_leases,
                "slab {} is freed while {} maps it",
                lease_id,
                process.identity,
            )

    def look_at_the_clock(self) -> None:
        """Everything that had to happen by now has happened."""
        now = self._stage.now
        for lease_id, lease in self.books.leases.items():
            if lease.state is LeaseState.REVOKING:
                by = self.books.revoke_deadlines[lease_id] + REVOKE_GRACE_SECONDS + _SLACK
                require(now <= by, "the revoke of {} did not end by {}", lease_id, by)
            elif lease.state is LeaseState.LEASED:
                dead = self.books.has_process_ended(lease.session_id)
                late = now > lease.since + _DEAD_SECONDS  # adopted, until its proof is looked at
                require(not (dead and late), "{} is leased to a dead process", lease_id)
                came_at = self.books.newcomer_at.get(lease.lender, -1e9)
                require(lease.since > came_at, "{} stays, a process came at {}", lease, came_at)
                # A daemon gives what it adopts a term, however long its holder was silent before.
                heard = max(lease.since, self.books.heard_at.get(lease.session_id, now))
                by = heard + self.settings.term_seconds + _SLACK
                require(now <= by, "{} is leased, unheard since {}", lease_id, heard)
        self.reclaims.look_at_the_clock()
        self.drains.look(self.books)
        self.books.quiets.look(self.books.leases)

    # --- private -----------------------------------------------------------------------------

    def _reattach_refused(self, event: SessionReattached, error: BrokerError) -> None:
        """A living process may not re-attach: only when a new daemon could not know it."""
        session_id, process = event.session_id, self._find_process(event.session_id)
        is_it = process is not None and process.is_alive and process.identity == event.process
        if not is_it or session_id in self.left_sessions:
            return  # an impostor, or nobody any more: a connection of before may arrive late
        self._stage.count("sessions unknown after a restart")
        slabs = [i for i, tag in self.books.held.items() if tag.session_id == session_id]
        known = slabs or self.books.is_open(session_id)
        too_early = self._stage.now < self.books.grace_ends_at
        require(not known and not too_early, "{} refused: {}", session_id, error)

    def _revoking(self, order: SendRevoke) -> None:
        for lease_id in order.lease_ids:
            lease = self.books.leases.get(lease_id)
            owner = lease.session_id if lease is not None else None
            require(owner == order.session_id, "{} revoked of {}", lease_id, order.session_id)
            deadline = self.books.revoke_deadlines.get(lease_id)
            bought = deadline is not None and order.deadline > deadline + 1e-6
            if lease is not None and lease.state is LeaseState.REVOKING:
                if deadline is not None and order.deadline < deadline - 1e-6:
                    self._stage.count("revokes hastened")
                require(not bought, "the deadline of {} moved to {}", lease_id, order.deadline)
                self.books.revoke_deadlines[lease_id] = order.deadline

    def _moved_on_quiet_gpu(self, move: NoteMove) -> None:
        quiets, lease = self.books.quiets, move.lease
        if move.after is LeaseState.REVOKING and move.why == "revoked":
            quiets.revokes(lease)
        elif move.after is LeaseState.FREEING:
            quiets.frees(lease, is_waited_for=self.reclaims.waits_for(lease.lender))

    def _quiet(self, answer: AnswerQuiesce) -> None:
        books = self.books
        latest = books.quiets.answered(answer, books.leases, books.revoke_deadlines)
        by = self._stage.now + books.standard_revoke_seconds() + 1e-6
        require(latest <= by, "what is taken back has until {}, not {}", latest, by)
