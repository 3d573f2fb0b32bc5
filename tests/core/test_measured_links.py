"""Lenders by what their links were measured as: the traps of real nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.events import LinkProbeRequested
from aqua_daemon.core.instructions import AnswerLinkProbe
from aqua_daemon.core.link_figures import HOST
from aqua_daemon.core.links import measured_bytes_per_second
from aqua_daemon.core.model import GpuLink, GpuPair, GpuUuid, LinkRate
from tests.core.measuring import (
    GB,
    both_ways,
    each_alone,
    measure,
    refused,
)
from tests.core.test_links import PLENTY, bench_of, borrowed, hear, lender
from tests.fakes import topologies


def test_what_was_measured_beats_what_is_printed_on_the_box() -> None:
    """Nominally all are equal; whoever is measured as the fastest lends, while it has room."""
    bench, gpus = bench_of(topologies.four_h100(), **PLENTY)
    measure(bench, gpus, *both_ways((0, 1, 200.0), (0, 2, 261.0), (0, 3, 230.0)))
    found = borrowed(bench, bench.open(home=gpus[0]), gpus[0])
    assert list(dict.fromkeys(found)) == [gpus[2], gpus[3], gpus[1]]


def test_a_peer_slower_than_dram_is_never_chosen() -> None:
    """Six GPUs over PCIe with peer access on: 10 GB/s between them, 21 to the host (nccl#814).

    Not even where an operator has allowed PCIe; the refusal says both figures.
    """
    bench, gpus = bench_of(topologies.pcie_l40s(), lend_over_pcie=True)
    session = bench.open(home=gpus[0])
    bench.grant(session)  # before anything was measured it is the operator's word
    measure(bench, gpus, *each_alone(4, lambda source, target: 9.6 + 0.1 * (source + target)))
    measure(bench, gpus, *both_ways((0, "host", 21.0)))
    text = refused(bench, session)
    assert text.count("GB/s were measured to it, 21.0 to host memory") == 3


def test_nvlink_that_is_slower_than_dram_lends_nothing_either() -> None:
    """What is wrong with it does not matter."""
    bench, gpus = bench_of(topologies.four_h100())
    measure(bench, gpus, *both_ways((0, 1, 5.0), (0, 2, 5.0), (0, 3, 5.0), (0, "host", 50.0)))
    assert "were measured to it" in refused(bench, bench.open(home=gpus[0]))


def test_a_peer_over_pcie_that_is_faster_than_the_host_lends() -> None:
    """Measured, it needs no operator's word (PCIe 5 x16: 54 GB/s)."""
    bench, gpus = bench_of(topologies.pcie_l40s())
    session = bench.open(home=gpus[0])
    assert "over PCIe" in refused(bench, session)
    measure(bench, gpus, *both_ways((0, 1, 54.0), (0, "host", 35.0)))
    assert lender(bench, session) == gpus[1]


def test_what_can_not_be_mapped_does_not_lend_whatever_was_measured_of_it() -> None:
    """Peer access that is absent for some pairs only: such a link is not measured, nor believed."""
    bench, gpus = bench_of(topologies.mixed_models(), lend_over_pcie=True)
    pair = GpuPair(source=gpus[0], target=gpus[3])
    admin = bench.open("admin", home=None, pid=5, is_admin=True)
    request_id = bench.request_id()
    bench.handle(LinkProbeRequested(session_id=admin, request_id=request_id, pairs=(pair,)))
    [answer] = bench.the(AnswerLinkProbe)
    assert "no peer access (PHB)" in answer.outcomes[0].problem
    fast = LinkRate(latency_seconds=0.0, bytes_per_second=1000 * GB)
    slow = LinkRate(latency_seconds=0.0, bytes_per_second=GB)
    bench.broker = Broker(
        replace(bench.settings, restart_grace_seconds=0.0),
        now=bench.now,
        strict=True,
        links={pair: fast, GpuPair(source=HOST, target=gpus[3]): slow},
    )
    hear(bench, topologies.mixed_models(), gpus)
    session = bench.open(home=gpus[3])
    assert {lender(bench, session) for _ in range(3)} == {gpus[4]}


def test_the_slower_direction_counts() -> None:
    """What is parked comes back, too: 300 there and 100 back is worth less than 200 both ways."""
    bench, gpus = bench_of(topologies.four_h100())
    measure(bench, gpus, {(1, 0): 300.0}, {(0, 1): 100.0}, *both_ways((0, 2, 200.0), (0, 3, 90.0)))
    assert lender(bench, bench.open(home=gpus[0])) == gpus[2]


def test_a_direction_that_is_slower_than_dram_is_enough() -> None:
    """As one that falls to 11 GB/s while the other keeps 25 (nvbandwidth#53)."""
    bench, gpus = bench_of(topologies.pcie_l40s(), lend_over_pcie=True)
    measure(bench, gpus, {(1, 0): 25.0}, {(0, 1): 11.0}, *both_ways((0, "host", 20.0)))
    found = set(borrowed(bench, bench.open(home=gpus[0]), gpus[0]))
    assert found == {gpus[2], gpus[3]}  # which were not measured


def test_sums_far_below_their_parts_are_shared_by_all_who_borrow() -> None:
    """PCIe 5: a pair carries 54, all at once 0.44 of their sum; links of a pair's own all of it."""
    links = shared_uplink()
    borrowers = [GpuUuid(name) for name in "ABC"]

    def rates(worth: float, total: float) -> list[float]:
        return [
            measured_bytes_per_second(worth, total, links, borrowers[0], set(borrowers[:count]))
            for count in (1, 2, 3)
        ]

    assert rates(54.0, 0.44 * 3 * 54.0) == pytest.approx([54.0, 35.64, 23.76])
    assert rates(54.0, 3 * 54.0) == [54.0, 54.0, 54.0]
    assert rates(54.0, 0.0) == [54.0, 27.0, 18.0]  # not measured together: one uplink for all


def shared_uplink() -> dict[GpuUuid, GpuLink]:
    return {
        GpuUuid(name): GpuLink(peer=GpuUuid(name), kind="PIX", count=0, has_peer_access=True)
        for name in "ABC"
    }


def test_a_second_borrower_goes_where_no_uplink_is_shared() -> None:
    """The fastest lender has one uplink; a slower one alone is more than half of it."""
    bench, gpus = bench_of(topologies.pcie_l40s(), lend_over_pcie=True)
    alone = each_alone(4, lambda source, target: 54.0 if 2 in {source, target} else 45.0)
    measure(bench, gpus, *alone, {(2, 0): 20.0, (2, 1): 17.0, (2, 3): 17.0})
    first, second = bench.open("s1", home=gpus[0]), bench.open("s2", home=gpus[1], pid=12)
    assert lender(bench, first) == gpus[2]
    assert lender(bench, second) != gpus[2]


def test_what_comes_to_a_borrower_from_all_at_once_is_shared_by_its_lenders() -> None:
    """A sum that is its parts lets a second lender add to the first; one that is not does not."""
    for total, borrows_on in ((30.0, True), (125.0, False)):
        bench, gpus = bench_of(topologies.four_h100())
        measure(bench, gpus, *each_alone(4, lambda _source, _target: 125.0))
        measure(bench, gpus, {(1, 0): total, (2, 0): total, (3, 0): total})
        session = bench.open(home=gpus[0])
        assert (len({lender(bench, session) for _ in range(3)}) == 1) is borrows_on


def test_noise_is_no_reason_to_prefer_a_peer() -> None:
    """Figures within a tenth are equal: then the one with the most to lend, as ever."""
    bench, gpus = bench_of(topologies.four_h100())
    measure(bench, gpus, *both_ways((0, 1, 250.0), (0, 2, 251.0), (0, 3, 252.0)))
    session = bench.open(home=gpus[0])
    assert {lender(bench, session) for _ in range(3)} == set(gpus[1:])


def test_topology_is_for_what_was_not_measured_yet() -> None:
    """Beside a link that is measured as slower than the nominal rate of the others."""
    bench, gpus = bench_of(topologies.four_h100())
    measure(bench, gpus, *both_ways((0, 1, 90.0)))
    session = bench.open(home=gpus[0])
    assert gpus[1] not in {lender(bench, session) for _ in range(4)}
