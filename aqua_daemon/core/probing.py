"""Measuring links at an admin's wish: who may be measured now, who has answered, who never will.

One request at a time, for two would measure each other; the links of one request are measured at the
same time, on purpose. Keepers measure with memory of their own, for which the rules of a grant hold:
it never breaks a GPU's reserve nor a producer's limit, takes none that nobody offered where that is
the policy, drained or not, and a GPU that is left alone is left alone. A link that can't be
measured now says why in its place, so that the others are. A keeper that does not answer costs its
own figure and nothing else; what it says later is for nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aqua_daemon.core.accounts import GpuAccount
from aqua_daemon.core.books import Probe
from aqua_daemon.core.errors import InvalidRequest, Measuring
from aqua_daemon.core.events import LinkProbed, LinkProbeRequested, LinksUsed
from aqua_daemon.core.instructions import AnswerLinkProbe, ProbeLink
from aqua_daemon.core.link_figures import HOST, LinkOutcome, rate_of
from aqua_daemon.core.model import NEVER, OFFERED, GpuPair
from aqua_daemon.core.sizes import (
    LARGE_PROBE_SLABS,
    LARGEST_PROBE_BYTES,
    MIB,
    MOST_PROBE_PAIRS,
    MOST_PROBE_SIZES,
    PROBE_SECONDS,
    SMALL_PROBE_BYTES,
    SMALLEST_PROBE_BYTES,
)
from aqua_daemon.core.turn import Turn


def start(turn: Turn, event: LinkProbeRequested) -> None:
    """Have the keepers measure, each link of those that may be measured now."""
    session = turn.living_admin(event.session_id, "measure links")
    sizes = _sizes(turn, event)
    _check_pairs(turn, event)
    if turn.repeated(session, event.request_id):
        return
    if turn.books.probe is not None:
        raise Measuring("a link of this node is being measured: ask again in a few seconds")
    problems = {pair: _problem(turn, pair, event, sizes[-1]) for pair in event.pairs}
    turn.await_answer(event.session_id, event.request_id)
    turn.books.probe = Probe(
        session_id=event.session_id,
        request_id=event.request_id,
        pairs=event.pairs,
        outcomes={
            pair: LinkOutcome(pair=pair, problem=problem)
            for pair, problem in problems.items()
            if problem
        },
        ends_at=turn.now + PROBE_SECONDS,
    )
    measured = [pair for pair in event.pairs if not problems[pair]]
    for pair in measured:
        _promise(turn, pair, sizes[-1])
        turn.emit(
            ProbeLink(
                request_id=event.request_id,
                pair=pair,
                sizes=sizes,
                has_company=len(measured) > 1,
            )
        )
    _answer_if_over(turn)


def probed(turn: Turn, event: LinkProbed) -> None:
    """Take a keeper's word, unless it comes too late."""
    probe, pair = turn.books.probe, event.outcome.pair
    if probe is None or probe.request_id != event.request_id:
        return
    if pair not in probe.pairs or pair in probe.outcomes:
        return
    turn.books.probe = replace(probe, outcomes={**probe.outcomes, pair: event.outcome})
    _answer_if_over(turn)


def give_up_overdue(turn: Turn) -> None:
    """Wait no longer for keepers that have not answered in time."""
    probe = turn.books.probe
    if probe is None or turn.now < probe.ends_at:
        return
    late = f"no answer within {PROBE_SECONDS:g} s: its keeper hangs, or is busy"
    silent = {
        pair: LinkOutcome(pair=pair, problem=late)
        for pair in probe.pairs
        if pair not in probe.outcomes
    }
    turn.books.probe = replace(probe, outcomes={**probe.outcomes, **silent})
    _answer_if_over(turn)


def take_uses(turn: Turn, event: LinksUsed) -> None:
    """Refine what was measured by what a client says of its fetches."""
    session = turn.ledger.sessions.get(event.session_id)
    if session is not None and session.home_gpu is not None:
        turn.books.scores.refine(event.uses, session.home_gpu)


def _promise(turn: Turn, pair: GpuPair, nbytes: int) -> None:
    for gpu in (pair.source, pair.target):
        if gpu != HOST:
            turn.ledger.gpus[gpu].probe_bytes += nbytes


