"""A real keeper measures between its shm GPUs: beside its other work, counted, and nothing is left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest
from aqua_protos.agreement import KEEPER_FEATURES
from aqua_protos.keeper_pb2 import KeeperRequest, LinkSample, MeasureLink, OfferProbe

from aqua_daemon.keeper import probing, shm_gpu
from aqua_daemon.keeper.node import KeptGpus
from aqua_daemon.keeper.probing import Probes
from aqua_daemon.keeper.refusal import Refused
from tests.keeper.holders import holder
from tests.keeper.keepers import GPU_BYTES, running_keeper
from tests.keeper.peers import MIB, Peer

SIZES = (64 * 1024, 4 * MIB)


def measure(**fields: object) -> KeeperRequest:
    usual: dict[str, object] = {"source": "SHM-0", "target": "SHM-1", "sizes": SIZES}
    return KeeperRequest(measure_link=MeasureLink(**(usual | fields)))  # type: ignore[arg-type]  # its own fields


def test_a_link_is_measured_in_each_size() -> None:
    """Copies that took time, and more of it for more bytes; the keeper says that it can."""
    with running_keeper() as keeper, keeper.peer() as daemon:
        assert tuple(daemon.attach().features) == KEEPER_FEATURES
        samples = daemon.answer(daemon.ask(measure())).link_measured.samples
        assert tuple(one.nbytes for one in samples) == SIZES
        assert all(0 < one.seconds < 5 for one in samples)


class HeapProbe:
    """Memory that nobody looks at."""

    address = 0

    def close(self) -> None:
        raise AssertionError("it is the caller's")


def test_what_the_first_use_of_a_link_costs_is_no_part_of_its_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long it took: another copy is made after it."""
    monkeypatch.setattr(probing, "BEST_OF_SECONDS", -1.0)  # as a copy that takes all of it
    took = iter((5.0, 1.0, 2.0))
    end = HeapProbe()
    assert probing._best(lambda *_: next(took), end, end, MIB) == 1.0


