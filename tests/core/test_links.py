"""Lenders by link, on nodes as people measured them: who is chosen, who never, and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.events import GpuReported
from aqua_daemon.core.links import expected_bytes_per_second, why_not_faster_than_host
from aqua_daemon.core.model import GpuLink, GpuReport, GpuUuid, SessionId
from aqua_daemon.core.sizes import MIB
from tests.core.bench import GPU_BYTES, SLAB, Bench
from tests.fakes import topologies
from tests.fakes.fake_cuda.description import NodeDescription

# So that nothing but GPUs ends what is granted.
PLENTY = dict.fromkeys(("host_pool_bytes", "tenant_host_bytes", "tenant_quota_bytes"), 2**40)


def links_of(node: NodeDescription, index: int) -> tuple[GpuLink, ...]:
    """What the keeper of one GPU of a recorded node says."""
    return tuple(
        GpuLink(
            peer=GpuUuid(peer.uuid),
            kind="NV" if kind.startswith("NV") else kind,
            count=int(kind[2:]) if kind.startswith("NV") else 0,
            has_peer_access=node.peers[index][other] == "OK",
        )
        for other, (peer, kind) in enumerate(zip(node.gpus, node.links[index], strict=True))
        if other != index
    )


def bench_of(node: NodeDescription, **settings: object) -> tuple[Bench, list[GpuUuid]]:
    """A broker that has heard every keeper of a recorded node; each GPU is of one size."""
    gpus = [GpuUuid(gpu.uuid) for gpu in node.gpus]
    bench = Bench(gpus=tuple(gpus), **settings)  # type: ignore[arg-type]  # tests say which
    hear(bench, node, gpus)
    return bench, gpus


def hear(bench: Bench, node: NodeDescription, gpus: list[GpuUuid]) -> None:
    """Each keeper attaches and reports."""
    bench.attach(*gpus)
    for index, gpu in enumerate(gpus):
        report = GpuReport(
            gpu=gpu,
            total_bytes=GPU_BYTES,
            slab_bytes={},
            owner_bytes={},
            links=links_of(node, index),
        )
        bench.handle(GpuReported(report=report))


def lender(bench: Bench, session: SessionId) -> GpuUuid:
    return bench.lease(bench.grant(session)).lender


def refusal(node: NodeDescription) -> str:
    """Why the first GPU of a node gets nothing."""
    bench, gpus = bench_of(node)
    session = bench.open(home=gpus[0])
    with pytest.raises(InsufficientMemory) as caught:
        bench.ask(session)
    return str(caught.value)


@pytest.mark.parametrize("node", [topologies.hgx_h100(), topologies.dgx_a100()])
def test_behind_a_switch_borrowers_of_several_gpus_get_lenders_of_their_own(
    node: NodeDescription,
) -> None:
    """Two that share a lender share all that leaves it; eight GPUs are enough for four and four."""
    bench, gpus = bench_of(node)
    sessions = [bench.open(f"s{n}", home=gpus[n], pid=20 + n) for n in range(4)]
    chosen = [lender(bench, session) for session in sessions]
    assert len(set(chosen)) == 4
    again = [lender(bench, session) for session in sessions]
    assert all(gpu not in chosen[:at] + chosen[at + 1 :] for at, gpu in enumerate(again))


def test_the_sums_are_shared_behind_a_switch_and_not_on_links_of_a_pairs_own() -> None:
    """Sums far below their parts: two borrowers get a half each, unless each has its own links."""
    near, far, lender_gpu = GpuUuid("A"), GpuUuid("B"), GpuUuid("L")

    def rates(count: int, peers: int) -> list[float]:
        links = {
            GpuUuid(name): GpuLink(peer=GpuUuid(name), kind="NV", count=count, has_peer_access=True)
            for name in "ABCDEFG"[:peers]
        }
        return [
            expected_bytes_per_second(links, near, borrowing) / 1e9
            for borrowing in (set(), {near}, {far}, {near, far, lender_gpu})
        ]

    assert rates(18, 7) == pytest.approx([375, 375, 187.5, 125])
    assert rates(6, 3) == pytest.approx([125, 125, 125, 125])


def borrowed(bench: Bench, session: SessionId, home: GpuUuid) -> list[GpuUuid]:
    """Whom a session gets slabs of, one after the other, until nobody lends any more."""
    found: list[GpuUuid] = []
    while True:
        try:
            found.append(lender(bench, session))
        except InsufficientMemory:
            assert home not in found
            return found


@pytest.mark.parametrize("recorded", topologies.EVERY)
def test_who_is_never_faster_than_the_host_never_lends_on_any_node(
    recorded: Callable[[], NodeDescription],
) -> None:
    """For each GPU all that is lent comes over NVLink from peers that it can map, all of these in turn."""
    node = recorded()
    for at in range(len(node.gpus)):
        bench, gpus = bench_of(node, **PLENTY)
        found = set(borrowed(bench, bench.open(home=gpus[at]), gpus[at]))
        assert found == {
            gpus[link_at]
            for link_at, kind in enumerate(node.links[at])
            if kind.startswith("NV") and node.peers[at][link_at] == "OK"
        }


@pytest.mark.parametrize("recorded", topologies.EVERY)
def test_each_borrower_has_lenders_of_its_own_while_there_are_enough_on_any_node(
    recorded: Callable[[], NodeDescription],
) -> None:
    """Half the GPUs borrow as much as one lends: behind a switch no lender's egress is shared."""
    node = recorded()
    bench, gpus = bench_of(node)
    sessions = [bench.open(f"s{at}", home=gpus[at], pid=20 + at) for at in range(len(gpus) // 2)]
    chosen: dict[SessionId, set[GpuUuid]] = {session: set() for session in sessions}
    try:
        for session in sessions * 3:
            chosen[session].add(lender(bench, session))
    except InsufficientMemory:
        assert not any(chosen.values())  # nobody can lend there: see above
        return
    if node.nvswitch:
        assert [len(found) for found in chosen.values()] == [1] * len(sessions)
        assert len(set.union(*chosen.values())) == len(sessions)


def test_what_comes_to_a_borrower_is_shared_by_all_who_lend_to_it() -> None:
    """One lender fills its links: it borrows on there, and none of others' egress, until that is full.

    Where each pair has links of its own, a second lender is as good as the first.
    """
    bench, gpus = bench_of(topologies.hgx_h100(), **PLENTY)
    found = borrowed(bench, bench.open(home=gpus[0]), gpus[0])
    each = found.count(found[0])
    assert found == [gpu for at, gpu in enumerate(found) if at % each == 0 for _ in range(each)]
    bench, gpus = bench_of(topologies.four_h100())
    found = borrowed(bench, bench.open(home=gpus[0]), gpus[0])
    assert set(found[:3]) == set(gpus[1:])  # the most to lend decides


def test_a_peer_over_pcie_is_no_faster_than_host_memory_and_never_chosen() -> None:
    """Peers were slower than the host on such nodes; the refusal says what each link is."""
    text = refusal(topologies.pcie_l40s())
    assert "over PCIe (NODE), no faster than host memory" in text
    assert "over PCIe (SYS)" in text


def test_gpus_that_refuse_to_be_peers_lend_each_other_nothing() -> None:
    """Nothing could be mapped: it is said before a slab is made."""
    assert "has no peer access to it (PHB)" in refusal(topologies.two_rtx_5090())


def test_an_operator_who_has_measured_may_allow_pcie_but_not_what_cannot_be_mapped() -> None:
    """Of mixed models only the borrower's own kind can be reached."""
    bench, gpus = bench_of(topologies.mixed_models(), lend_over_pcie=True)
    session = bench.open(home=gpus[3])  # one of two of its model
    assert {lender(bench, session) for _ in range(3)} == {gpus[4]}
    blocked = GpuLink(peer=gpus[0], kind="NV", count=4, has_peer_access=False)
    assert "no peer access" in why_not_faster_than_host(blocked, may_use_pcie=True)


def test_what_is_not_known_is_no_reason_against_a_peer() -> None:
    """Stand-in GPUs tell of no links; a session without a home GPU has none to be reached by."""
    bench = Bench()
    assert bench.lease(bench.grant(bench.open())).nbytes == SLAB
    bench, _ = bench_of(topologies.pcie_l40s())
    assert bench.lease(bench.grant(bench.open(home=None))).nbytes == SLAB


def test_a_lender_that_is_full_is_passed_over_for_a_shared_one() -> None:
    """Room decides before speed does."""
    node = topologies.hgx_h100(gpus=3)
    bench, gpus = bench_of(node)
    busy = bench.open("busy", home=gpus[0], pid=20)
    first = lender(bench, busy)
    other = next(gpu for gpu in gpus[1:] if gpu != first)
    bench.handle(
        GpuReported(
            report=GpuReport(
                gpu=other,
                total_bytes=GPU_BYTES,
                slab_bytes={},
                owner_bytes={99: GPU_BYTES - 8 * MIB},
                links=links_of(node, gpus.index(other)),
            )
        )
    )
    assert lender(bench, bench.open("second", home=other, pid=21)) in {gpus[0], first}


def test_of_lenders_that_were_never_measured_the_shared_one_lends_later() -> None:
    """Although it has more to lend: what leaves it is halved, as topology says."""
    node = topologies.hgx_h100(gpus=3)
    bench, gpus = bench_of(node)
    other = bench.open("other", home=gpus[2], pid=12)
    while lender(bench, other) != gpus[1]:
        pass
    report = GpuReport(
        gpu=gpus[2],
        total_bytes=GPU_BYTES,
        slab_bytes={},
        owner_bytes={99: GPU_BYTES - 80 * MIB},
        links=links_of(node, 2),
    )
    bench.handle(GpuReported(report=report))
    assert SLAB < bench.gpu(gpus[2]).lendable_bytes < bench.gpu(gpus[1]).lendable_bytes
    assert lender(bench, bench.open(home=gpus[0])) == gpus[2]
