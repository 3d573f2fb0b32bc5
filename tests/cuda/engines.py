"""A client on a made-up driver whose copies go by the library's own streams, over real processes.

Its tensors are the CPU's and count as those of GPU 0. What they promise is the tests'.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import aqua_client
from aqua_client import pager
from aqua_client.cuda_driver import acting_on, call
from aqua_client.cuda_streams import CudaStreams
from aqua_daemon.adapters.link_file import NAME, content_of
from aqua_daemon.core.model import GpuPair, GpuUuid, LinkRate
from aqua_daemon.core.node_snapshot import LinkSnapshot
from tests.contract.tensors import noise
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.torch_streams import DEVICE, HostTorch, leave_torch_out
from tests.nodes import Node, running_node, short_directory, wait_until


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A client whose copies are late, and what it has of torch."""

    client: aqua_client.Client
    torch: HostTorch
    machine: FakeCudaNode
    node: Node

    @contextmanager
    def stream(self) -> Iterator[int]:
        """A server's own, current meanwhile, and done at the end."""
        stream = self.torch.new_stream()
        with self.torch.using(DEVICE, stream):
            yield stream
        synchronize(stream)


def synchronize(stream: int) -> None:
    with acting_on(DEVICE):
        call("cuStreamSynchronize", stream)


@contextmanager
def running_engine(
    *,
    stream_delay_seconds: float,
    gpus: int = 2,
    gigabytes_per_second: Sequence[float] = (),
    term_seconds: float = 10.0,
) -> Iterator[Engine]:
    """One GPU that the others lend to, with a slab at hand.

    *gigabytes_per_second* of the first lender's link, the second's and so on were measured before
    the daemon starts.
    """
    of_torch = HostTorch()
    with short_directory() as directory:
        machine = fake_cuda_node(
            directory / "machine", gpus=gpus, stream_delay_seconds=stream_delay_seconds
        )
        keep_links(directory / "node", machine.uuids, gigabytes_per_second)
        with (
            pytest.MonkeyPatch.context() as patch,
            running_node(
                directory / "node",
                gpus=0,
                variables=machine.environment(),
                handles="vmm",
                term_seconds=term_seconds,
            ) as node,
            machine.in_process(),
        ):
            leave_torch_out(patch)
            patch.setattr(pager, "streams_of_torch", lambda: CudaStreams(of_torch))
            with aqua_client.connect(socket=node.socket, home_gpu=machine.uuids[DEVICE]) as client:
                wait_until(lambda: client.stats()["attached"], seconds=20, what="attached")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", aqua_client.AquaWarning)
                    wait_until(lambda: lends(client), seconds=30, what="a lease is granted")
                yield Engine(client=client, torch=of_torch, machine=machine, node=node)
        assert machine.touched_after_unmap == 0


def keep_links(directory: Path, gpus: Sequence[str], rates: Sequence[float]) -> None:
    """As a daemon does that has measured the links of GPU 0."""
    links = [
        LinkSnapshot(
            pair=GpuPair(source=GpuUuid(source), target=GpuUuid(target)),
            rate=LinkRate(latency_seconds=0.0, bytes_per_second=rate * 1e9),
            slow="",
        )
        for lender, rate in zip(gpus[1:], rates, strict=False)
        for source, target in ((lender, gpus[0]), (gpus[0], lender))
    ]
    (directory / "state").mkdir(parents=True)
    (directory / "state" / NAME).write_bytes(content_of(links))


def lends(client: aqua_client.Client) -> bool:
    return client.offload(noise(64, seed=0, device="cpu")).tier == "peer"


def await_idle(engine: Engine) -> None:
    """What a late copy writes to may go then: nobody else keeps it here."""
    tiers = engine.client._pager._tiers

    def is_idle() -> bool:
        with tiers.landing:  # those who look take all of them away for a moment
            return not tiers.flights

    wait_until(is_idle, what="every copy is over")
