"""Links of a node on the bench, measured by an admin as a test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from aqua_daemon.core.errors import InsufficientMemory
from aqua_daemon.core.events import LinkProbed, LinkProbeRequested
from aqua_daemon.core.link_figures import LinkOutcome, LinkSample
from aqua_daemon.core.model import GpuPair, GpuUuid, SessionId
from aqua_daemon.core.sizes import MIB
from tests.core.bench import Bench

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


def warnings(bench: Bench) -> dict[GpuUuid, tuple[str, ...]]:
    return {gpu.gpu: gpu.warnings for gpu in bench.snapshot.gpus if gpu.warnings}
