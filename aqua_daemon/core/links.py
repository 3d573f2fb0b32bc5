"""How fast a borrower may expect to reach a lender: pure functions of links and of who shares them.

What was measured on this node (`scores`) goes before all that follows. Where nothing was, rates are
those that people measured, one way, in bytes per second (NVIDIA/nccl issues 1264 and 814, nvbandwidth
issue 50). Over PCIe a peer was 10 to 26 GB/s where the same host's memory was 20 to 53: never clearly
faster, and at worst half as fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from aqua_daemon.core.model import GpuLink, GpuUuid

# 18 links of an H100 were 375 GB/s; 25 GB/s each is what is printed on the box.
NVLINK_BYTES_PER_SECOND = 375e9 / 18
MOST_NVLINKS = 18  # of one GPU: who has more, counted over its peers, reaches them by a switch


def why_not_faster_than_host(link: GpuLink, *, may_use_pcie: bool) -> str:
    """Why memory behind *link*, which leads to the borrower, is no better than host memory."""
    if not link.has_peer_access:
        return f"{link.peer} has no peer access to it ({link.kind})"
    if link.kind != "NV" and not may_use_pcie:
        return f"{link.peer} reaches it over PCIe ({link.kind}), no faster than host memory"
    return ""


def expected_bytes_per_second(
    links: Mapping[GpuUuid, GpuLink],
    peer: GpuUuid | None,
    sharing: AbstractSet[GpuUuid | None],
) -> float:
    """What *peer* gets, one way, of a GPU with these *links*, which GPUs of *sharing* share.

    Of what leaves a lender for those that borrow there, or comes to a borrower from all who lend to it.
    Behind a switch all share it; links of its own a pair shares with nobody.
    0.0: nothing is known, as of stand-in GPUs, or it is no NVLink.
    """
    link = links.get(peer) if peer is not None else None
    if link is None or link.kind != "NV":
        return 0.0
    rate = link.count * NVLINK_BYTES_PER_SECOND
    return rate if _are_a_pairs_own(links) else rate / len(sharing | {peer})


def measured_bytes_per_second(
    worth: float,
    total: float,
    links: Mapping[GpuUuid, GpuLink],
    peer: GpuUuid | None,
    sharing: AbstractSet[GpuUuid | None],
) -> float:
    """The same where the pair was measured as *worth*, and all links at once as *total*, if they were.

    All at once carry less than the sum of each alone where they share more than can be seen, as an
    uplink over PCIe. Without *total*, links that are no pair's own are taken to share what one has;
    of stand-in GPUs nothing is known.
    """
    borrowers = len(sharing | {peer})
    if borrowers == 1:
        return worth
    if total:
        return min(worth, total / borrowers)
    return worth if not links or _are_a_pairs_own(links) else worth / borrowers


def _are_a_pairs_own(links: Mapping[GpuUuid, GpuLink]) -> bool:
    return 0 < sum(one.count for one in links.values()) <= MOST_NVLINKS
