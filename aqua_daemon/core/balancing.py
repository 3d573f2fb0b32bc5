"""Memory moves from who has more than its fair share to who has less and wants more.

Story of a newcomer on a full node: its request is refused and remembered as a want; from then on
nobody is granted more than its share; at the next rebalance those above theirs are asked for the
difference; what they give back is there when the newcomer asks again. Wants are forgotten when they
are not repeated. Nothing is moved twice within `REST_SECONDS`.

Who lets a deadline pass is asked for no more by choice until it has answered: it would only come
into quarantine as well. Meanwhile what it holds is the first of its share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter

from aqua_daemon.core.accounts import GpuAccount, TenantAccount
from aqua_daemon.core.books import Want
from aqua_daemon.core.choosing import in_order, silent_sessions
from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.fairness import Party, fair_shares, in_whole_slabs
from aqua_daemon.core.instructions import NoteRebalance
from aqua_daemon.core.model import (
    LEASED,
    LIVE,
    QUARANTINED,
    GpuUuid,
    Lease,
    RebalanceBlock,
    RevokeReason,
    Session,
    SessionId,
    TenantName,
    owner_of,
)
from aqua_daemon.core.rebalancing import Recall, lack, recalls
from aqua_daemon.core.revoking import revoke
from aqua_daemon.core.sizes import MIB, REST_SECONDS, WANT_SECONDS
from aqua_daemon.core.turn import Turn

_STAYING = frozenset({LEASED, QUARANTINED})


def note_want(turn: Turn, session: Session, nbytes: int) -> None:
    """Remember that a session lacks so many bytes. It changes nothing that anybody holds."""
    books = turn.books
    if books.settings.rebalance_seconds and nbytes > 0:
        books.wants[session.session_id] = Want(nbytes=nbytes, at=turn.now)
        books.shares = None


def note_granted(turn: Turn, session: Session, nbytes: int) -> None:
    """A session has got some of what it lacked."""
    want = turn.books.wants.pop(session.session_id, None)
    if want is not None and want.nbytes > nbytes:
        turn.books.wants[session.session_id] = Want(nbytes=want.nbytes - nbytes, at=want.at)


def check_share(turn: Turn, session: Session, nbytes: int) -> None:
    """While others lack what is theirs, nobody goes above its own share.

    Raises:
        InsufficientMemory: it would.
    """
    if not turn.books.wants:
        return
    parties = tuple(_parties(turn))
    shares = _shares(turn, parties)
    share = shares.get(session.tenant)
    smallest_bytes = turn.books.settings.smallest_slab_bytes
    is_wanted = any(
        party.tenant != session.tenant and lack(party, shares) >= smallest_bytes
        for party in parties
    )
    if share is None or not is_wanted:
        return  # who is new is counted from its first refusal on
    held_bytes = _held_bytes(turn, session.tenant)
    if held_bytes + nbytes > share:
        msg = (
            f"{session.tenant} holds {held_bytes / MIB:g} MiB, {nbytes / MIB:g} MiB more are above "
            f"its fair share of {share / MIB:.0f} MiB while others lack theirs: use host memory"
        )
        raise InsufficientMemory(msg)


def rebalance(turn: Turn) -> None:
    """Ask back what is above a fair share and wanted below one, once each period."""
    books = turn.books
    period = books.settings.rebalance_seconds
    if not period or turn.now < books.rebalanced_at + period:
        return
    books.rebalanced_at = turn.now
    books.shares = None
    living = dict.fromkeys(_living_wants(turn))
    books.wants = {session_id: books.wants[session_id] for session_id in living}
    if not books.wants or books.is_restarting:
        return
    parties = tuple(_parties(turn))
    suggested = recalls(
        parties,
        _shares(turn, parties),
        smallest_bytes=books.settings.smallest_slab_bytes,
        coming_bytes=sum(
            turn.ledger.gpus[gpu].coming_bytes + _grantable_bytes(turn, turn.ledger.gpus[gpu])
            for gpu in _within_reach(turn)
        ),
    )
    leases = _leases_of(turn, {recall.tenant for recall in suggested})
    for recall in suggested:
        _follow(turn, recall, leases[recall.tenant])


def _follow(turn: Turn, recall: Recall, leases: list[Lease]) -> None:
    """Revoke the tenant's cheapest leases that may be moved, and say so; or say why none may."""
    usable, silent = _within_reach(turn, recall.for_tenant), silent_sessions(turn)
    chosen: list[Lease] = []
    left_bytes, block = recall.nbytes, RebalanceBlock.NO_WHOLE_SLAB
    smallest_bytes = min(map(attrgetter("nbytes"), leases), default=0)
    for lease in in_order(turn, leases):
        if left_bytes < smallest_bytes:
            break
        if lease.state is not LEASED or lease.nbytes > left_bytes:
            continue
        if lease.lender not in usable:
            block = RebalanceBlock.OUT_OF_REACH
        elif turn.ledger.gpus[lease.lender].is_quiet:
            block = RebalanceBlock.QUIET
        elif lease.session_id in silent:
            block = RebalanceBlock.UNANSWERED
        elif turn.now - lease.since < REST_SECONDS:
            block = RebalanceBlock.TOO_RECENT
        else:
            chosen.append(lease)
            left_bytes -= lease.nbytes
    revoke(turn, chosen, reason=RevokeReason.REBALANCE)
    turn.emit(
        NoteRebalance(
            tenant=recall.tenant,
            for_tenant=recall.for_tenant,
            nbytes=recall.nbytes - left_bytes,
            reason=recall.reason,
            block=None if chosen else block,
        )
    )