def test_a_measurement_holds_up_nothing_and_its_memory_counts_as_used() -> None:
    """Meanwhile slabs come and go; afterwards every byte is free again."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        asked = daemon.ask(measure(seconds=1.0))
        slab = daemon.allocate(tenant)
        assert daemon.report("SHM-1").other_bytes == SIZES[-1]
        assert daemon.free(slab).freed.scrubbed_bytes == slab.nbytes
        assert daemon.answer(asked).link_measured.samples
        daemon.report_that("SHM-1", lambda report: not report.other_bytes)


def test_what_does_not_fit_is_refused() -> None:
    """With the figures, as an allocation would be; nothing stays used."""
    with running_keeper() as keeper, keeper.daemon() as daemon:
        assert not daemon.register("SHM-1", GPU_BYTES - 2 * MIB).failed.code
        failed = daemon.answer(daemon.ask(measure())).failed
        assert failed.code == "RESOURCE_EXHAUSTED"
        assert f"{2 * MIB} of {GPU_BYTES} bytes free" in failed.message
        assert daemon.report("SHM-0").other_bytes == 0


REFUSALS: list[tuple[KeeperRequest, str, str]] = [
    (measure(target="SHM-9"), "NOT_FOUND", "no GPU 'SHM-9' here"),
    (measure(target="SHM-0"), "INVALID_ARGUMENT", "are the same"),
    (measure(source="host"), "FAILED_PRECONDITION", "a stand-in GPU is host memory itself"),
    (measure(sizes=()), "INVALID_ARGUMENT", "sizes are []"),
    (measure(sizes=(0,)), "INVALID_ARGUMENT", "sizes are [0]"),
    (measure(sizes=(2**40,)), "INVALID_ARGUMENT", "each of 1 to 268435456"),
    (measure(seconds=60.0), "INVALID_ARGUMENT", "seconds is 60.0"),
    (measure(seconds=float("nan")), "INVALID_ARGUMENT", "seconds is nan"),
    (measure(cuda_ipc_handle=bytes(64)), "INVALID_ARGUMENT", "1 descriptors belong to it, 0 came"),
    (measure(descriptor_kind=2), "INVALID_ARGUMENT", "2 descriptors belong to it, 0 came"),
    (
        KeeperRequest(offer_probe=OfferProbe(gpu="SHM-0", nbytes=MIB)),
        "INVALID_ARGUMENT",
        "1 descriptors belong to it, 0 came",
    ),
]


@pytest.mark.parametrize(("request_of", "code", "said"), REFUSALS)
def test_what_can_not_be_measured_is_refused_and_leaves_nothing(
    request_of: KeeperRequest, code: str, said: str
) -> None:
    """By what was wrong; the connection and the keeper go on."""
    with running_keeper() as keeper, keeper.daemon() as daemon:
        before = keeper.descriptors()
        request = KeeperRequest.FromString(request_of.SerializeToString())
        failed = daemon.answer(daemon.ask(request)).failed
        assert (failed.code, said in failed.message) == (code, True), failed
        assert daemon.report("SHM-0").other_bytes == 0
        keeper.wait_for_descriptors(before)


def test_a_stand_in_offers_its_memory_to_no_other_keeper() -> None:
    """One keeper has all of them: nothing stays used, and the end that came is closed."""
    with running_keeper() as keeper, keeper.daemon() as daemon:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            request = KeeperRequest(offer_probe=OfferProbe(gpu="SHM-0", nbytes=MIB))
            failed = daemon.answer(daemon.ask(request, (theirs.fileno(),))).failed
            theirs.close()
            assert "are kept here" in failed.message
            ours.settimeout(10)
            assert ours.recv(1) == b""
        assert daemon.report("SHM-0").other_bytes == 0


def test_only_the_daemon_may_measure() -> None:
    """Whoever else is connected is refused, and gets nothing done."""
    with running_keeper() as keeper, keeper.daemon(), keeper.peer() as stranger:
        assert _refusal(stranger) == "FAILED_PRECONDITION"


def _refusal(peer: Peer) -> str:
    return peer.answer(peer.ask(measure())).failed.code


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_a_clock_that_has_not_moved_is_no_figure(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """A copy that took no time would be a rate without end, and no daemon believes it."""
    monkeypatch.setattr(shm_gpu, "copy_seconds", lambda *_copy: 0.0)

    async def measured() -> Sequence[LinkSample] | Refused:
        gpus = shm_gpu.shm_gpus(
            count=2, gpu_bytes=64 * MIB, smallest_slab_bytes=MIB, largest_slab_bytes=MIB
        )
        with KeptGpus(gpus, smallest_slab_bytes=MIB, largest_slab_bytes=MIB) as node:
            probes = Probes(node, lambda: None)
            found = asyncio.get_running_loop().create_future()
            probes.measure(measure(seconds=seconds).measure_link, (), found.set_result)
            return await asyncio.wait_for(found, timeout=20)

    samples = asyncio.run(measured())
    assert not isinstance(samples, Refused)
    assert all(one.seconds > 0 for one in samples)


def test_no_more_links_are_measured_at_once_than_there_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has a thread and memory of its own; nothing of what is refused is kept."""
    monkeypatch.setattr(probing, "MOST_AT_ONCE", 0)

    async def refused() -> None:
        gpus = shm_gpu.shm_gpus(
            count=2, gpu_bytes=64 * MIB, smallest_slab_bytes=MIB, largest_slab_bytes=MIB
        )
        with KeptGpus(gpus, smallest_slab_bytes=MIB, largest_slab_bytes=MIB) as node:
            probes = Probes(node, lambda: None)
            with pytest.raises(Refused, match="links are being measured"):
                probes.measure(measure().measure_link, (), lambda _: None)

    asyncio.run(refused())
