"""How fast the links of a node are: asked link by link, added up, shown as tables.

Does not cover the command's options (`bench_commands`), nor what the daemon makes of the figures.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from aqua_protos import broker_pb2
from rich.text import Text

from aqua_daemon.config_words import format_bytes
from aqua_daemon.core.link_figures import HOST, LinkSample, rate_of
from aqua_daemon.core.model import LinkRate
from aqua_daemon.core.sizes import PROBE_SECONDS
from aqua_daemon.ctl.aligning import aligned, short_gpus
from aqua_daemon.ctl.link import Link

SCHEMA = 1
ANSWER_SECONDS = PROBE_SECONDS + 1.0
NOTHING, ITSELF = "n/a", "-"
_GIGA, _MICRO = 1e9, 1e-6
Ends = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One link alone."""

    samples: tuple[LinkSample, ...] = ()
    problem: str = ""

    @property
    def rate(self) -> LinkRate | None:
        """None: it was not measured."""
        return rate_of(self.samples) if self.samples else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """All links from a GPU, or all to it, at the same time."""

    bytes_per_second: float = 0.0
    parts_bytes_per_second: float = 0.0  # the same links, each alone
    problem: str = ""


@dataclass(slots=True, kw_only=True)
class LinkBench:
    """What has been measured so far."""

    gpus: tuple[str, ...]
    links: dict[Ends, Measured] = field(default_factory=dict)
    sent: dict[str, Sum] = field(default_factory=dict)  # by source
    taken: dict[str, Sum] = field(default_factory=dict)  # by target

    @property
    def is_empty(self) -> bool:
        """Whether nothing could be measured."""
        return not any(one.samples for one in self.links.values())


def measure(link: Link, gpus: Sequence[str], sizes: Sequence[int]) -> LinkBench:
    """Each link alone, host memory's too; then of each GPU all that leave it, and all that come.

    Raises:
        Refused: the caller is no admin, or asks for what can't be.
        Unreachable: the daemon is gone.
    """
    bench = LinkBench(gpus=tuple(gpus))
    for ends in _alone(gpus):
        bench.links[ends] = _asked(link, [ends], sizes)[ends]
    for gpu in gpus:
        others = [other for other in gpus if other != gpu]
        if len(others) > 1:
            bench.sent[gpu] = _together(link, bench, [(gpu, other) for other in others], sizes)
            bench.taken[gpu] = _together(link, bench, [(other, gpu) for other in others], sizes)
    return bench


def tables(bench: LinkBench) -> Text:
    """One for each size, then latencies, then why something is missing."""
    sizes = sorted({one.nbytes for found in bench.links.values() for one in found.samples})
    lines: list[Text] = []
    for nbytes in sizes:
        lines += [*_table(bench, f"GB/s, copies of {format_bytes(nbytes)}", _speeds(bench, nbytes))]
    latencies = {
        ends: f"{rate.latency_seconds / _MICRO:.1f}"
        for ends, found in bench.links.items()
        if (rate := found.rate)
    }
    if len(sizes) > 1:
        lines += _table(bench, "latency, us", latencies)
    lines += _sums(bench)
    return Text("\n").join([*lines, *_problems(bench)])


def document(bench: LinkBench) -> dict[str, object]:
    """Every figure, in bytes and seconds."""
    return {
        "schema": SCHEMA,
        "gpus": [*bench.gpus],
        "links": [_link(ends, found) for ends, found in bench.links.items()],
        "sums": [
            {
                "gpu": gpu,
                "direction": direction,
                "bytes_per_second": one.bytes_per_second,
                "parts_bytes_per_second": one.parts_bytes_per_second,
                "problem": one.problem,
            }
            for direction, sums in (("from", bench.sent), ("to", bench.taken))
            for gpu, one in sums.items()
        ],
    }


def _alone(gpus: Sequence[str]) -> Iterator[Ends]:
    ends = (*gpus, HOST)
    for source in ends:
        for target in ends:
            if source != target:
                yield source, target


