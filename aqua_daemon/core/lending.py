"""What of a GPU is lent: its policy, what its processes let go a moment ago, and new processes.

Story of a newcomer: a process appears on a GPU, where it has yet to find out how much memory it may
have. All that is lent there is asked back at once and freed as it comes; then the GPU is quiet
until what its processes use has not changed for a while; then it lends again. What is quarantined
meanwhile is not waited for: it comes when it comes. Who comes while the GPU is quiet, because
somebody asked for that, is no newcomer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter

from aqua_daemon.core.accounts import GpuAccount, Newcomer
from aqua_daemon.core.model import (
    AUTO,
    QUARANTINED,
    BrokerSettings,
    GpuReport,
)
from aqua_daemon.core.quiescing import resume, take_all_back
from aqua_daemon.core.sizes import LONGEST_QUIESCE_SECONDS, MIB, SAME_USE_BYTES
from aqua_daemon.core.turn import Turn


def learn(turn: Turn, account: GpuAccount, said: GpuReport) -> None:
    """Take over a keeper's report, and see what it says of the GPU's own processes."""
    known_before = account.total_bytes is not None
    owners, used_bytes = account.owner_bytes, account.others_bytes
    settings = turn.books.settings
    account.policy = settings.lending_of.get(account.gpu, settings.lending)
    account.learn(said)
    if account.trouble:
        return
    if not known_before:
        return  # who was there before this daemon is no newcomer, and what it let go is unknown
    _note_past_use(account, used_bytes, turn.now)
    _note_growth(account, owners)
    if _sees_newcomers(settings, account) and account.owner_bytes.keys() - owners.keys():
        account.newcomer = Newcomer(since=turn.now, changed_at=turn.now)
        take_all_back(turn, account)
    elif account.newcomer is not None and abs(account.others_bytes - used_bytes) >= SAME_USE_BYTES:
        account.newcomer = replace(account.newcomer, changed_at=turn.now)


def settle(turn: Turn, account: GpuAccount) -> None:
    """Look at what time has settled: memory that was let go, and a process that came."""
    _forget_past_uses(account, turn.now - turn.books.settings.settle_seconds)
    highest = account.past_uses[0][1] if account.past_uses else account.others_bytes
    is_auto = account.policy is AUTO
    account.unsettled_bytes = max(0, highest - account.others_bytes) if is_auto else 0
    if account.newcomer is not None:
        _settle_newcomer(turn, account, account.newcomer)


def outgrown(account: GpuAccount) -> tuple[str, ...]:
    """The warning that an owner grows faster than the reserve can answer; empty if none does."""
    if not account.outgrown or account.policy is not AUTO:
        return ()
    pid, nbytes = max(account.outgrown.items(), key=itemgetter(1))
    warning = (
        f"its process {pid} grew by {nbytes / MIB:.0f} MiB at once, more than the reserve of "
        f"{account.reserve_bytes / MIB:.0f} MiB: lending `offered` suits it better"
    )
    return (warning,)


def _sees_newcomers(settings: BrokerSettings, account: GpuAccount) -> bool:
    # Where a GPU lends to its own processes, each borrower's context would be a newcomer. Where it
    # is quiet, somebody has made way already for who comes: it measures, and nothing may change.
    is_seen = settings.newcomer_seconds > 0 and not settings.lend_to_own_gpu
    return is_seen and not account.quiets


def _note_growth(account: GpuAccount, before: Mapping[int, int]) -> None:
    for pid in account.outgrown.keys() - account.owner_bytes:
        del account.outgrown[pid]
    if account.limits:
        return  # a producer speaks for the GPU, and asks for its memory before it grows
    # Of processes that were there: contexts, the keeper's among them, come at once by nature.
    for pid in account.owner_bytes.keys() & before:
        growth_bytes = account.owner_bytes[pid] - before[pid]
        if growth_bytes > account.reserve_bytes:
            account.outgrown[pid] = max(account.outgrown.get(pid, 0), growth_bytes)


def _note_past_use(account: GpuAccount, used_bytes: int, until: float) -> None:
    # What was lower, and before that, can't be the highest any more: the first always is.
    while account.past_uses and account.past_uses[-1][1] <= used_bytes:
        account.past_uses.pop()
    account.past_uses.append((until, used_bytes))


def _forget_past_uses(account: GpuAccount, until: float) -> None:
    while account.past_uses and account.past_uses[0][0] <= until:
        account.past_uses.popleft()


def _settle_newcomer(turn: Turn, account: GpuAccount, newcomer: Newcomer) -> None:
    if not newcomer.is_alone:
        quarantined_bytes = account.bytes_in[QUARANTINED]
        if account.held_bytes > quarantined_bytes and not _has_lasted(turn, newcomer):
            return
        newcomer = replace(newcomer, is_alone=True, changed_at=turn.now)
        account.newcomer = newcomer
    quiet_seconds = turn.now - newcomer.changed_at
    if quiet_seconds >= turn.books.settings.newcomer_seconds or _has_lasted(turn, newcomer):
        account.newcomer = None
        resume(turn, account)


def _has_lasted(turn: Turn, newcomer: Newcomer) -> bool:
    return turn.now - newcomer.since >= LONGEST_QUIESCE_SECONDS
