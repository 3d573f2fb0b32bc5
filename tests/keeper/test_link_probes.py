"""The daemon's side of measuring: each order ends in one word, whatever becomes of the keeper."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from aqua_protos.agreement import KEEPER_FEATURES
from aqua_protos.keeper_pb2 import KeeperReply, LinkMeasured, LinkSample

from aqua_daemon.core.events import KeeperAttached, KeeperDetached, LinkProbed
from aqua_daemon.core.instructions import ProbeLink
from aqua_daemon.core.link_figures import HOST
from aqua_daemon.core.model import GpuPair, GpuUuid, RequestId
from tests.fakes.keeper_server import fake_keeper, report_of
from tests.keeper.keepers import GPU_BYTES, running_keeper
from tests.keeper.links import SHM_0, SHM_1, Linked, linked, outside
from tests.keeper.peers import MIB
from tests.nodes import short_directory

SIZES = (4096, MIB)


def order(source: GpuUuid = SHM_0, target: GpuUuid = SHM_1, number: int = 1) -> ProbeLink:
    return ProbeLink(
        request_id=RequestId(f"{number:032x}"),
        pair=GpuPair(source=source, target=target),
        sizes=SIZES,
        has_company=False,
    )


async def outcome(node: Linked, of: ProbeLink) -> LinkProbed:
    after = len(node.events)
    node.links.probe(of)
    return await node.event(LinkProbed, after=after)


def test_a_link_between_two_gpus_of_one_keeper_is_measured() -> None:
    """The event has the request's id and a figure for each size."""

    async def story() -> None:
        with running_keeper() as keeper:
            async with linked(outside(keeper.socket)) as node:
                await node.event(KeeperAttached)
                told = await outcome(node, order())
                assert told.request_id == order().request_id
                assert told.outcome.pair == order().pair
                assert tuple(one.nbytes for one in told.outcome.samples) == SIZES

    asyncio.run(story())


def test_what_the_keeper_refuses_is_said() -> None:
    """In its words."""

    async def story() -> None:
        with running_keeper() as keeper:
            async with linked(outside(keeper.socket)) as node:
                await node.event(KeeperAttached)
                told = await outcome(node, order(SHM_0, HOST))
                assert "a stand-in GPU is host memory itself" in told.outcome.problem
                assert not told.outcome.samples

    asyncio.run(story())


def test_a_keeper_that_is_gone_ends_a_measurement() -> None:
    """Before it was asked, and while it measures; a new one is measured as if nothing had been."""

    async def story() -> None:
        with running_keeper() as keeper:
            async with linked(outside(keeper.socket)) as node:
                await node.event(KeeperAttached)
                keeper.signal(signal.SIGSTOP)
                after = len(node.events)
                node.links.probe(order())
                keeper.end()
                told = await node.event(LinkProbed, after=after)
                assert "the link to the keeper broke" in told.outcome.problem
                told = await outcome(node, order(number=2))
                assert "can't be reached" in told.outcome.problem

    asyncio.run(story())


def test_two_gpus_of_which_one_has_no_keeper_yet() -> None:
    """Nothing is offered, nothing waits."""

    async def story() -> None:
        with running_keeper(gpus=1) as keeper:
            absent = outside(keeper.socket.with_name("none.sock"), SHM_1)
            async with linked(outside(keeper.socket, SHM_0), absent) as node:
                await node.event(KeeperAttached)
                for of in (order(SHM_0, SHM_1), order(SHM_1, SHM_0, number=2)):
                    told = await outcome(node, of)
                    assert told.outcome.problem, told
                assert not [one for one in node.events if isinstance(one, KeeperDetached)]

    asyncio.run(story())


def test_a_keeper_of_a_release_that_measures_nothing_is_not_asked() -> None:
    """It would take the request for nonsense and end the link, and with it all grants there."""

    async def story(path: Path) -> None:
        async with fake_keeper(path) as keeper, linked(outside(path, SHM_0)) as node:
            await keeper.accept_attach(report_of("SHM-0", GPU_BYTES))
            await node.event(KeeperAttached)
            told = await outcome(node, order(HOST, SHM_0))
            assert "is of a release that measures no links" in told.outcome.problem
            assert keeper.requests.empty()

    with short_directory() as directory:
        asyncio.run(story(directory / "keeper.sock"))


def test_figures_that_can_not_be_end_the_link() -> None:
    """A copy that took no time, or sizes that nobody asked for: the daemon believes no more of it."""

    async def story(path: Path) -> None:
        async with fake_keeper(path) as keeper, linked(outside(path, SHM_0)) as node:
            for samples in (
                [LinkSample(nbytes=one, seconds=0.0) for one in SIZES],
                [LinkSample(nbytes=one, seconds=float("nan")) for one in SIZES],
                [LinkSample(nbytes=SIZES[0], seconds=1.0)],
            ):
                after = len(node.events)
                await keeper.accept_attach(report_of("SHM-0", GPU_BYTES), features=KEEPER_FEATURES)
                await node.event(KeeperAttached, after=after)
                node.links.probe(order(HOST, SHM_0))
                asked = await keeper.request("measure_link")
                measured = LinkMeasured(samples=samples)
                keeper.say(KeeperReply(request_id=asked.request_id, link_measured=measured))
                told = await node.event(KeeperDetached, after=after)
                assert told.gpus == (SHM_0,)

    with short_directory() as directory:
        asyncio.run(story(directory / "keeper.sock"))