def _asked(link: Link, links: Sequence[Ends], sizes: Sequence[int]) -> dict[Ends, Measured]:
    request = broker_pb2.ProbeLinksRequest(
        request_id=secrets.token_hex(16),
        links=[broker_pb2.Link(source=source, target=target) for source, target in links],
        sizes=sizes,
    )
    reply = link.call("ProbeLinks", request, broker_pb2.ProbeLinksReply, seconds=ANSWER_SECONDS)
    return {
        (one.link.source, one.link.target): Measured(
            samples=tuple(LinkSample(nbytes=s.nbytes, seconds=s.seconds) for s in one.samples),
            problem=one.problem,
        )
        for one in reply.probes
    }


def _together(link: Link, bench: LinkBench, links: Sequence[Ends], sizes: Sequence[int]) -> Sum:
    able = [ends for ends in links if bench.links[ends].samples]
    if len(able) < 2:
        return Sum(problem="fewer than two of them could be measured")
    found = _asked(link, able, sizes)
    if problem := next((one.problem for one in found.values() if one.problem), ""):
        return Sum(problem=problem)
    return Sum(
        bytes_per_second=sum(_speed(one.samples[-1]) for one in found.values()),
        parts_bytes_per_second=sum(_speed(bench.links[ends].samples[-1]) for ends in able),
    )


def _speed(sample: LinkSample) -> float:
    return sample.nbytes / sample.seconds


def _speeds(bench: LinkBench, nbytes: int) -> dict[Ends, str]:
    return {
        ends: f"{_speed(sample) / _GIGA:.1f}"
        for ends, found in bench.links.items()
        for sample in found.samples
        if sample.nbytes == nbytes
    }


def _table(bench: LinkBench, title: str, cells: dict[Ends, str]) -> list[Text]:
    """Rows from, columns to. Host memory is left out where it was not measured."""
    has_host = any(HOST in ends for ends in cells)
    ends = (*bench.gpus, *([HOST] if has_host else []))
    heads = [f"to {_short(at, end)}" for at, end in enumerate(ends)]
    rows = [
        [
            _row_name(at, source),
            *(ITSELF if source == to else cells.get((source, to), NOTHING) for to in ends),
        ]
        for at, source in enumerate(ends)
    ]
    lines = aligned([("from", *heads), *rows])
    lines[0].stylize("bold")
    return [Text(title, style="bold"), *lines, Text()]


def _sums(bench: LinkBench) -> list[Text]:
    if not bench.sent:
        return []
    rows = [
        (_row_name(at, gpu), *_sum_cells(bench.sent[gpu]), *_sum_cells(bench.taken[gpu]))
        for at, gpu in enumerate(bench.gpus)
    ]
    lines = aligned([("GPU", "FROM", "OF PARTS", "TO", "OF PARTS"), *rows])
    lines[0].stylize("bold")
    return [Text("GB/s, all others at the same time", style="bold"), *lines, Text()]


def _sum_cells(one: Sum) -> tuple[str, str]:
    if one.problem:
        return NOTHING, NOTHING
    part = one.bytes_per_second / one.parts_bytes_per_second
    return f"{one.bytes_per_second / _GIGA:.1f}", f"{part:.0%}"


def _problems(bench: LinkBench) -> list[Text]:
    """Each reason once, with the links that it is of."""
    of: dict[str, list[str]] = {}
    for (source, target), found in bench.links.items():
        if found.problem:
            of.setdefault(found.problem, []).append(f"{source} to {target}")
    for words, sums in (("{} to all others", bench.sent), ("all others to {}", bench.taken)):
        for gpu, one in sums.items():
            if one.problem:
                of.setdefault(one.problem, []).append(words.format(gpu))
    return [
        Text(short_gpus(f"{NOTHING}: {links[0]}{_more(len(links) - 1)}: {problem}"))
        for problem, links in of.items()
    ]


def _more(count: int) -> str:
    return f" and {count} more" if count else ""


def _link(ends: Ends, found: Measured) -> dict[str, object]:
    rate = found.rate
    return {
        "source": ends[0],
        "target": ends[1],
        "bytes_per_second": rate.bytes_per_second if rate else None,
        "latency_seconds": rate.latency_seconds if rate else None,
        "samples": [{"nbytes": one.nbytes, "seconds": one.seconds} for one in found.samples],
        "problem": found.problem,
    }


def _short(at: int, end: str) -> str:
    return end if end == HOST else str(at)


def _row_name(at: int, end: str) -> str:
    return end if end == HOST else f"{at} {short_gpus(end)}"
