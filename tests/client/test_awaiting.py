"""Copies that an event loop awaits: it goes on meanwhile, and cancelling leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator

import pytest
import torch

import aqua_client
from aqua_client import awaiting, copying
from aqua_client.awaiting import THREAD_NAME, THREADS, in_thread
from aqua_client.client import Client
from aqua_client.settings import ClientSettings
from tests.nodes import short_directory, wait_until

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")


@pytest.fixture
def client() -> Iterator[Client]:
    """On host memory."""
    with (
        short_directory() as directory,
        Client(
            ClientSettings(
                socket_path=str(directory / "aqua.sock"),
                host_limit_bytes=2**20,
                close_seconds=5.0,
            )
        ) as made,
    ):
        yield made


class Gate:
    """A copy that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.opened = threading.Event()

    def __call__(self, *_: object) -> str:
        self.begun.set()
        assert self.opened.wait(20.0)
        return "done"

    async def has_begun(self) -> None:
        """The event loop runs, or this would never return."""
        assert await asyncio.to_thread(self.begun.wait, 20.0)


def test_tensors_come_back(client: Client) -> None:
    """Many at a time, by threads of the library's own."""
    tensors = [torch.randn(1000) for _ in range(50)]

    async def there_and_back() -> list[torch.Tensor]:
        handles = await asyncio.gather(*(client.offload_async(one) for one in tensors))
        out = torch.zeros(1000)
        assert await handles[0].fetch_async(out=out) is out
        assert torch.equal(out, tensors[0])
        return await asyncio.gather(*(handle.fetch_async() for handle in handles))

    again = asyncio.run(there_and_back())
    assert all(torch.equal(one, two) for one, two in zip(tensors, again, strict=True))
    names = [thread.name for thread in threading.enumerate() if THREAD_NAME in thread.name]
    assert 0 < len(names) <= THREADS


def test_the_loop_goes_on_during_a_copy(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what it is for."""

    async def fetch() -> None:
        handle = await client.offload_async(torch.ones(3))
        gate = Gate()
        monkeypatch.setattr(copying, "read", gate)
        fetching = asyncio.create_task(handle.fetch_async())
        await gate.has_begun()
        assert not fetching.done()
        gate.opened.set()
        await fetching

    asyncio.run(fetch())


def test_errors_arrive(client: Client) -> None:
    """As from the calls that wait."""

    async def fail() -> None:
        handle = await client.offload_async(torch.ones(3))
        handle.release()
        with pytest.raises(aqua_client.HandleReleased):
            await handle.fetch_async()
        with pytest.raises(aqua_client.UnsupportedTensor):
            await client.offload_async("no tensor")  # type: ignore[arg-type] # what it is about

    asyncio.run(fail())


def test_inference_mode_is_the_callers(client: Client) -> None:
    """The thread has one of its own."""

    async def fetch() -> None:
        handle = await client.offload_async(torch.ones(3))
        assert not (await handle.fetch_async()).is_inference()
        with torch.inference_mode():
            fetched = await handle.fetch_async()
        assert fetched.is_inference()

    asyncio.run(fetch())


def test_a_cancelled_offload_parks_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when its copy has, however often it is cancelled."""
    write, gate = copying.write, Gate()

    def slowly(*given: object) -> None:
        gate()
        write(*given)  # type: ignore[arg-type] # what it was given

    monkeypatch.setattr(copying, "write", slowly)

    async def cancel() -> None:
        offloading = asyncio.create_task(client.offload_async(torch.ones(1000)))
        await gate.has_begun()
        for _ in range(3):
            offloading.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not offloading.done()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await offloading

    asyncio.run(cancel())
    assert client.stats()["host_bytes"] == 0


def test_nothing_writes_to_out_after_a_cancelled_fetch(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller may use its memory for something else; a deadline is a cancellation too."""
    read, gate = copying.read, Gate()

    def slowly(*given: object) -> None:
        gate()
        read(*given)  # type: ignore[arg-type] # what it was given

    async def cancel() -> None:
        handle = await client.offload_async(torch.ones(10))
        monkeypatch.setattr(copying, "read", slowly)
        out, deadline = torch.zeros(10), asyncio.timeout(None)

        async def fetch() -> None:
            async with deadline:
                await handle.fetch_async(out=out)

        fetching = asyncio.create_task(fetch())
        await gate.has_begun()
        deadline.reschedule(0.0)  # it has passed
        for _ in range(5):
            await asyncio.sleep(0)
        assert deadline.expired()
        assert not fetching.done()
        gate.opened.set()
        with pytest.raises(TimeoutError):
            await fetching
        assert torch.equal(out, torch.ones(10))
        assert all(place.pins == 0 for place in handle._stored.places)

    asyncio.run(cancel())


def test_what_has_not_begun_never_does() -> None:
    """There are so many threads; cancelling one that waits for its turn is at once."""
    gates = [Gate() for _ in range(THREADS)]
    ran: list[str] = []

    async def cancel() -> None:
        busy = [asyncio.create_task(in_thread(gate, device=CPU)) for gate in gates]
        for gate in gates:
            await gate.has_begun()
        waiting = asyncio.create_task(in_thread(lambda: ran.append("it did"), device=CPU))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for gate in gates:
            gate.opened.set()
        assert await asyncio.gather(*busy) == ["done"] * THREADS

    asyncio.run(cancel())
    assert ran == []


def test_a_failure_after_a_cancellation_is_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """The caller has been told that it was cancelled; nobody is told twice."""
    gate = Gate()

    def fail() -> None:
        gate()
        raise RuntimeError("no copy")

    async def cancel() -> None:
        task = asyncio.create_task(in_thread(fail, device=CPU))
        await gate.has_begun()
        task.cancel()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    gc.collect()
    assert not caplog.records


def test_a_forked_child_has_threads_of_its_own() -> None:
    """Its parent's do not exist there."""

    async def answer() -> int:
        async with asyncio.timeout(10.0):
            return await in_thread(lambda: 42, device=CPU)

    assert asyncio.run(answer()) == 42
    child = os.fork()
    if child == 0:
        os._exit(0 if asyncio.run(answer()) == 42 else 1)
    statuses: list[int] = []
    wait_until(lambda: _ended(child, statuses), seconds=20.0, what="the child ends")
    assert statuses == [0]
    assert awaiting._threads._executor is not None


def _ended(child: int, statuses: list[int]) -> bool:
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        statuses.append(os.waitstatus_to_exitcode(status))
    return bool(pid)
