"""Prefetching beside batches, streams and inference mode, and at the end of a client or process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from aqua_client import batches, copying
from aqua_client.errors import HandleReleased, InvalidRequest
from tests.client.pagers import paging, park, random_bytes, two_gpus
from tests.client.prefetches import NBYTES, prefetch, stat
from tests.fakes.session import MIB, FakeNode
from tests.fakes.streams import FakeStreams
from tests.nodes import environment, wait_until


def test_batches_and_async_fetches_take_what_was_prefetched() -> None:
    """Beside others, into new tensors and into given ones."""
    tensors = [random_bytes(NBYTES, seed=seed) for seed in range(3)]
    with paging(two_gpus()) as pager:
        handles = [park(pager, tensor) for tensor in tensors]
        prefetch(handles[1])
        fetched = batches.fetch_many(pager, handles)
        assert all(map(torch.equal, fetched, tensors))
        assert stat(pager, "fetches") == 3
        prefetch(handles[0])
        outs = [torch.zeros(NBYTES, dtype=torch.uint8) for _ in tensors]
        batches.fetch_many(pager, handles, outs)
        assert all(map(torch.equal, outs, tensors))
        prefetch(handles[2])
        assert torch.equal(asyncio.run(handles[2].fetch_async()), tensors[2])
        assert stat(pager, "prefetched_bytes") == 0


def test_a_batch_that_fails_writes_nothing_that_was_prefetched() -> None:
    """All are fetched, or none has been written."""
    with paging(two_gpus()) as pager:
        handles = [park(pager, random_bytes(NBYTES)) for _ in range(2)]
        prefetch(handles[0])
        handles[1].release()
        outs = [torch.zeros(NBYTES, dtype=torch.uint8) for _ in handles]
        with pytest.raises(HandleReleased):
            batches.fetch_many(pager, handles, outs)
        assert not outs[0].any()


def test_a_closed_client_holds_nothing_prefetched() -> None:
    """Its handles say so."""
    with paging(two_gpus()) as pager:
        handle = park(pager, random_bytes(NBYTES))
        prefetch(handle)
    assert handle._stored.prefetched is None
    with pytest.raises(HandleReleased):
        handle.fetch()


def test_in_inference_mode_what_is_prefetched_can_be_used_outside() -> None:
    """As if it had been fetched there."""
    with paging(two_gpus()) as pager:
        handle = park(pager, torch.zeros(10))
        with torch.inference_mode():
            prefetch(handle)
        fetched = handle.fetch()
        assert not fetched.is_inference()
        fetched.add_(1)


def test_an_interrupt_is_not_kept_for_the_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the caller itself enqueues, it is the caller's; the fetch reads as if nothing had been."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    streams, tensor = FakeStreams(is_quick=True), random_bytes(MIB)
    with paging(FakeNode(), streams=streams) as pager:
        handle = park(pager, tensor)
        with monkeypatch.context() as patch:
            patch.setattr(copying, "read", interrupt)
            with pytest.raises(KeyboardInterrupt):
                handle.prefetch()
        assert torch.equal(handle.fetch(), tensor)
        assert stat(pager, "prefetched_bytes") == 0


def test_where_copies_are_enqueued_the_stream_waits_and_not_the_caller() -> None:
    """The copy is beside the current stream, and its pins go when it is over."""
    streams, node = FakeStreams(is_quick=True), FakeNode()
    tensor = random_bytes(MIB)
    with paging(node, streams=streams) as pager:
        handle = park(pager, tensor)
        wait_until(lambda: not pager._tiers.flights, what="written")
        streams.is_quick = False
        handle.prefetch()
        copied = streams.events[-1]
        assert streams.recorded_aside == 1
        assert streams.asides[-1].nbytes == MIB
        assert copied.waits == 0
        (place,) = handle._stored.places
        assert place.pins == 1
        fetched = handle.fetch()
        assert copied.waits == 1
        assert streams.handed_over[-1] is fetched
        assert torch.equal(fetched, tensor)
        streams.finish_all()
        wait_until(lambda: place.pins == 0, what="let go")


def test_a_stream_that_is_captured_refuses_a_prefetch() -> None:
    """As it would the fetch."""
    streams = FakeStreams(is_quick=True)
    with paging(FakeNode(), streams=streams) as pager:
        handle = park(pager, random_bytes(NBYTES))
        streams.is_capturing = True
        refused: list[Callable[[], object]] = [handle.prefetch, handle.fetch]
        for call in refused:
            with pytest.raises(InvalidRequest):
                call()
        streams.is_capturing = False


ENDING = """
import atexit, threading, time, warnings
atexit.register(lambda: print(time.monotonic() - ended_at, flush=True))  # the last of all
import torch, aqua_client
from aqua_client import copying
warnings.simplefilter("ignore", aqua_client.AquaWarning)
handles = [aqua_client.offload(torch.zeros(32 * 2**20, dtype=torch.uint8)) for _ in range(6)]
copying.CHUNK_BYTES = 2**20
chunks = copying._chunks
def slowly(spans):
    for chunk in chunks(spans):
        threading.Event().wait(0.1)
        yield chunk
copying._chunks = slowly
for handle in handles:
    handle.prefetch()
ended_at = time.monotonic()
"""


def test_a_process_ends_without_waiting_for_its_prefetches() -> None:
    """All of them would take 6 s; the promise is 0.2 s."""
    program = [sys.executable, "-c", ENDING]
    chosen = {"AQUA_SOCKET": "/nonexistent/aqua.sock", "AQUA_HOST_LIMIT": "1GiB"}
    done = subprocess.run(
        program,
        env=environment() | chosen,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=50,
    )
    assert float(done.stdout) < 10 * 0.2
