"""Measuring links: who may, what is refused and why, and that a keeper that hangs costs only its own."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import InvalidRequest, Measuring, NotPermitted
from aqua_daemon.core.events import (
    DrainRequested,
    KeeperDetached,
    LinkProbed,
    LinkProbeRequested,
    OfferMade,
    QuiesceRequested,
    SessionClosed,
)
from aqua_daemon.core.instructions import AnswerLinkProbe, ProbeLink
from aqua_daemon.core.link_figures import HOST, LinkOutcome, LinkSample, rate_of
from aqua_daemon.core.model import GpuPair, GpuUuid, LendingPolicy, LinkRate, SessionId
from aqua_daemon.core.sizes import MIB, PROBE_SECONDS
from tests.core.bench import FAR, GPU_BYTES, HOME, NEAR, Bench

GPUS = (HOME, NEAR, FAR)
OWNER = 20  # a pid
LARGE = 8 * MIB  # twice the smallest slab


def pair(source: GpuUuid = NEAR, target: GpuUuid = HOME) -> GpuPair:
    return GpuPair(source=source, target=target)


def samples(gigabytes_per_second: float, latency_seconds: float = 1e-5) -> tuple[LinkSample, ...]:
    """What a link of that speed shows."""
    return tuple(
        LinkSample(nbytes=nbytes, seconds=latency_seconds + nbytes / gigabytes_per_second / 1e9)
        for nbytes in (64 * 1024, LARGE)
    )


def started() -> tuple[Bench, SessionId]:
    bench = Bench(gpus=GPUS)
    return bench, bench.open("admin", home=None, pid=5, is_admin=True)


def ask(
    bench: Bench, admin: SessionId, *pairs: GpuPair, sizes: tuple[int, ...] = ()
) -> LinkProbeRequested:
    request = LinkProbeRequested(
        session_id=admin, request_id=bench.request_id(), pairs=pairs or (pair(),), sizes=sizes
    )
    bench.handle(request)
    return request


def answer(
    bench: Bench, request: LinkProbeRequested, of: GpuPair, gigabytes_per_second: float = 10.0
) -> None:
    outcome = LinkOutcome(pair=of, samples=samples(gigabytes_per_second))
    bench.handle(LinkProbed(request_id=request.request_id, outcome=outcome))


def outcomes(bench: Bench) -> tuple[LinkOutcome, ...]:
    [found] = bench.the(AnswerLinkProbe)
    return found.outcomes


def refusal(bench: Bench, admin: SessionId, *pairs: GpuPair) -> str:
    """Why the link can't be measured now."""
    ask(bench, admin, *pairs)
    assert not bench.the(ProbeLink)
    [outcome] = outcomes(bench)
    return outcome.problem


def drain(bench: Bench, admin: SessionId) -> None:
    bench.handle(
        DrainRequested(
            session_id=admin, request_id=bench.request_id(), gpus=(NEAR,), deadline_seconds=None
        )
    )


def offer(bench: Bench, owner: SessionId, nbytes: int) -> None:
    bench.handle(
        OfferMade(session_id=owner, request_id=bench.request_id(), gpu=NEAR, nbytes=nbytes)
    )


def test_a_link_is_measured_by_two_sizes_and_answered() -> None:
    """The order names both ends and the usual sizes; the answer has what the keeper said."""
    bench, admin = started()
    request = ask(bench, admin)
    [order] = bench.the(ProbeLink)
    assert (order.pair, order.sizes, order.has_company) == (pair(), (64 * 1024, LARGE), False)
    assert not bench.the(AnswerLinkProbe)
    answer(bench, request, pair())
    assert outcomes(bench) == (LinkOutcome(pair=pair(), samples=samples(10.0)),)


def test_two_sizes_tell_latency_and_bandwidth() -> None:
    """Noise that makes the small copy the longer one makes no figure that can't be."""
    found = rate_of(samples(20.0, latency_seconds=8e-6))
    assert found.bytes_per_second == pytest.approx(20e9)
    assert found.latency_seconds == pytest.approx(8e-6)
    noisy = (LinkSample(nbytes=64, seconds=2.0), LinkSample(nbytes=128, seconds=1.0))
    assert rate_of(noisy) == LinkRate(latency_seconds=0.0, bytes_per_second=128.0)
    assert rate_of(noisy[:1]).bytes_per_second == 32.0


