"""What `fetch` and `offload` cost while the library evacuates 64 MiB, beside what they cost otherwise.

An owner's process takes a GPU, and what lies there moves to another, in the background. Timed are
copies of the program's own thread, of one core each, while bytes are on their way and before. On
stand-in GPUs both share the same memory and the same cores. What that alone costs is told beside it:
the same calls beside a thread that only copies as many bytes, between buffers of its own, whose pages
are there, with no more of the interpreter than a call for each chunk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

import aqua_client
from tests.benchmarks.figure import Figure, percentile
from tests.benchmarks.threads import one_thread
from tests.nodes import MIB, Node, wait_until

SUBJECT = "evacuations"
KIB = 2**10
BULK = [MIB] * 64  # what is moved
CHUNK_BYTES = 16 * MIB
COPIES = 4  # of all that is moved, in each round, by the thread that does nothing else
ROUNDS = 6
QUIET_SECONDS = 1.0
MOST_SECONDS = 20.0  # for an owner to start and have its memory
TIMES = 2.0  # how much more the slowest hundredth may cost meanwhile
CLOCK = time.perf_counter

Timed = dict[str, list[float]]


def measure(node: Node) -> Iterator[Figure]:
    """Quiet, beside plain copies and during evacuations of each round."""
    quiet: Timed = {}
    beside: Timed = {}
    during: Timed = {}
    with one_thread(), aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        for _ in range(ROUNDS):
            _round(node, client, quiet, beside, during)
    for name in quiet:
        yield from _figures(name, quiet[name], beside[name], during[name])


def _figures(
    name: str, quiet: list[float], beside: list[float], during: list[float]
) -> Iterator[Figure]:
    for percent in (50, 99):
        before = percentile(quiet, percent) * 1e6
        copied = percentile(beside, percent) * 1e6
        yield Figure(
            subject=SUBJECT,
            name=f"{name}, p{percent} while 64 MiB are moved",
            value=percentile(during, percent) * 1e6,
            unit="us",
            rival=f"quiet {before:,.1f} us, beside a plain copy {copied:,.1f} us",
            at_most=TIMES * before if percent == 99 else None,
        )
    # What else the machine does makes some slow, too: how many, whatever they are a hundredth of.
    limit = TIMES * percentile(quiet, 99)
    yield Figure(
        subject=SUBJECT,
        name=f"{name}, slower than twice quiet's p99 while 64 MiB are moved",
        value=_percent_above(limit, during),
        unit="%",
        rival=f"quiet {_percent_above(limit, quiet):.2f} %, "
        f"beside a plain copy {_percent_above(limit, beside):.2f} %",
    )


def _percent_above(limit: float, seconds: Sequence[float]) -> float:
    return 100 * sum(one > limit for one in seconds) / len(seconds)


def _round(
    node: Node, client: aqua_client.Client, quiet: Timed, beside: Timed, during: Timed
) -> None:
    bulk = [client.offload(torch.ones(nbytes, dtype=torch.uint8)) for nbytes in BULK]
    handles = {
        size: client.offload(torch.ones(size, dtype=torch.uint8)) for size in (64 * KIB, MIB)
    }
    outs = {size: torch.zeros(size, dtype=torch.uint8) for size in handles}
    source = torch.ones(64 * KIB, dtype=torch.uint8)
    acts: Mapping[str, Callable[[], object]] = {
        "`fetch` of 64 KiB": lambda: handles[64 * KIB].fetch(out=outs[64 * KIB]),
        "`fetch` of 1 MiB": lambda: handles[MIB].fetch(out=outs[MIB]),
        "`offload` and `release` of 64 KiB": lambda: client.offload(source).release(),
    }
    end = CLOCK() + QUIET_SECONDS
    while CLOCK() < end:
        _time_all(acts, quiet)
    copier = threading.Thread(target=_copy_plainly)
    copier.start()
    while copier.is_alive():
        _time_all(acts, beside)
    counters = client._pager._counters
    moved = counters.evacuated_bytes
    aim = moved + client._pager._tiers.slabs[_fullest(client)].extents.used_bytes
    owner = node.start_load(client._pager._tiers.slabs[_fullest(client)].lender_gpu, 900 * MIB)
    end = CLOCK() + MOST_SECONDS
    while counters.evacuated_bytes < aim and CLOCK() < end:
        before = counters.evacuated_bytes
        sample: Timed = {}
        _time_all(acts, sample)
        if moved < counters.evacuated_bytes != before or moved < before < aim:
            for name, seconds in sample.items():
                during.setdefault(name, []).extend(seconds)
    node.await_loaded(owner)
    owner.kill()
    owner.wait()
    for handle in (*bulk, *handles.values()):
        handle.release()
    wait_until(lambda: not client.stats()["peer_bytes"], what="all is released")


def _copy_plainly() -> None:
    nbytes = sum(BULK)
    source, target = (torch.ones(nbytes, dtype=torch.uint8) for _ in range(2))
    for begin in list(range(0, nbytes, CHUNK_BYTES)) * COPIES:
        target[begin : begin + CHUNK_BYTES].copy_(source[begin : begin + CHUNK_BYTES])


def _fullest(client: aqua_client.Client) -> str:
    slabs = client._pager._tiers.slabs
    return max(slabs, key=lambda one: slabs[one].extents.used_bytes)


def _time_all(acts: Mapping[str, Callable[[], object]], seconds: Timed) -> None:
    for name, act in acts.items():
        start = CLOCK()
        act()
        seconds.setdefault(name, []).append(CLOCK() - start)
