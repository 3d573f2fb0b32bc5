"""When keepers start and end: the lock, SIGTERM with and without holders, lingering."""

from __future__ import annotations

import signal
import stat
from pathlib import Path

import pytest

from aqua_daemon.keeper.lifetime import Lifetime
from aqua_daemon.keeper.program import keep_shm
from tests.keeper.holders import holder
from tests.keeper.keepers import GPU_BYTES, Keeper, running_keeper
from tests.nodes import short_directory, wait_until

ALONE = {"has_daemon": False, "has_owners": False, "has_living_holders": False}


@pytest.mark.parametrize("busy", sorted(ALONE))
def test_lingering_counts_only_the_time_alone(busy: str) -> None:
    """A daemon, an owner or a living holder keeps it; the time starts anew when they go."""
    lifetime = Lifetime(linger_seconds=60.0)
    assert not lifetime.is_over(0.0, **ALONE)
    assert not lifetime.is_over(59.0, **ALONE)
    assert not lifetime.is_over(1000.0, **{**ALONE, busy: True})
    assert not lifetime.is_over(1001.0, **ALONE)
    assert not lifetime.is_over(1060.0, **ALONE)
    assert lifetime.is_over(1061.0, **ALONE)


def test_without_lingering_it_stays() -> None:
    """A keeper that was started from outside ends when it is told to."""
    lifetime = Lifetime(linger_seconds=None)
    assert not lifetime.is_over(1e9, **ALONE)


def test_told_to_end_it_waits_for_living_holders_and_no_longer() -> None:
    """One SIGTERM waits for holders, not for a daemon; two wait for nobody."""
    lifetime = Lifetime(linger_seconds=None)
    lifetime.ask_to_end()
    held = {"has_daemon": True, "has_owners": True, "has_living_holders": True}
    assert not lifetime.is_over(0.0, **held)
    assert lifetime.is_over(0.0, **{**held, "has_living_holders": False})
    lifetime.ask_to_end()
    assert lifetime.is_over(0.0, **held)


def test_sigterm_without_holders_ends_it_in_order() -> None:
    """Exit status 0, and the socket's file is gone."""
    with running_keeper() as keeper, keeper.daemon():
        assert stat.S_IMODE(keeper.socket.stat().st_mode) == 0o600
        keeper.signal(signal.SIGTERM)
        assert keeper.wait_for_end() == 0
        assert not keeper.socket.exists()


def test_sigterm_waits_for_the_last_living_holder() -> None:
    """It grants nothing new, keeps what is held readable, and ends with the last holder."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        tenant.map(slab.descriptor)
        tenant.write(b"held")
        keeper.signal(signal.SIGTERM)
        wait_until(lambda: "living processes hold slabs" in keeper.log(), what="it says so")
        refused = daemon.answer(daemon.ask_for_slab(tenant, lease=2))
        assert refused.failed.code == "UNAVAILABLE"
        assert tenant.read(4) == b"held"
        tenant.kill()
        assert keeper.wait_for_end() == 0


def test_a_second_sigterm_ends_it_in_any_case() -> None:
    """Who asks twice means it; what is mapped stays its holder's even so."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        tenant.map(slab.descriptor)
        tenant.write(b"mapped")
        keeper.signal(signal.SIGTERM)
        wait_until(lambda: "living processes hold slabs" in keeper.log(), what="it says so")
        keeper.signal(signal.SIGTERM)
        assert keeper.wait_for_end() == 0
        assert tenant.read(6) == b"mapped"


def test_a_lingering_keeper_ends_alone() -> None:
    """With a daemon it stays; once alone for its time it is gone without being told."""
    with running_keeper("--linger", "0.2") as keeper:
        with keeper.daemon() as daemon, holder() as tenant:
            daemon.allocate(tenant)
            for _ in range(4):
                daemon.next_report()
        # The holder is dead: what it held is nobody's, and does not keep the keeper.
        assert keeper.wait_for_end() == 0


def test_a_living_keeper_is_never_displaced() -> None:
    """The second one on its socket fails with the reason, and the first serves on."""
    with running_keeper() as keeper:
        second = Keeper(keeper.socket.parent)
        assert second.wait_for_end() == 1
        assert "a keeper already serves there" in second.log()
        with keeper.daemon() as daemon:
            assert daemon.report().total_bytes == GPU_BYTES


def test_what_a_crash_left_behind_is_replaced() -> None:
    """After SIGKILL the socket's and the lock's files are there, and stop nobody."""
    with short_directory() as directory:
        first = Keeper(directory)
        first.wait_until_ready()
        first.end()
        assert first.socket.exists()
        second = Keeper(directory)
        try:
            second.wait_until_ready()
            with second.daemon() as daemon:
                assert daemon.report().total_bytes == GPU_BYTES
        finally:
            second.end()


def test_a_keeper_that_cant_listen_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1 and the path: no directory, or a path too long for a socket."""
    for path in (tmp_path / "missing" / "keeper.sock", tmp_path / ("long" * 40)):
        assert keep_shm(gpus=1, gpu_bytes=GPU_BYTES, socket=path) == 1
        assert str(path) in capsys.readouterr().err
    assert keep_shm(gpus=0, gpu_bytes=GPU_BYTES, socket=tmp_path / "none.sock") == 1
    assert "give at least 1 GPU" in capsys.readouterr().err
