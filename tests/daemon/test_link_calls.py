"""Links measured by the API: for admins, one link or several at once, kept, and shown to everybody."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from aqua_protos import broker_pb2
from grpc import aio

from aqua_daemon.core.link_figures import EVERY
from aqua_daemon.core.sizes import PROBE_SECONDS
from aqua_daemon.ctl.verdict import findings
from tests.daemon.api_calls import reason_of, state
from tests.daemon.in_process import GPUS, MIB, Client, greeted, greeted_as, new_id, running

HERE, THERE = GPUS


async def probed(
    client: Client, *links: tuple[str, str], sizes: tuple[int, ...] = ()
) -> list[broker_pb2.LinkProbe]:
    request = broker_pb2.ProbeLinksRequest(
        request_id=new_id(),
        links=[broker_pb2.Link(source=source, target=target) for source, target in links],
        sizes=sizes,
    )
    reply = await client.call("ProbeLinks", request)
    return list(broker_pb2.ProbeLinksReply.FromString(reply).probes)


def test_a_link_is_measured_kept_and_shown() -> None:
    """The reply has the samples, the file the figures, and the state of the node, too."""

    async def story() -> None:
        async with (
            running() as node,
            greeted(node) as admin,
            greeted_as(node, uid=4711, unit="a.service") as other,
        ):
            [probe] = await probed(admin, (HERE, THERE), sizes=(4096, MIB))
            assert (probe.link.source, probe.link.target) == (HERE, THERE)
            assert [one.nbytes for one in probe.samples] == [4096, MIB]
            assert [one.sizes for one in node.keepers.probes] == [(4096, MIB)]
            [link] = (await state(other)).links
            assert link.bytes_per_second == pytest.approx(10e9)
            assert link.latency_seconds == pytest.approx(1e-5)
            [(pair, rate)] = node.link_file.read().items()
            assert (pair.source, pair.target) == (HERE, THERE)
            assert rate.bytes_per_second == link.bytes_per_second

    asyncio.run(story())


def test_links_of_one_gpu_at_once_are_its_sum() -> None:
    """They do not stand for what each carries alone."""

    async def story() -> None:
        async with running() as node, greeted(node) as admin:
            assert len(await probed(admin, (HERE, THERE), (HERE, "host"))) == 2
            assert all(one.has_company for one in node.keepers.probes)
            [link] = (await state(admin)).links
            assert (link.link.source, link.link.target) == (HERE, EVERY)
            assert link.bytes_per_second > 15e9

    asyncio.run(story())


def test_a_slow_link_is_named_to_whoever_looks() -> None:
    """As a warning of its source, which releases before this one show, too; and beside its figures."""

    async def story() -> None:
        async with running() as node, greeted(node) as admin:
            await probed(admin, (HERE, THERE))
            node.keepers.bytes_per_second = 5e9
            await probed(admin, (THERE, HERE))
            now = await state(admin)
            assert {gpu.gpu: len(gpu.warnings) for gpu in now.gpus} == {HERE: 0, THERE: 1}
            assert (
                now.gpus[1].warnings[0].startswith(f"its link to {HERE} is 1.5 times slower than")
            )
            assert [bool(one.slow) for one in now.links] == [False, True]
            (verdict, *_) = findings(now)
            assert (verdict.level, verdict.next_command) == ("warn", "aquactl bench links")

    asyncio.run(story())


@pytest.mark.parametrize(
    ("links", "sizes", "said"),
    [
        ((), (), "0 links"),
        (((HERE, "SHM-9"),), (), "SHM-9 is no link of this node"),
        (((HERE, "a b"),), (), "names no GPU"),
        (((HERE, THERE),), (0,), "sizes is 0"),
        (((HERE, THERE),) * 99, (), "name at most 32"),
        (((HERE, THERE),), (4096,) * 99, "name at most 8"),
    ],
)
def test_what_is_no_measurement_is_refused(
    links: tuple[tuple[str, str], ...], sizes: tuple[int, ...], said: str
) -> None:
    """With what may be asked; no keeper hears of it."""

    async def story() -> None:
        async with running() as node, greeted(node) as admin:
            with pytest.raises(aio.AioRpcError) as refused:
                await probed(admin, *links, sizes=sizes)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert said in str(refused.value.details())
            assert not node.keepers.probes

    asyncio.run(story())


def test_only_admins_measure() -> None:
    """It costs others bandwidth."""

    async def story() -> None:
        async with running() as node, greeted_as(node, uid=4711, unit="a.service") as other:
            with pytest.raises(aio.AioRpcError) as refused:
                await probed(other, (HERE, THERE))
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED

    asyncio.run(story())


def test_a_keeper_that_hangs_is_waited_for_no_longer_than_said() -> None:
    """Others are told to ask again meanwhile; then the reply says that there was no answer."""

    async def story() -> None:
        async with running() as node, greeted(node) as admin:
            node.keepers.is_stuck = True
            waiting = asyncio.create_task(probed(admin, (HERE, THERE)))
            await node.wait_for(lambda: node.keepers.probes, "it is asked")
            with pytest.raises(aio.AioRpcError) as refused:
                await probed(admin, (THERE, HERE))
            assert reason_of(refused.value) == "measuring"
            node.advance(PROBE_SECONDS + 0.1)
            [probe] = await waiting
            assert "no answer within" in probe.problem
            assert not node.link_file.read()

    asyncio.run(story())