def test_only_an_admin_may_measure() -> None:
    """It costs others bandwidth."""
    bench, _ = started()
    with pytest.raises(NotPermitted, match="only an admin may measure links"):
        ask(bench, bench.open("s1"))


@pytest.mark.parametrize(
    ("pairs", "sizes", "said"),
    [
        ((pair(GpuUuid("SHM-9")),), (), "SHM-9 to SHM-0 is no link of this node"),
        ((pair(HOME, HOME),), (), "is no link"),
        ((pair(HOST, HOST),), (), "is no link"),
        ((pair(), pair()), (), "each once"),
        (tuple(pair() for _ in range(40)), (), "1 to 32"),
        ((pair(),), (1,), "sizes from 4096"),
        ((pair(),), (2**40,), "to 268435456"),
        ((pair(),), tuple(4096 * n for n in range(1, 10)), "at most 8"),
    ],
)
def test_what_is_no_measurement_is_refused(
    pairs: tuple[GpuPair, ...], sizes: tuple[int, ...], said: str
) -> None:
    """With what may be asked; nothing is ordered."""
    bench, admin = started()
    with pytest.raises(InvalidRequest, match=said):
        ask(bench, admin, *pairs, sizes=sizes)


def test_one_measurement_at_a_time() -> None:
    """A second one would measure the first; when that is over it may be asked again."""
    bench, admin = started()
    request = ask(bench, admin)
    with pytest.raises(Measuring, match="ask again in a few seconds"):
        ask(bench, admin)
    answer(bench, request, pair())
    ask(bench, admin)
    assert bench.the(ProbeLink)


def test_a_repeated_request_is_one_measurement() -> None:
    """Under way it joins, afterwards it gets the same answer."""
    bench, admin = started()
    request = ask(bench, admin)
    bench.handle(request)
    assert not bench.last
    answer(bench, request, pair())
    first = outcomes(bench)
    bench.handle(request)
    assert outcomes(bench) == first


def test_a_keeper_that_hangs_costs_its_own_figure_and_nothing_else() -> None:
    """The others' figures are there, what it says later is for nobody, and the next may be asked."""
    bench, admin = started()
    slow, quick = pair(NEAR), pair(FAR)
    request = ask(bench, admin, slow, quick)
    answer(bench, request, quick)
    bench.tick(PROBE_SECONDS + 0.2)
    assert [(one.pair, bool(one.samples)) for one in outcomes(bench)] == [
        (slow, False),
        (quick, True),
    ]
    assert "no answer within 4 s" in outcomes(bench)[0].problem
    again = ask(bench, admin)
    answer(bench, request, slow)
    assert not bench.last
    answer(bench, again, pair())
    assert outcomes(bench)[0].samples


def test_a_gpu_that_is_left_alone_is_left_alone() -> None:
    """Whoever asked for that; the link says why in its place."""
    bench, admin = started()
    quiesce = QuiesceRequested(
        session_id=admin, request_id=bench.request_id(), gpu=NEAR, seconds=60.0
    )
    bench.handle(quiesce)
    assert refusal(bench, admin) == "SHM-1: it is quiesced"


def test_a_drained_gpu_may_be_measured_unless_it_is_left_alone() -> None:
    """Nothing is lent there, so nobody is disturbed; but a quiet GPU is quiet all the same."""
    bench, admin = started()
    drain(bench, admin)
    answer(bench, ask(bench, admin), pair())
    assert outcomes(bench)[0].samples
    bench.handle(
        QuiesceRequested(session_id=admin, request_id=bench.request_id(), gpu=NEAR, seconds=60.0)
    )
    assert refusal(bench, admin) == "SHM-1: it is left alone"


