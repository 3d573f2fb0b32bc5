"""Who is slow, and named; what a new daemon knows of it; what clients say, and may not."""

from __future__ import annotations

import pytest

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.events import LinksUsed
from aqua_daemon.core.link_figures import EVERY, LinkUse
from aqua_daemon.core.model import GpuPair, GpuUuid, LinkRate, SessionId
from aqua_daemon.core.scores import LinkScores
from aqua_daemon.core.sizes import MIB
from tests.core.bench import Bench
from tests.core.measuring import (
    GB,
    both_ways,
    each_alone,
    measure,
    warnings,
)
from tests.core.test_links import PLENTY, bench_of, borrowed, lender
from tests.fakes import topologies


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


def test_a_slow_gpu_among_many_does_not_make_its_peers_links_slow() -> None:
    """Of eight GPUs most links are quick: the slow one is named, and none of its fourteen links."""
    bench, gpus = bench_of(topologies.hgx_h100())
    measure(bench, gpus, *each_alone(8, lambda a, b: 250.0 if 3 in {a, b} else 375.0))
    [(gpu, words)] = warnings(bench).items()
    assert (gpu, len(words)) == (gpus[3], 1)
    assert words[0].startswith("its links are 1.5 times slower")


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


def test_what_is_measured_anew_is_believed() -> None:
    """What clients said of it was beside another figure."""
    bench, gpus = bench_of(topologies.four_h100())
    measure(bench, gpus, *both_ways((0, 1, 125.0), (0, 2, 100.0), (0, 3, 60.0)))
    session = bench.open(home=gpus[0])
    for _ in range(8):
        fetched(bench, session, gpus[1], 40.0)
        fetched(bench, session, gpus[2], 100.0)
    assert lender(bench, session) == gpus[2]
    measure(bench, gpus, {(1, 0): 125.0})
    assert lender(bench, bench.open("s2", home=gpus[0], pid=12)) == gpus[1]


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


def test_a_clients_word_halves_what_a_link_is_worth_at_most() -> None:
    """A lender that was measured as twice as fast as another is never taken for the slower one."""
    home, near, far = (GpuUuid(name) for name in ("home", "near", "far"))
    scores = LinkScores(gpus=(home, near, far))
    for peer in (near, far):
        rate = LinkRate(latency_seconds=1e-5, bytes_per_second=125.0 * GB)
        scores.note(GpuPair(source=peer, target=home), rate)
    measured = scores.worth(near, home)
    for seconds, peer in ((1000.0, near), (0.01, far)) * 50:
        scores.refine([LinkUse(lender=peer, fetches=1, nbytes=2**30, seconds=seconds)], home)
    assert scores.worth(far, home) == measured
    assert scores.worth(near, home) == pytest.approx(measured / 2, rel=0.1)


@pytest.mark.parametrize(
    "use",
    [
        LinkUse(lender=GpuUuid("GPU-1"), fetches=1, nbytes=2**30, seconds=9.0),
        LinkUse(lender=GpuUuid("host"), fetches=1, nbytes=2**30, seconds=9.0),
        LinkUse(lender=EVERY, fetches=1, nbytes=2**30, seconds=9.0),
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
    """Links that were not measured, ends that are no GPU's, few bytes, no time."""
    bench, gpus = bench_of(topologies.four_h100())
    alone = both_ways((0, 1, 125.0), (0, 2, 120.0), (0, 3, 60.0), (0, "host", 50.0))
    measure(bench, gpus, *alone, {(1, 0): 120.0, (2, 0): 115.0})
    session = bench.open(home=gpus[0])
    for _ in range(20):
        fetched(bench, session, gpus[2], 120.0)  # beside which a slow word of the other would count
        bench.handle(LinksUsed(session_id=session, uses=(use,)))
    assert lender(bench, session) == gpus[1]


def test_uses_of_sessions_that_are_gone_or_have_no_gpu_are_for_nobody() -> None:
    """Nothing is made of them."""
    bench, gpus = bench_of(topologies.four_h100())
    measure(bench, gpus, *both_ways((0, 1, 125.0), (0, 2, 120.0), (0, 3, 60.0)))
    at_home, homeless = bench.open(home=gpus[0]), bench.open("homeless", home=None, pid=12)
    for _ in range(20):
        fetched(bench, at_home, gpus[2], 120.0)
        fetched(bench, SessionId("gone"), gpus[1], 1.0)
        fetched(bench, homeless, gpus[1], 1.0)
    assert lender(bench, at_home) == gpus[1]
