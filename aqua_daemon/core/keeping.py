"""The keepers' word: what they hold when they attach, what they report, and when they are gone.

Keepers are the truth about allocations. A new broker's books are what they hold; after a broken
link the books are compared with what they hold then; in between, every report must agree with the
books, because answers and reports come in order.
"""

from __future__ import annotations

from aqua_daemon.core import draining, lending, quiescing, resting, troubles
from aqua_daemon.core.accounts import GpuAccount
from aqua_daemon.core.events import GpuReported, KeeperAttached, KeeperDetached, KeeperEnded
from aqua_daemon.core.granting import deny, drop_unseen
from aqua_daemon.core.instructions import ForgetSession, FreeSlab
from aqua_daemon.core.lifecycle import Move
from aqua_daemon.core.model import (
    ALLOCATING,
    DEAD,
    FREEING,
    LEASED,
    LOST,
    RETURNED,
    GpuUuid,
    Lease,
    LeaseId,
    Session,
    SlabTag,
)
from aqua_daemon.core.ramping import ramp
from aqua_daemon.core.returning import forget_if_over, lose, send_free
from aqua_daemon.core.revoking import keep_reserve, return_from_proved_gone, revoke_from_dead
from aqua_daemon.core.sessions import adopt_holder
from aqua_daemon.core.turn import Turn


def attach(turn: Turn, event: KeeperAttached) -> None:
    """Compare the books with all that a keeper holds, and adopt what they do not know."""
    reports = {report.gpu: report for report in event.reports}
    tags: dict[GpuUuid, dict[LeaseId, SlabTag]] = {gpu: {} for gpu in reports}
    for tag in event.slabs:
        tags.setdefault(tag.lender, {})[tag.lease_id] = tag
    for gpu, tags_there in tags.items():
        account = turn.ledger.add_gpu(gpu)
        account.has_keeper = True
        account.was_heard = True
        held = {lease_id: tag.nbytes for lease_id, tag in tags_there.items()}
        if gpu in reports:
            lending.learn(turn, account, reports[gpu])
            held = reports[gpu].slab_bytes
        account.keeper_slabs = dict(held)
    # Adopted first, on all GPUs: a session is over only when nothing of it turns up any more.
    unknown = [tag for tag in event.slabs if tag.lease_id not in turn.ledger.leases]
    for tag in unknown:
        _adopt(turn, tag)
    adopted = {tag.lease_id for tag in unknown}
    for gpu, tags_there in tags.items():
        account = turn.ledger.gpus[gpu]
        _reconcile(turn, account, tags_there, adopted)
        _check_slabs(turn, account)
    for gpu in tags:
        account = turn.ledger.gpus[gpu]
        lending.settle(turn, account)
        ramp(turn, account)
        draining.go_on(turn, account)
        quiescing.go_on(turn, account)
        keep_reserve(turn, account)
        troubles.tell(turn, account)


def report(turn: Turn, event: GpuReported) -> None:
    """Take over what one GPU is like now. A GPU whose keeper is not attached says nothing."""
    account = turn.ledger.gpus.get(event.report.gpu)
    if account is None or not account.has_keeper:
        return
    lending.learn(turn, account, event.report)
    if account.keeper_slabs != event.report.slab_bytes:  # else nothing is new to be looked at
        account.keeper_slabs = dict(event.report.slab_bytes)
        _check_slabs(turn, account)
    lending.settle(turn, account)
    resting.settle(turn, account)
    ramp(turn, account)
    keep_reserve(turn, account)
    troubles.tell(turn, account)


def detach(turn: Turn, event: KeeperDetached) -> None:
    """A link broke. What is there stays held; nothing new is granted until it is back."""
    for gpu in event.gpus:
        account = turn.ledger.gpus.get(gpu)
        if account is not None and account.has_keeper:
            account.has_keeper = False
            account.trouble = "the link to its keeper is broken"
            troubles.tell(turn, account)