@pytest.mark.parametrize("is_drained", [False, True])
def test_memory_that_nobody_offered_is_not_measured_with(*, is_drained: bool) -> None:
    """Its owner may need it at once; a drain takes what is lent away, and offers nothing."""
    bench = Bench(gpus=GPUS, lending=LendingPolicy.OFFERED)
    admin, owner = (
        bench.open("admin", home=None, pid=5, is_admin=True),
        bench.open("owner", pid=OWNER),
    )
    bench.report(NEAR, {OWNER: MIB})
    if is_drained:
        drain(bench, admin)
    assert refusal(bench, admin, pair(NEAR, HOST)).startswith("SHM-1: ")
    offer(bench, owner, LARGE)
    answer(bench, ask(bench, admin, pair(NEAR, HOST)), pair(NEAR, HOST))
    assert outcomes(bench)[0].samples


def test_a_measurement_takes_no_more_than_a_producer_lends() -> None:
    """What the producer keeps for itself is kept from measurements, too."""
    bench, admin = started()
    owner = bench.open("owner", pid=OWNER)
    bench.report(NEAR, {OWNER: MIB})
    offer(bench, owner, LARGE - MIB)
    assert refusal(bench, admin) == "SHM-1: its producer lends 7 MiB, 8 are needed"
    offer(bench, owner, LARGE)
    ask(bench, admin)
    assert bench.the(ProbeLink)


def test_a_gpu_without_a_keeper_says_so() -> None:
    """In the words of its trouble."""
    bench, admin = started()
    bench.handle(KeeperDetached(gpus=(NEAR,)))
    assert refusal(bench, admin) == "SHM-1: the link to its keeper is broken"


def test_memory_that_is_being_taken_back_is_not_disturbed() -> None:
    """Its owner waits for it."""
    bench, admin = started()
    bench.grant(bench.open("s1"))
    lender = bench.snapshot.leases[0].lender
    bench.report(lender, {99: GPU_BYTES - 40 * MIB})
    assert bench.gpu(lender).lent_bytes
    ask(bench, admin, pair(lender))
    [outcome] = outcomes(bench)
    assert "memory is being taken back there" in outcome.problem


def test_a_measurement_never_breaks_a_reserve() -> None:
    """Nor does a grant while it lasts: what it may use is promised, and free again afterwards."""
    bench, admin = started()
    bench.report(NEAR, {99: GPU_BYTES - 40 * MIB})
    assert "1 MiB are free above its reserve, 8 are needed" in refusal(bench, admin)
    bench.report(NEAR, {99: 100 * MIB})
    before = bench.gpu(NEAR).lendable_bytes
    request = ask(bench, admin)
    assert bench.gpu(NEAR).lendable_bytes == before - LARGE
    answer(bench, request, pair())
    assert bench.gpu(NEAR).lendable_bytes == before


def test_links_of_one_gpu_at_once_need_memory_for_each() -> None:
    """It is looked for, and promised, as often as the GPU is an end."""
    bench, admin = started()
    of_near = (pair(NEAR, HOME), pair(NEAR, FAR))
    bench.report(NEAR, {99: GPU_BYTES - 52 * MIB})
    ask(bench, admin, *of_near)
    assert [one.problem for one in outcomes(bench)] == [
        "SHM-1: 13 MiB are free above its reserve, 16 are needed"
    ] * 2
    bench.report(NEAR, {99: 100 * MIB})
    before = bench.gpu(NEAR).lendable_bytes
    ask(bench, admin, *of_near)
    assert bench.gpu(NEAR).lendable_bytes == before - 2 * LARGE


def test_host_memory_stands_at_either_end() -> None:
    """What is measured to it is one GPU's affair."""
    bench, admin = started()
    for of in (pair(HOST, HOME), pair(HOME, HOST)):
        request = ask(bench, admin, of)
        [order] = bench.the(ProbeLink)
        assert order.pair == of
        answer(bench, request, of)


def test_a_session_that_ends_leaves_no_measurement_behind() -> None:
    """The next admin is not told to wait for it."""
    bench, admin = started()
    request = ask(bench, admin)
    bench.handle(SessionClosed(session_id=admin))
    answer(bench, request, pair())
    other = bench.open("other", home=None, pid=6, is_admin=True)
    ask(bench, other)
    assert bench.the(ProbeLink)
