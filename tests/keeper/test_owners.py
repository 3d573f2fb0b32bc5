"""Owners of stand-in GPUs: their bytes live and die with their processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.keeper.holders import holder
from tests.keeper.keepers import GPU_BYTES, Keeper, running_keeper
from tests.keeper.peers import MIB, Peer
from tests.nodes import environment, read_line


def load(keeper: Keeper, nbytes: int, *words: str, gpu: str = "SHM-1") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "aqua_daemon", "load", "--gpu", gpu, "--bytes", str(nbytes)]
    return subprocess.Popen(
        [*command, "--keeper-socket", str(keeper.socket), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def wait_until_loaded(owner: subprocess.Popen[str]) -> dict[str, object]:
    assert owner.stdout is not None
    line: dict[str, object] = json.loads(read_line(owner.stdout, seconds=20))
    return line


def end(owner: subprocess.Popen[str]) -> tuple[str, str]:
    owner.kill()
    return owner.communicate(timeout=20)


def owners(daemon: Peer, gpu: str = "SHM-1") -> dict[int, int]:
    return {owner.pid: owner.nbytes for owner in daemon.report(gpu).owners}


def test_an_owner_lives_as_long_as_its_process() -> None:
    """Its bytes are reported under its pid, and gone at once when it is killed."""
    with running_keeper() as keeper, keeper.daemon() as daemon:
        owner = load(keeper, 24 * MIB)
        said = wait_until_loaded(owner)
        assert said == {"event": "loaded", "gpu": "SHM-1", "bytes": 24 * MIB, "pid": owner.pid}
        assert owners(daemon) == {owner.pid: 24 * MIB}
        end(owner)
        assert not daemon.report_when("SHM-1", "none").owners
        assert not owners(daemon, "SHM-0")


def test_a_command_takes_over_the_registration() -> None:
    """The command has the pid that registered, and the bytes are its own until it ends."""
    with running_keeper() as keeper, keeper.daemon() as daemon:
        program = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
        owner = load(keeper, 8 * MIB, "--", sys.executable, "-c", program)
        wait_until_loaded(owner)
        assert owner.stdout is not None
        assert int(read_line(owner.stdout, seconds=20)) == owner.pid
        assert owners(daemon) == {owner.pid: 8 * MIB}
        end(owner)
        assert not daemon.report_when("SHM-1", "none").owners


def test_a_command_that_is_not_there_fails() -> None:
    """Exit status 1 and its name."""
    with running_keeper() as keeper:
        owner = load(keeper, 8 * MIB, "--", "/no/such/program")
        _, errors = owner.communicate(timeout=20)
        assert owner.returncode == 1
        assert "can't run '/no/such/program'" in errors


def test_what_does_not_fit_in_time_fails_with_both_figures() -> None:
    """A load that gets only a part takes it, waits, and gives it back when it gives up."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        daemon.allocate(tenant, gpu="SHM-1", nbytes=32 * MIB)
        owner = load(keeper, 48 * MIB, "--deadline", "1.5")
        assert [entry.nbytes for entry in daemon.report_when("SHM-1", "some").owners] == [32 * MIB]
        _, errors = owner.communicate(timeout=20)
        assert owner.returncode == 1
        assert f"{32 * MIB} of {48 * MIB} bytes on SHM-1 after 1.5 s" in errors
        assert not daemon.report_when("SHM-1", "none").owners


def test_a_load_grows_as_memory_is_freed() -> None:
    """What is taken back for it while it waits is its own."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant, gpu="SHM-1", nbytes=32 * MIB)
        owner = load(keeper, 48 * MIB)
        assert daemon.report_when("SHM-1", "some").owners[0].nbytes == 32 * MIB
        daemon.free(slab)
        assert wait_until_loaded(owner)["bytes"] == 48 * MIB
        assert owners(daemon) == {owner.pid: 48 * MIB}
        end(owner)


def test_a_load_ends_with_its_keeper() -> None:
    """Without a keeper there is no registration: exit status 1, and why."""
    with running_keeper() as keeper:
        owner = load(keeper, 8 * MIB)
        wait_until_loaded(owner)
        keeper.end()
        _, errors = owner.communicate(timeout=20)
        assert owner.returncode == 1
        assert "the keeper has ended" in errors


def test_a_load_without_a_keeper_fails(tmp_path: Path) -> None:
    """Nobody listening is exit status 1 with the socket's path."""
    from aqua_daemon.keeper.owner import run

    path = tmp_path / "nobody.sock"
    assert run("SHM-0", MIB, path) == 1


