"""What a tenant does with streams, graphs and poisoned memory: CUDA only.

Each function returns what went wrong, in words; nothing, if nothing did.
"""

from __future__ import annotations

import random
import threading

import torch

import aqua_client

POISON = 0xEE
SLEEP_CYCLES = 2_000_000  # about a millisecond: long enough that copies wait for each other
STREAMS = 3


def ordering(rounds: int, seed: int, device: str) -> list[str]:
    """Random streams, random delays, memory poisoned as soon as it may be written again."""
    chance = random.Random(seed)  # noqa: S311 - a test's dice
    streams = [torch.cuda.Stream(device) for _ in range(STREAMS)]
    parked: list[tuple[int, int, aqua_client.OffloadedTensor]] = []
    checks: list[tuple[str, torch.Tensor]] = []
    for number in range(rounds):
        stream = chance.choice(streams)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(chance.randrange(SLEEP_CYCLES))
            if parked and chance.random() < 0.5:
                value, nbytes, handle = parked.pop(chance.randrange(len(parked)))
                checks += _fetched(handle, value, nbytes, device, chance)
            else:
                parked.append(_offloaded(number % 200, device, chance))
        # What one stream wrote, the next may fetch: the caller says so, as with any other work.
        for other in streams:
            other.wait_stream(stream)
        if len(checks) > 50:
            wrong = _wrong(checks)
            if wrong:
                return wrong
            checks.clear()
    for value, nbytes, handle in parked:
        checks += _fetched(handle, value, nbytes, device, chance)
    return _wrong(checks)


def _offloaded(
    value: int, device: str, chance: random.Random
) -> tuple[int, int, aqua_client.OffloadedTensor]:
    """The tensor is written late and poisoned at once: only the stream's order keeps its bytes."""
    nbytes = chance.choice((4096, 1_000_003, 9 * 2**20))
    tensor = torch.empty(nbytes, dtype=torch.uint8, device=device)
    torch.cuda._sleep(chance.randrange(SLEEP_CYCLES))
    tensor.fill_(value)
    if chance.random() < 0.3:
        handle = aqua_client.offload(tensor, overlap=True)
        handle.wait()
    else:
        handle = aqua_client.offload(tensor)
    tensor.fill_(POISON)
    return value, nbytes, handle


def _fetched(
    handle: aqua_client.OffloadedTensor,
    value: int,
    nbytes: int,
    device: str,
    chance: random.Random,
) -> list[tuple[str, torch.Tensor]]:
    """Into poisoned memory, released with the copy still to come."""
    out = torch.full((nbytes,), POISON, dtype=torch.uint8, device=device)
    handle.fetch(out=out)
    right = (out == value).all()
    out.fill_(POISON)
    if chance.random() < 0.8:
        handle.release()
    return [(f"{nbytes} bytes of {value} from {handle.tier}", right)]


def _wrong(checks: list[tuple[str, torch.Tensor]]) -> list[str]:
    torch.cuda.synchronize()
    return [words for words, right in checks if not bool(right)]


def capturing(rounds: int, device: str) -> list[str]:
    """Graphs are captured while the library's thread watches copies that are not done."""
    wrong: list[str] = []
    source = torch.full((8 * 2**20,), 7, dtype=torch.uint8, device=device)
    numbers = torch.arange(1024, dtype=torch.float32, device=device)
    busy = torch.cuda.Stream(device)
    handles = []
    for number in range(rounds):
        with torch.cuda.stream(busy):
            busy.wait_stream(torch.cuda.default_stream())
            torch.cuda._sleep(20 * SLEEP_CYCLES)
            handles.append(aqua_client.offload(source))  # its event is asked after meanwhile
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                doubled = numbers * 2
                threading.Event().wait(0.01)  # the library's thread has its turns
                doubled += 1
            graph.replay()
            torch.cuda.synchronize()
        except RuntimeError as error:
            wrong.append(f"capture {number}: {error}")
            continue
        if not torch.equal(doubled, numbers * 2 + 1):
            wrong.append(f"capture {number}: the graph computes something else")
        handles.clear()
    return wrong + _offload_while_capturing(source)


def _offload_while_capturing(source: torch.Tensor) -> list[str]:
    """It raises, and the capture survives that."""
    graph, said = torch.cuda.CUDAGraph(), ""
    other = torch.zeros(16, device=source.device)
    with torch.cuda.graph(graph):
        other += 1
        try:
            aqua_client.offload(source)
        except aqua_client.InvalidRequest as error:
            said = str(error)
        other += 1
    graph.replay()
    torch.cuda.synchronize()
    wrong = [] if "captur" in said else [f"an offload in a capture was not refused: {said!r}"]
    return wrong if float(other[0]) == 2.0 else [*wrong, "the capture did not survive the refusal"]
