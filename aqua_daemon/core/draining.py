"""Drained GPUs: an admin wants nothing lent there, whoever borrows, until it says otherwise.

Nothing is granted there from then on, and all that is lent there is asked back at once; what does
not come back in time is quarantined, as ever. It outlives keepers, sessions and daemons: the
settings' file keeps it, and what a new daemon finds there is asked back when its keeper is heard.
What it would hit can be asked for without any effect; what is shown is what is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aqua_daemon.core import resting, troubles
from aqua_daemon.core.accounts import GpuAccount
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.events import DrainRequested, UndrainRequested
from aqua_daemon.core.instructions import AnswerDrain, AnswerUndrain, DrainHit
from aqua_daemon.core.model import (
    ALLOCATING,
    LEASED,
    QUARANTINED,
    REVOKING,
    STORE,
    GpuUuid,
    Lease,
    RevokeReason,
    SessionId,
)
from aqua_daemon.core.revoking import revocations, revoke
from aqua_daemon.core.sizes import LONGEST_REVOKE_SECONDS
from aqua_daemon.core.turn import Turn

_WITH_HOLDER = frozenset({ALLOCATING, LEASED, REVOKING, QUARANTINED})
_TO_COME = frozenset({LEASED, REVOKING})


def drain(turn: Turn, event: DrainRequested) -> None:
    """Keep GPUs from being lent and ask for all that is lent there, or only say what that does."""
    session = turn.living_admin(event.session_id, "drain a GPU")
    for gpu in event.gpus:
        turn.ledger.gpu_here(gpu)
    seconds = event.deadline_seconds
    if seconds is not None and not 0 < seconds <= LONGEST_REVOKE_SECONDS:
        msg = f"a deadline of {seconds:g} s: give between 0 and {LONGEST_REVOKE_SECONDS:g} s"
        raise InvalidRequest(msg)
    if turn.repeated(session, event.request_id):
        return
    gpus = tuple(dict.fromkeys(event.gpus or turn.ledger.gpus))
    leases = [lease for gpu in gpus for lease in _held(turn, turn.ledger.gpus[gpu])]
    answer = AnswerDrain(
        session_id=event.session_id,
        request_id=event.request_id,
        gpus=gpus,
        hits=_hits(turn, leases),
        deadline_seconds=_deadline_seconds(turn, leases, seconds),
        copy_seconds=_copy_seconds(turn, leases),
        is_dry_run=event.is_dry_run,
    )
    if not event.is_dry_run:
        for gpu in gpus:
            turn.ledger.mark_drained(gpu, is_drained=True)
        revoke(turn, leases, reason=RevokeReason.DRAIN, seconds=seconds)
    turn.answer(answer)


def undrain(turn: Turn, event: UndrainRequested) -> None:
    """Let GPUs be lent again, those that rest too. What was asked back stays asked back."""
    session = turn.living_admin(event.session_id, "drain a GPU")
    for gpu in event.gpus:
        if gpu not in turn.ledger.drained:
            turn.ledger.gpu_here(gpu)
    if turn.repeated(session, event.request_id):
        return
    drained = tuple(
        gpu for gpu in sorted(turn.ledger.drained) if gpu in event.gpus or not event.gpus
    )
    for gpu in drained:
        turn.ledger.mark_drained(gpu, is_drained=False)
    named = [gpu for gpu in turn.ledger.gpus if gpu in event.gpus or not event.gpus]
    rested = [gpu for gpu in named if resting.wake(turn.ledger.gpus[gpu])]
    for gpu in rested:
        troubles.tell(turn, turn.ledger.gpus[gpu])
    gpus = tuple(dict.fromkeys((*drained, *rested)))
    turn.answer(AnswerUndrain(session_id=event.session_id, request_id=event.request_id, gpus=gpus))


def go_on(turn: Turn, account: GpuAccount) -> None:
    """Ask back what a keeper turned out to hold on a drained GPU; its holder may yet have to come."""
    if account.is_drained:
        revoke(
            turn,
            _held(turn, account),
            reason=RevokeReason.DRAIN,
            seconds=None,
            least_seconds=turn.books.settings.term_seconds,
        )


def _held(turn: Turn, account: GpuAccount) -> list[Lease]:
    """What somebody has there, or is about to get."""
    return [lease for lease in turn.ledger.leases_of(account) if lease.state in _WITH_HOLDER]


def _hits(turn: Turn, leases: Iterable[Lease]) -> tuple[DrainHit, ...]:
    """Who holds what of each GPU, those who hold most first."""
    held: dict[tuple[GpuUuid, SessionId], list[Lease]] = {}
    for lease in leases:
        held.setdefault((lease.lender, lease.session_id), []).append(lease)
    hits = [
        DrainHit(
            gpu=gpu,
            session_id=session_id,
            tenant=group[0].tenant,
            pid=turn.ledger.sessions[session_id].process.pid,
            leases=len(group),
            nbytes=sum(lease.nbytes for lease in group),
            copy_bytes=sum(_copy_bytes(turn, lease) for lease in group),
            quarantined_bytes=sum(lease.nbytes for lease in group if lease.state is QUARANTINED),
        )
        for (gpu, session_id), group in held.items()
    ]
    return tuple(sorted(hits, key=lambda hit: (-hit.nbytes, hit.gpu, hit.session_id)))


def _copy_bytes(turn: Turn, lease: Lease) -> int:
    """What its holder would have to copy elsewhere; one that has said nothing, all of a `store`."""
    if lease.state is ALLOCATING:
        return 0
    use = turn.ledger.uses.get(lease.lease_id)
    if use is not None:
        return min(use.copy_bytes, lease.nbytes)
    return lease.nbytes if lease.safety_class is STORE else 0


def _copy_seconds(turn: Turn, leases: Iterable[Lease]) -> float:
    nbytes = sum(_copy_bytes(turn, lease) for lease in leases if lease.state in _TO_COME)
    return nbytes / turn.books.settings.host_bytes_per_second


def _deadline_seconds(turn: Turn, leases: Sequence[Lease], seconds: float | None) -> float:
    """Until the last that is to come back is late, with what is on its way already."""
    to_come = [lease for lease in leases if lease.state in _TO_COME]
    found = revocations(turn, to_come, reason=RevokeReason.DRAIN, seconds=seconds)
    return max((one.deadline - turn.now for one in found), default=0.0)