def _answer_if_over(turn: Turn) -> None:
    probe = turn.books.probe
    if probe is None or len(probe.outcomes) < len(probe.pairs):
        return
    turn.books.probe = None
    for account in turn.ledger.gpus.values():
        account.probe_bytes = 0
    outcomes = tuple(probe.outcomes[pair] for pair in probe.pairs)
    _note(turn, [outcome for outcome in outcomes if outcome.samples])
    turn.answer(
        AnswerLinkProbe(session_id=probe.session_id, request_id=probe.request_id, outcomes=outcomes)
    )


def _note(turn: Turn, measured: Sequence[LinkOutcome]) -> None:
    scores = turn.books.scores
    if len(measured) == 1:
        scores.note(measured[0].pair, rate_of(measured[0].samples))
        return
    if measured:
        carried = (one.samples[-1].nbytes / one.samples[-1].seconds for one in measured)
        scores.note_sum([one.pair for one in measured], sum(carried))


def _sizes(turn: Turn, event: LinkProbeRequested) -> tuple[int, ...]:
    largest = LARGE_PROBE_SLABS * turn.books.settings.smallest_slab_bytes
    sizes = tuple(sorted(set(event.sizes or (SMALL_PROBE_BYTES, largest))))
    if len(sizes) > MOST_PROBE_SIZES or not (
        sizes[0] >= SMALLEST_PROBE_BYTES and sizes[-1] <= LARGEST_PROBE_BYTES
    ):
        msg = (
            f"copies of {', '.join(map(str, sizes[:9]))} bytes: give at most {MOST_PROBE_SIZES} "
            f"sizes from {SMALLEST_PROBE_BYTES} to {LARGEST_PROBE_BYTES}"
        )
        raise InvalidRequest(msg)
    return sizes


def _check_pairs(turn: Turn, event: LinkProbeRequested) -> None:
    known = {*turn.ledger.gpus, HOST}
    for pair in event.pairs:
        if pair.source == pair.target or not {pair.source, pair.target} <= known:
            here = ", ".join(turn.ledger.gpus) or "none"
            msg = f"{pair} is no link of this node: give two of {here}, or `{HOST}` for one"
            raise InvalidRequest(msg)
    if not 0 < len(set(event.pairs)) == len(event.pairs) <= MOST_PROBE_PAIRS:
        msg = f"{len(event.pairs)} links: give 1 to {MOST_PROBE_PAIRS}, each once"
        raise InvalidRequest(msg)


def _problem(turn: Turn, pair: GpuPair, event: LinkProbeRequested, nbytes: int) -> str:
    """Why the link can't be measured now; else empty."""
    for gpu in (pair.source, pair.target):
        if gpu == HOST:
            continue
        uses = sum(gpu in {one.source, one.target} for one in event.pairs)
        problem = _gpu_problem(turn.ledger.gpus[gpu], uses * nbytes)
        if problem:
            return f"{gpu}: {problem}"
    return _access_problem(turn, pair)


def _gpu_problem(account: GpuAccount, nbytes: int) -> str:
    if account.no_grants_because or (account.waits_for and not account.is_drained):
        return account.no_grants_because or account.waits_for
    has_no_offer = account.policy is OFFERED and not account.offers
    if account.is_quiet or account.newcomer is not None or account.policy is NEVER or has_no_offer:
        return "it is left alone"
    if account.coming_bytes:
        return "memory is being taken back there"
    if account.limit_bytes is not None:
        offered = account.limit_bytes - account.held_bytes
        if offered < nbytes:
            return f"its producer lends {max(0, offered) // MIB} MiB, {nbytes / MIB:g} are needed"
    room = account.above_reserve_bytes
    if room < nbytes:
        return f"{max(0, room) // MIB} MiB are free above its reserve, {nbytes / MIB:g} are needed"
    return ""


def _access_problem(turn: Turn, pair: GpuPair) -> str:
    link = None if pair.target == HOST else turn.ledger.gpus[pair.target].links.get(pair.source)
    if link is not None and not link.has_peer_access:
        return f"no peer access ({link.kind})"
    return ""