def test_registering_sets_the_bytes_of_a_process() -> None:
    """A second registration replaces the first; 0 ends it; more than is free is refused."""
    with running_keeper() as keeper, keeper.daemon() as daemon:
        me = os.getpid()
        assert daemon.register("SHM-1", 16 * MIB).owner_registered.nbytes == 16 * MIB
        assert owners(daemon) == {me: 16 * MIB}
        refused = daemon.register("SHM-1", GPU_BYTES + 1)
        assert refused.failed.code == "RESOURCE_EXHAUSTED"
        assert owners(daemon) == {me: 16 * MIB}
        taken = daemon.register("SHM-1", GPU_BYTES + 1, what_fits=True)
        assert taken.owner_registered.nbytes == GPU_BYTES
        assert daemon.register("SHM-1", 4 * MIB).owner_registered.nbytes == 4 * MIB
        assert daemon.register("SHM-1", 0).owner_registered.nbytes == 0
        assert not owners(daemon)


def test_a_registration_outlives_its_connection() -> None:
    """It ends with the process, not with the socket."""
    with running_keeper() as keeper, keeper.daemon() as daemon:
        with keeper.peer() as owner:
            owner.register("SHM-1", 16 * MIB)
        assert owners(daemon) == {os.getpid(): 16 * MIB}


def test_owners_and_slabs_share_a_gpu() -> None:
    """Neither gets what the other has."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        daemon.register("SHM-0", 48 * MIB)
        refused = daemon.answer(daemon.ask_for_slab(tenant, nbytes=32 * MIB))
        assert refused.failed.code == "RESOURCE_EXHAUSTED"
        assert f"its own processes {48 * MIB}" in refused.failed.message
        daemon.allocate(tenant, nbytes=16 * MIB)
        assert daemon.register("SHM-0", 49 * MIB).failed.code == "RESOURCE_EXHAUSTED"


def test_reports_come_each_second_and_after_each_change() -> None:
    """Nobody has to ask: a change of owners is told at once, and silence means trouble."""
    with running_keeper() as keeper, keeper.daemon() as daemon:
        with keeper.peer() as owner:
            owner.register("SHM-1", MIB)
        assert daemon.report_when("SHM-1", "some").owners[0].nbytes == MIB
        for _ in range(4):
            assert daemon.next_report("SHM-0").total_bytes == GPU_BYTES


def test_an_owner_that_follows_its_input_grows_and_shrinks() -> None:
    """Each line is what it uses from then on, under one pid; it ends with its input."""
    with running_keeper() as keeper, keeper.daemon() as daemon:
        owner = load(keeper, 8 * MIB, "--follow")
        assert wait_until_loaded(owner)["bytes"] == 8 * MIB
        assert owner.stdin is not None
        for size in (24, 4):
            owner.stdin.write(f"{size}MiB\n")
            owner.stdin.flush()
            assert wait_until_loaded(owner)["bytes"] == size * MIB
            assert owners(daemon) == {owner.pid: size * MIB}
        owner.communicate(timeout=20)
        assert owner.returncode == 0


def test_an_owner_that_is_told_nonsense_ends() -> None:
    """It says what a size is."""
    with running_keeper() as keeper:
        owner = load(keeper, 8 * MIB, "--follow")
        wait_until_loaded(owner)
        _, told = owner.communicate("much\n", timeout=20)
        assert owner.returncode == 1
        assert "bytes = 'much'" in told
