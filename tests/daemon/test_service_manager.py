"""What a service manager hears, over a real datagram socket."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator

import pytest

from aqua_daemon.adapters.service_manager import ServiceManager
from tests.nodes import short_directory


@pytest.fixture
def manager() -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd has it, and its address."""
    with (
        short_directory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening,
    ):
        address = str(directory / "notify")
        listening.bind(address)
        listening.settimeout(10)
        yield listening, address


def test_the_manager_is_told_what_is_said(manager: tuple[socket.socket, str]) -> None:
    """One datagram a state, in order."""
    listening, address = manager
    told = ServiceManager(address)
    told.tell("READY=1")
    told.tell("STOPPING=1")
    assert [listening.recv(100), listening.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_an_abstract_address_is_understood() -> None:
    """`@name` stands for a name outside the file system."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")  # the kernel picks an abstract name
        listening.settimeout(10)
        ServiceManager("@" + listening.getsockname()[1:].decode()).tell("READY=1")
        assert listening.recv(100) == b"READY=1"


def test_the_watchdog_is_pinged_thrice_in_its_period(manager: tuple[socket.socket, str]) -> None:
    """The pings come from the loop, until it is told to end."""
    listening, address = manager
    listening.settimeout(0)

    async def scenario() -> list[bytes]:
        loop = asyncio.get_running_loop()
        pinging = asyncio.create_task(ServiceManager(address).ping(period_seconds=0.06))
        async with asyncio.timeout(10):
            pings = [await loop.sock_recv(listening, 100) for _ in range(4)]
        pinging.cancel()
        return pings

    assert asyncio.run(scenario()) == [b"WATCHDOG=1"] * 4


def test_two_pings_may_come_late_before_the_daemon_is_taken_for_dead(
    manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a period of 15 s, as the unit has it, each third."""
    _listening, address = manager
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise TimeoutError

    monkeypatch.setattr(asyncio, "sleep", pause)
    with pytest.raises(TimeoutError):
        asyncio.run(ServiceManager(address).ping(period_seconds=15.0))
    assert pauses == [5.0, 5.0, 5.0]


def test_without_a_watchdog_nothing_is_pinged(manager: tuple[socket.socket, str]) -> None:
    """The task ends at once."""
    _listening, address = manager
    asyncio.run(ServiceManager(address).ping(period_seconds=None))


def test_without_a_manager_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    """A daemon that was started by hand tells nobody, and that is no error."""
    ServiceManager("").tell("READY=1")
    assert caplog.records == []


def test_a_manager_that_is_gone_is_logged_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Telling never raises."""
    with caplog.at_level(logging.WARNING):
        ServiceManager("/nowhere/notify").tell("READY=1")
    assert "READY=1" in caplog.text