def _within_reach(turn: Turn, tenant: TenantName | None = None) -> set[GpuUuid]:
    """The GPUs of which somebody who lacks memory (and is of *tenant*) may borrow."""
    sessions = [turn.ledger.sessions[session_id] for session_id in _living_wants(turn)]
    homes = {one.home_gpu for one in sessions if tenant is None or one.tenant == tenant}
    to_itself = turn.books.settings.lend_to_own_gpu
    return {gpu for gpu in turn.ledger.gpus if to_itself or any(gpu != home for home in homes)}


def _shares(turn: Turn, parties: Sequence[Party]) -> dict[TenantName, int]:
    books = turn.books
    if books.shares is None:
        shares = fair_shares(_capacity_bytes(turn), parties)
        books.shares = in_whole_slabs(shares, parties, books.settings.smallest_slab_bytes)
    return books.shares


def _capacity_bytes(turn: Turn) -> int:
    """What there is to share: what is held, and what more may be within reach."""
    within_reach = _within_reach(turn)
    return sum(
        account.held_bytes + (_grantable_bytes(turn, account) if account.gpu in within_reach else 0)
        for account in turn.ledger.gpus.values()
    )


def _grantable_bytes(turn: Turn, account: GpuAccount) -> int:
    """What may be granted there in whole slabs."""
    smallest_bytes = turn.books.settings.smallest_slab_bytes
    return account.lendable_bytes // smallest_bytes * smallest_bytes


def _leases_of(turn: Turn, tenants: Iterable[TenantName]) -> dict[TenantName, list[Lease]]:
    found: dict[TenantName, list[Lease]] = {tenant: [] for tenant in tenants}
    for lease in turn.ledger.leases.values():
        of_tenant = found.get(lease.tenant)
        if of_tenant is not None:
            of_tenant.append(lease)
    return found


def _parties(turn: Turn) -> Iterator[Party]:
    """Everybody who has or wants something."""
    wanted: dict[TenantName, int] = {}
    for session_id in _living_wants(turn):
        tenant = turn.ledger.sessions[session_id].tenant
        wanted[tenant] = wanted.get(tenant, 0) + turn.books.wants[session_id].nbytes
    stuck = _stuck_bytes(turn, silent_sessions(turn))
    for tenant in dict.fromkeys(chain(turn.ledger.tenants, wanted)):
        account = turn.ledger.tenants.get(tenant) or TenantAccount()
        if account.held_bytes or tenant in wanted:
            yield Party(
                tenant=tenant,
                held_bytes=account.held_bytes,
                wanted_bytes=wanted.get(tenant, 0),
                stuck_bytes=stuck.get(tenant, 0),
                leaving_bytes=account.coming_bytes,
                weight=turn.books.weight_of(tenant) if owner_of(tenant) != tenant else 1.0,
                owner_weight=turn.books.weight_of(owner_of(tenant)),
            )


def _stuck_bytes(turn: Turn, silent: Iterable[SessionId]) -> dict[TenantName, int]:
    """What nobody is asked for by choice: what silent sessions hold and have not begun to return."""
    stuck: dict[TenantName, int] = {}
    for session_id in silent:
        for lease_id in turn.ledger.session_accounts[session_id].leases:
            lease = turn.ledger.leases[lease_id]
            if lease.state in _STAYING:
                stuck[lease.tenant] = stuck.get(lease.tenant, 0) + lease.nbytes
    return stuck


def _held_bytes(turn: Turn, tenant: TenantName) -> int:
    account = turn.ledger.tenants.get(tenant)
    return 0 if account is None else account.held_bytes


def _living_wants(turn: Turn) -> Iterator[SessionId]:
    for session_id, want in turn.books.wants.items():
        session = turn.ledger.sessions.get(session_id)
        is_there = session is not None and session.state is LIVE
        if is_there and turn.now - want.at < WANT_SECONDS:
            yield session_id
