"""The four ways to share one engine; those that park also with copies paced to a named link."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

import aqua_client
from aqua_client.integrations.transformers.copies import Pools
from tests.benchmarks.pacing import AS_IT_IS, Rates
from tests.contract.places import cuda_place
from tests.integrations.hosting import host_client
from tests.nodes import MIB, running_node, wait_until

FCFS, RECOMPUTE, DRAM, LEASES = "FCFS", "fair + recompute", "fair + DRAM", "fair + leases"
HOST_BYTES = 16 * 1024 * MIB  # at most; what is not needed is not taken
Opened = AbstractContextManager[Pools | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """FCFS evicts nobody as long as nobody has to go; without a client nothing is parked."""

    name: str
    open: Callable[[], Opened]
    is_fair: bool = True
    rates: Rates = AS_IT_IS  # that copies are paced to

    @property
    def scheduler(self) -> str:
        """The engine's name for it."""
        return "aqua_fair" if self.is_fair else "fifo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """What copies are paced to, in GB/s of the real links; None: as it is."""

    leases: float | None = None
    host: float | None = None
    part: float = 1.0  # by which both are divided for this engine: `scales.link_part`

    @property
    def rates(self) -> Rates:
        """In bytes a second of this engine's."""
        leases, host = (
            None if one is None else one * 1e9 / self.part for one in (self.leases, self.host)
        )
        return Rates(leases=leases, host=host)

    def named(self, way: str, gb_per_second: float) -> str:
        """The way, and that it is paced."""
        part = "" if self.part == 1 else f" / {self.part:.0f}"
        return f"{way}, *paced* to {gb_per_second:g} GB/s{part}"


def ways(leases: Callable[[], Opened], links: Links) -> tuple[Way, ...]:
    """*leases* opens a client that borrows."""

    def dram() -> Opened:
        return host_client(host_limit_bytes=HOST_BYTES)

    found = [
        Way(name=FCFS, open=lambda: nullcontext(None), is_fair=False),
        Way(name=RECOMPUTE, open=lambda: nullcontext(None)),
        Way(name=DRAM, open=dram),
        Way(name=LEASES, open=leases),
    ]
    if links.host is not None:
        found.append(Way(name=links.named(DRAM, links.host), open=dram, rates=links.rates))
    if links.leases is not None:
        found.append(Way(name=links.named(LEASES, links.leases), open=leases, rates=links.rates))
    return tuple(found)


def lent_by(client: Pools) -> Callable[[], Opened]:
    """A client that is open already, and stays so."""
    return lambda: nullcontext(client)


@contextmanager
def leases_on(device: torch.device) -> Iterator[Pools]:
    """Of a CUDA GPU that lends to itself, or of two shm GPUs."""
    if device.type == "cuda":
        with (
            cuda_place("legacy", torch.cuda.current_device()) as place,
            _client(place.node.socket, place.home_gpu) as client,
        ):
            yield client
        return
    with (
        running_node(gpus=3, gpu_bytes=512 * MIB) as node,
        _client(node.socket, "SHM-0") as client,
    ):
        yield client


@contextmanager
def _client(socket: str, home_gpu: str) -> Iterator[aqua_client.Client]:
    with aqua_client.connect(socket=socket, home_gpu=home_gpu) as client:
        wait_until(lambda: client.stats()["attached"], seconds=20, what="attached")
        yield client
