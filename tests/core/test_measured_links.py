"""Lenders by what their links were measured as: the traps of real nodes, who is slow, what is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.events import LinkProbed, LinkProbeRequested, LinksUsed
from aqua_daemon.core.instructions import AnswerLinkProbe
from aqua_daemon.core.link_figures import EVERY, HOST, LinkOutcome, LinkSample, LinkUse
from aqua_daemon.core.links import measured_bytes_per_second
from aqua_daemon.core.model import GpuLink, GpuPair, GpuUuid, LinkRate, SessionId
from aqua_daemon.core.scores import LinkScores
from aqua_daemon.core.sizes import MIB
from tests.core.bench import Bench
from tests.core.test_links import PLENTY, bench_of, borrowed, hear, lender
from tests.fakes import topologies

GB = 1e9
Figures = Mapping[tuple[int | str, int | str], float]  # ends of links, by index or name: GB/s


def outcome(pair: GpuPair, gigabytes_per_second: float) -> LinkOutcome:
    samples = tuple(
        LinkSample(nbytes=nbytes, seconds=nbytes / gigabytes_per_second / GB)
        for nbytes in (MIB, 8 * MIB)
    )
    return LinkOutcome(pair=pair, samples=samples)


def measure(bench: Bench, gpus: list[GpuUuid], *figures: Figures) -> None:
    """An admin measures: each of *figures* is one request, of links at the same time."""
    admin = bench.open(f"admin-{bench.count}", home=None, pid=5, is_admin=True)
    for together in figures:
        rates = {
            GpuPair(source=named(gpus, source), target=named(gpus, target)): rate
            for (source, target), rate in together.items()
        }
        request = LinkProbeRequested(
            session_id=admin, request_id=bench.request_id(), pairs=tuple(rates)
        )
        bench.handle(request)
        for pair, rate in rates.items():
            told = LinkProbed(request_id=request.request_id, outcome=outcome(pair, rate))
            bench.handle(told)


def named(gpus: list[GpuUuid], end: int | str) -> GpuUuid:
    return gpus[end] if isinstance(end, int) else GpuUuid(end)


def each_alone(count: int, rate: Callable[[int, int], float]) -> list[Figures]:
    """Every pair of so many GPUs, one after the other."""
    return [
        {(source, target): rate(source, target)}
        for source in range(count)
        for target in range(count)
        if source != target
    ]


def both_ways(*links: tuple[int | str, int | str, float]) -> list[Figures]:
    return [one for a, b, rate in links for one in ({(a, b): rate}, {(b, a): rate})]


def refused(bench: Bench, session: SessionId) -> str:
    with pytest.raises(InsufficientMemory) as caught:
        bench.ask(session)
    return str(caught.value)


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


def warnings(bench: Bench) -> dict[GpuUuid, tuple[str, ...]]:
    return {gpu.gpu: gpu.warnings for gpu in bench.snapshot.gpus if gpu.warnings}


def test_a_slow_gpu_lends_last_and_is_named_once() -> None:
    """1.25 times slower than the median GPU; not each of its links, and not its peers."""
    bench, gpus = bench_of(topologies.hgx_h100(gpus=4), **PLENTY)
    measure(bench, gpus, *each_alone(4, lambda a, b: 300.0 if 3 in {a, b} else 375.0))
    [(gpu, (warning,))] = warnings(bench).items()
    assert gpu == gpus[3]
    assert warning.startswith(
        "its links are 1.2 times slower than the node's median, 300.0 of 375.0"
    )
    slow = {(one.pair.source, one.pair.target) for one in bench.snapshot.links if one.slow}
    assert slow == {(a, b) for a in gpus for b in gpus if a != b and gpus[3] in {a, b}}
    found = borrowed(bench, bench.open(home=gpus[0]), gpus[0])
    assert found[-1] == gpus[3]  # it is not forbidden: when all others are full it lends
    assert found.index(gpus[3]) == len(found) - found.count(gpus[3])


def test_a_slow_gpu_lends_after_those_that_are_shared() -> None:
    """Half of a good link would be less than all of a slow one; it is avoided all the same."""
    bench, gpus = bench_of(topologies.hgx_h100(gpus=3))
    measure(bench, gpus, *each_alone(3, lambda a, b: 300.0 if 2 in {a, b} else 375.0))
    others = bench.open("others", home=gpus[2], pid=12)
    while lender(bench, others) != gpus[1]:
        pass
    assert lender(bench, bench.open(home=gpus[0])) == gpus[1]


def test_a_slow_link_is_avoided_between_its_two_ends_only() -> None:
    """Both GPUs lend to the others as ever; the source of each direction is named with it."""
    bench, gpus = bench_of(topologies.hgx_h100(), **PLENTY)
    measure(bench, gpus, *each_alone(8, lambda a, b: 250.0 if {a, b} == {0, 1} else 375.0))
    assert set(warnings(bench)) == {gpus[0], gpus[1]}
    assert f"its link to {gpus[1]} is 1.5 times slower" in warnings(bench)[gpus[0]][0]
    found = borrowed(bench, bench.open(home=gpus[0]), gpus[0])
    assert found.index(gpus[1]) == len(found) - found.count(gpus[1])
    assert lender(bench, bench.open("s2", home=gpus[2], pid=12)) in {gpus[0], gpus[1]}


@pytest.mark.parametrize(
    ("rates", "slow"),
    [
        ([100.0, 100.0, 100.0, 100.0, 84.0, 100.0], []),
        ([100.0, 100.0, 100.0, 100.0, 83.0, 100.0], [4]),
        ([100.0] * 6, []),
        ([50.0, 100.0, 100.0, 100.0, 100.0, 100.0], [0]),
    ],
)
def test_a_link_is_slow_from_1_2_times_on(rates: list[float], slow: list[int]) -> None:
    """Of three GPUs: measured against the median link."""
    names = [GpuUuid(name) for name in "ABC"]
    pairs = [GpuPair(source=a, target=b) for a in names for b in names if a != b]
    scores = LinkScores(
        {
            pair: LinkRate(latency_seconds=0.0, bytes_per_second=rate * GB)
            for pair, rate in zip(pairs, rates, strict=True)
        },
        gpus=names,
    )
    assert list(scores.slow_links) == [pairs[at] for at in slow]


def test_a_new_daemon_knows_what_was_measured() -> None:
    """Of the GPUs that are here; those that are gone count in no median."""
    bench, gpus = bench_of(topologies.hgx_h100(gpus=4))
    measure(bench, gpus, *each_alone(4, lambda a, b: 300.0 if 3 in {a, b} else 375.0))
    measure(bench, gpus, {(0, 1): 100.0, (0, 2): 100.0})
    kept = {one.pair: one.rate for one in bench.snapshot.links}
    assert GpuPair(source=gpus[0], target=EVERY) in kept
    before = warnings(bench)
    bench.broker = Broker(bench.settings, now=bench.now, strict=True, links=kept)
    assert warnings(bench) == before
    assert {one.pair: one.rate for one in bench.snapshot.links} == kept
    gone = GpuUuid("GPU-of-last-year")
    more = {**kept, GpuPair(source=gone, target=gpus[0]): next(iter(kept.values()))}
    bench.broker = Broker(bench.settings, now=bench.now, strict=True, links=more)
    assert {one.pair: one.rate for one in bench.snapshot.links} == kept


def fetched(bench: Bench, session: SessionId, lender_gpu: GpuUuid, gigabytes: float) -> None:
    """A client says that a gigabyte came from there in a second divided by *gigabytes*."""
    use = LinkUse(lender=lender_gpu, fetches=10, nbytes=10**9, seconds=1.0 / gigabytes)
    bench.handle(LinksUsed(session_id=session, uses=(use,)))


def test_real_transfers_refine_what_was_measured() -> None:
    """Of two that were measured alike the one from which fetches come faster lends."""
    bench, gpus = bench_of(topologies.four_h100())
    measure(bench, gpus, *both_ways((0, 1, 125.0), (0, 2, 125.0), (0, 3, 60.0)))
    session = bench.open(home=gpus[0])
    for _ in range(8):
        fetched(bench, session, gpus[1], 80.0)
        fetched(bench, session, gpus[2], 115.0)
    assert [lender(bench, session) for _ in range(3)] == [gpus[2]] * 3
    for _ in range(30):  # what was said last weighs most
        fetched(bench, session, gpus[1], 120.0)
        fetched(bench, session, gpus[2], 70.0)
    assert [lender(bench, session) for _ in range(3)] == [gpus[1]] * 3


def test_a_clients_word_is_bounded_and_names_nobody() -> None:
    """However slow it says that a lender is: it is worth half at least, forbidden and slow never."""
    bench, gpus = bench_of(topologies.four_h100(), **PLENTY)
    alone = both_ways((0, 1, 125.0), (0, 2, 125.0), (0, 3, 60.0), (0, "host", 50.0))
    measure(bench, gpus, *alone)
    before = (warnings(bench), bench.snapshot.links)
    session = bench.open(home=gpus[0])
    for _ in range(50):
        fetched(bench, session, gpus[1], 0.001)
        fetched(bench, session, gpus[2], 125.0)
    assert (warnings(bench), bench.snapshot.links) == before
    found = borrowed(bench, session, gpus[0])
    assert list(dict.fromkeys(found)) == [gpus[2], gpus[1], gpus[3]]


@pytest.mark.parametrize(
    "use",
    [
        LinkUse(lender=GpuUuid("GPU-1"), fetches=1, nbytes=2**30, seconds=9.0),
        LinkUse(lender=GpuUuid("host"), fetches=1, nbytes=2**30, seconds=9.0),
        LinkUse(
            lender=GpuUuid(topologies.four_h100().gpus[1].uuid), fetches=1, nbytes=MIB, seconds=9.0
        ),
        LinkUse(
            lender=GpuUuid(topologies.four_h100().gpus[1].uuid),
            fetches=0,
            nbytes=2**30,
            seconds=9.0,
        ),
        LinkUse(
            lender=GpuUuid(topologies.four_h100().gpus[1].uuid),
            fetches=1,
            nbytes=2**30,
            seconds=0.0,
        ),
        LinkUse(
            lender=GpuUuid(topologies.four_h100().gpus[1].uuid),
            fetches=1,
            nbytes=-(2**30),
            seconds=9.0,
        ),
    ],
)
def test_what_says_nothing_of_a_link_changes_nothing(use: LinkUse) -> None:
    """Links that were not measured, few bytes, no time."""
    bench, gpus = bench_of(topologies.four_h100())
    measure(bench, gpus, *both_ways((0, 1, 125.0), (0, 2, 120.0), (0, 3, 60.0)))
    session = bench.open(home=gpus[0])
    for _ in range(20):
        bench.handle(LinksUsed(session_id=session, uses=(use,)))
    assert lender(bench, session) == gpus[1]


def test_uses_of_sessions_that_are_gone_or_have_no_gpu_are_for_nobody() -> None:
    """Nothing is made of them."""
    bench, gpus = bench_of(topologies.four_h100())
    measure(bench, gpus, *both_ways((0, 1, 125.0)))
    fetched(bench, SessionId("gone"), gpus[1], 1.0)
    fetched(bench, bench.open(home=None), gpus[1], 1.0)