def end(turn: Turn, event: KeeperEnded) -> None:
    """A keeper is gone, and the bytes of its slabs with it."""
    for gpu in event.gpus:
        account = turn.ledger.gpus.get(gpu)
        if account is None:
            continue
        said = f", which had said: {account.refusal}" if account.refusal else ""
        resting.note_end(turn, account)
        account.has_keeper = False
        account.trouble = f"its keeper has ended{said}"
        account.doubt = ""
        known = turn.books.known_faults
        known.difference_update([fault for fault in known if fault[1] == gpu])
        leases = turn.ledger.leases_of(account)
        unmade = [lease for lease in leases if lease.state is ALLOCATING]
        _fail(turn, unmade, Move.KEEPER_ENDED, account.trouble)
        held = [lease for lease in leases if lease.state not in {ALLOCATING, LOST}]
        lose(turn, held, Move.KEEPER_ENDED, f"the keeper of {gpu} has ended{said}")
        account.keeper_slabs = {}
        _check_slabs(turn, account)
        troubles.tell(turn, account)


def _reconcile(
    turn: Turn, account: GpuAccount, tags: dict[LeaseId, SlabTag], adopted: set[LeaseId]
) -> None:
    # The keeper answered what it answered before the link broke; the rest is told by what it has.
    vanished: list[Lease] = []
    unmade: list[Lease] = []
    for lease in turn.ledger.leases_of(account):
        if lease.state is LOST or lease.lease_id in adopted:
            continue
        if lease.lease_id not in tags:
            (unmade if lease.state is ALLOCATING else vanished).append(lease)
        elif lease.state is ALLOCATING:
            drop_unseen(turn, lease)  # its handle went down with the link
        elif lease.state is RETURNED:
            send_free(turn, lease)
        elif lease.state is FREEING:
            turn.emit(FreeSlab(gpu=lease.lender, lease_id=lease.lease_id))
    _fail(turn, unmade, Move.VANISHED, "the link to its keeper broke")
    lose(turn, vanished, Move.VANISHED, f"the keeper of {account.gpu} does not have it any more")


def _fail(turn: Turn, unmade: list[Lease], move: Move, why: str) -> None:
    for lease in unmade:
        turn.move(lease, move)
        deny(turn, lease, f"{lease.lender} made no slab: {why}")
        forget_if_over(turn, lease.session_id)


def _adopt(turn: Turn, tag: SlabTag) -> None:
    is_unwanted = tag.lease_id in turn.books.unseen or turn.books.is_over(tag)
    if tag.lease_id in turn.books.ended and tag.lease_id not in turn.books.unseen:
        return  # it can't be: `_check_slabs` counts its bytes as held, by nobody
    known = turn.ledger.sessions.get(tag.session_id)
    if known is not None and known.process != tag.holder and not _is_evicted(turn, known):
        return
    session = adopt_holder(turn, tag)
    state = RETURNED if is_unwanted else LEASED
    lease = Lease(
        lease_id=tag.lease_id,
        session_id=tag.session_id,
        tenant=tag.tenant,
        lender=tag.lender,
        borrower=tag.borrower,
        nbytes=tag.nbytes,
        safety_class=tag.safety_class,
        request_id=tag.request_id,
        state=state,
        since=turn.now,
    )
    turn.enter(lease, Move.UNWANTED if is_unwanted else Move.ADOPTED)
    turn.books.excuse(tag.tenant)
    if is_unwanted:
        send_free(turn, lease)
        return
    turn.promise(lease)
    turn.books.lease_timers.push(turn.now + turn.books.settings.term_seconds, lease.lease_id)
    if session.state is DEAD:
        revoke_from_dead(turn, session)
        if session.sentinel_ended:
            return_from_proved_gone(turn, session)


def _is_evicted(turn: Turn, session: Session) -> bool:
    # While a keeper was not heard, a process could re-attach under any id. The tag says whose it
    # is; a process that took the id and holds no slab loses it.
    if turn.ledger.session_accounts[session.session_id].leases:
        return False
    turn.ledger.close_session(session.session_id)
    turn.emit(ForgetSession(session_id=session.session_id))
    return True


def _check_slabs(turn: Turn, account: GpuAccount) -> None:
    # Whatever the keeper has and the books do not is held, by nobody knows whom.
    leases = turn.ledger.leases
    account.strange_slabs = {
        lease_id: nbytes
        for lease_id, nbytes in account.keeper_slabs.items()
        if lease_id not in leases
        or leases[lease_id].lender != account.gpu
        or leases[lease_id].state is LOST
    }
    account.strange_bytes = sum(account.strange_slabs.values())
    turn.touched.update(account.leases)
    turn.touched_gpus[account.gpu] = None
