"""How fast each lender may be reached from a borrower's GPU: measured where it was, else expected.

A link that was measured goes before the nominal one, for better and for worse: a peer over PCIe that
is faster than host memory lends, one over NVLink that is not does not. What can't be mapped never does.
"""

from __future__ import annotations

from collections.abc import Iterable

from aqua_daemon.core.accounts import GpuAccount
from aqua_daemon.core.links import (
    expected_bytes_per_second,
    measured_bytes_per_second,
    why_not_faster_than_host,
)
from aqua_daemon.core.model import GpuUuid
from aqua_daemon.core.placement import Lender
from aqua_daemon.core.scores import LinkScores
from aqua_daemon.core.turn import Turn


def rate(turn: Turn, lenders: Iterable[Lender], home: GpuUuid) -> None:
    """Say it of each, as far as anything is known of links."""
    accounts, may_use_pcie = turn.ledger.gpus, turn.books.settings.lend_over_pcie
    to_home = accounts[home].links if home in accounts else {}
    scores = turn.books.scores
    is_known = bool(to_home or scores.rates)
    lending = {one.gpu for one in accounts.values() if home in one.borrowers} if is_known else set()
    for lender in lenders:
        account = accounts[lender.gpu]
        to_lender = account.links.get(home)
        if to_lender is not None:
            lender.too_slow = why_not_faster_than_host(to_lender, may_use_pcie=may_use_pcie)
        if worth := scores.worth(lender.gpu, home):
            _judge_measured(scores, lender, account, home)
            lender.egress_bytes_per_second = measured_bytes_per_second(
                worth, scores.sent(lender.gpu), account.links, home, account.borrowers.keys()
            )
            lender.ingress_bytes_per_second = measured_bytes_per_second(
                worth, scores.taken(home), to_home, lender.gpu, lending
            )
            continue
        if to_lender is not None:
            lender.egress_bytes_per_second = expected_bytes_per_second(
                account.links, home, account.borrowers.keys()
            )
        if to_home:
            lender.ingress_bytes_per_second = expected_bytes_per_second(
                to_home, lender.gpu, lending
            )


def _judge_measured(scores: LinkScores, lender: Lender, account: GpuAccount, home: GpuUuid) -> None:
    lender.is_slow = scores.is_slow(lender.gpu, home)
    why, to_lender = scores.why_slower_than_host(lender.gpu, home), account.links.get(home)
    if why is not None and (to_lender is None or to_lender.has_peer_access):
        lender.too_slow = why
