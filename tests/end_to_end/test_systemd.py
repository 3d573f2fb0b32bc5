"""The shipped units under a real systemd: installed as the README says, restarted under load."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.compat.releases import CLIENT_PATH
from tests.daemon.test_readme_install import block_after
from tests.end_to_end.programs import Program
from tests.end_to_end.systemd_machine import (
    IMPORTS,
    LIBRARIES,
    PYTHON,
    Machine,
    running_machine,
)
from tests.nodes import wait_until

BACK_SECONDS = 20.0  # ten times what the README promises
WRAPPER = f"""#!/bin/sh
export LD_LIBRARY_PATH={LIBRARIES} PYTHONPATH={IMPORTS}
exec {PYTHON} -m {{module}} "$@"
"""


def install(machine: Machine) -> None:
    """What the README says, but that the programs are the checkout's: no index is asked."""
    making, *lines = block_after("## Install on a server")
    assert making.startswith("python3 -m venv /opt/aqua && ")
    for name, module in (("aqua-daemon", "aqua_daemon"), ("aquactl", "aqua_daemon.ctl")):
        machine.write(f"/opt/aqua/bin/{name}", WRAPPER.format(module=module), mode=0o755)
    typed(machine, lines)
    machine.run("sed", "-i", "s/^# shm_gpus = .*/shm_gpus = 4/", "/etc/aqua/aqua-daemon.toml")
    machine.run("systemctl", "enable", "aqua-keeper@shm")
    typed(machine, block_after("*First look.*"))


def typed(machine: Machine, lines: list[str]) -> None:
    machine.run("bash", "-c", "\n".join(["set -e", "cd /opt/checkout", *lines]))


@contextmanager
def client(machine: Machine, seed: int) -> Iterator[Program]:
    """One under load, in a unit of its own."""
    variables = {"PYTHONPATH": IMPORTS, "LD_LIBRARY_PATH": LIBRARIES, "AQUA_HOME_GPU": "SHM-0"}
    words = [PYTHON, "-P", f"/opt/checkout/{CLIENT_PATH}", str(seed)]
    process = subprocess.Popen(
        machine.unit_command(*words, **variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Program(process)
    finally:
        process.kill()
        process.communicate()


def stats(program: Program) -> dict[str, object]:
    """How it stands; all that it has parked is as it went, on a peer, and never moved."""
    found = program.ask()
    assert (found["intact"], found["wrong"], found["tiers"]) == (True, 0, ["peer"]), found
    counted = found["stats"]
    assert isinstance(counted, dict)
    names = ("revokes_served", "evacuated_bytes", "leases_lost", "session_opens")
    assert [counted[name] for name in names] == [0, 0, 0, 1]
    return counted


def process_of(machine: Machine, unit: str) -> int:
    return int(machine.run("systemctl", "show", "-P", "MainPID", unit))


def until_back(programs: tuple[Program, ...], times: int) -> None:
    """Wait until each has re-attached as often as the daemon was replaced."""

    def are_back() -> bool:
        found = [stats(program) for program in programs]
        return all(one["attached"] and one["session_reattaches"] == times for one in found)

    wait_until(are_back, seconds=BACK_SECONDS, what=f"all are back for time {times}")


def until_granted(program: Program) -> None:
    wait_until(lambda: program.ask("grow")["tier"] == "peer", what="grants resume")


@pytest.mark.long
@pytest.mark.limit(300)
def test_systemctl_restart_under_load_takes_nothing(tmp_path: Path) -> None:
    """No revoke, no lost byte, the keeper lives on; afterwards all of it is uninstalled."""
    with running_machine(tmp_path) as machine:
        install(machine)
        with client(machine, 1) as one, client(machine, 2) as other:
            keeper = process_of(machine, "aqua-keeper@shm")
            commands = (("restart", "aqua-daemon"), ("kill", "-s", "KILL", "aqua-daemon"))
            for times, command in enumerate(commands, start=1):
                daemon, started_at = process_of(machine, "aqua-daemon"), time.monotonic()
                machine.run("systemctl", *command)
                until_back((one, other), times)
                print(f"{' '.join(command)}: back after {time.monotonic() - started_at:.2f} s")
                until_granted(one)
                until_granted(other)
                assert process_of(machine, "aqua-daemon") not in {0, daemon}
                assert process_of(machine, "aqua-keeper@shm") == keeper
            stats(one)
            stats(other)
        machine.run("systemctl", "stop", "aqua-daemon")
        machine.run("systemctl", "stop", "aqua-keeper@*")
        typed(machine, block_after("*Uninstall.*"))
        assert machine.run("bash", "-c", "ls -d /run/aqua /etc/aqua 2>/dev/null || true") == ""
