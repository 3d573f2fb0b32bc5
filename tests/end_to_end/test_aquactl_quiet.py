"""`aquactl quiesce` and `aquactl run` on a real node."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import aqua_client
from tests.end_to_end.test_lost_grants import stopped_keeper
from tests.nodes import MIB, Node, environment, read_line, running_node, wait_until

SECONDS = 20.0
OBEDIENT = "trap 'exit 3' TERM; trap 'exit 4' INT; echo up; while :; do sleep 0.02; done"


@pytest.fixture
def node() -> Iterator[Node]:
    with running_node(gpus=2, gpu_bytes=64 * MIB) as running:
        yield running


def words_of(node: Node, command: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "aqua_daemon.ctl", command, "--socket", node.socket, *words]


def aquactl(node: Node, command: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words_of(node, command, *words),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@contextmanager
def running(node: Node, command: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        words_of(node, command, *words),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return read_line(process.stdout, seconds=SECONDS)


def quiet_seconds(node: Node) -> float:
    run = aquactl(node, "status", "--json")
    gpus = {gpu["gpu"]: gpu for gpu in json.loads(run.stdout)["gpus"]}
    assert gpus["SHM-0"]["quiet_seconds"] == 0
    return float(gpus["SHM-1"]["quiet_seconds"])


@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_a_quiesced_gpu_is_left_alone_until_ctrl_c(node: Node) -> None:
    """Data goes elsewhere, what comes back is freed afterwards, and the end is exit status 0."""
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        before = client.offload(torch.ones(MIB, dtype=torch.uint8))
        assert before.tier == "peer"
        with running(node, "quiesce", "SHM-1", "--seconds", "60") as process:
            assert next_line(process) == "SHM-1 is left alone for 60 s; Ctrl-C ends it\n"
            assert 0 < quiet_seconds(node) <= 60
            big = client.offload(torch.ones(24 * MIB, dtype=torch.uint8))
            assert big.tier in {"host", "mixed"}
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0
            assert next_line(process) == "SHM-1 goes on\n"
        assert quiet_seconds(node) == 0


@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_what_was_ordered_before_is_waited_for(node: Node) -> None:
    """A slab that is just being made comes first; only then is the GPU said to be left alone."""
    with (
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
        stopped_keeper(node),
    ):
        late = client.offload(torch.ones(MIB, dtype=torch.uint8))
        assert (late.tier, late.reason) == ("host", "timeout")
        with running(node, "quiesce", "SHM-1") as process:
            wait_until(lambda: quiet_seconds(node) > 0, what="it was asked for")
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 0.5)[0] == []
            os.kill(node.keeper_pid(), signal.SIGCONT)
            assert "left alone" in next_line(process)


def test_a_quiet_ends_with_its_holder(node: Node) -> None:
    """Killed for real, it keeps no GPU from lending."""
    with running(node, "quiesce", "SHM-1") as process:
        assert "left alone for 600 s" in next_line(process)
        process.kill()
        process.wait()
        wait_until(lambda: quiet_seconds(node) == 0, what="it is quiet no more")


def test_run_leaves_the_gpu_alone_until_the_command_has_settled(node: Node) -> None:
    """Quiet before the command's first instruction, over while it still runs."""
    look = " ".join(words_of(node, "status", "--json"))
    story = f"{look}; echo; echo started; {OBEDIENT}"
    with running(
        node, "run", "--gpu", "SHM-1", "--settle", "3", "--", "sh", "-c", story
    ) as process:
        document = ""
        while (line := next_line(process)) != "started\n":
            assert line
            document += line
        (_, gpu) = json.loads(document)["gpus"]
        assert gpu["quiet_seconds"] > 0
        wait_until(lambda: quiet_seconds(node) == 0, what="it has settled")
        assert next_line(process) == "up\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 3


@pytest.mark.parametrize(
    ("story", "number", "status"),
    [
        (OBEDIENT, signal.SIGTERM, 3),
        (OBEDIENT, signal.SIGINT, 4),
        ("echo up; exec sleep 60", signal.SIGUSR1, 138),
    ],
)
def test_run_passes_signals_on(node: Node, story: str, number: signal.Signals, status: int) -> None:
    """The command decides what to do about them; dying of one is told as a shell tells it."""
    with running(node, "run", "--gpu", "SHM-1", "--", "bash", "-c", story) as process:
        assert next_line(process) == "up\n"
        process.send_signal(number)
        assert process.wait(SECONDS) == status
    assert quiet_seconds(node) == 0


def test_run_ends_as_its_command_ends(node: Node) -> None:
    """Its own exit status, its own output; a command that is not there is 127."""
    run = aquactl(node, "run", "--gpu", "SHM-1", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (run.returncode, run.stdout, run.stderr) == (7, "out\n", "err\n")
    run = aquactl(node, "run", "--gpu", "SHM-1", "--", "/no/such/command", "--flag")
    assert run.returncode == 127
    assert "/no/such/command: No such file" in run.stderr
    assert quiet_seconds(node) == 0


def test_run_starts_the_command_without_a_daemon_and_not_on_a_gpu_that_is_not_there(
    node: Node,
) -> None:
    """A server must start without us; a wrong name is a mistake that it should hear of."""
    run = aquactl(node, "run", "--gpu", "SHM-9", "--", "echo", "started")
    assert (run.returncode, run.stdout) == (1, "")
    assert "SHM-9 is not on this node" in run.stderr
    node.kill_daemon()
    run = aquactl(node, "run", "--gpu", "SHM-1", "--", "echo", "started")
    assert (run.returncode, run.stdout) == (0, "started\n")
    assert "started all the same" in run.stderr


def test_a_dry_run_starts_nothing(node: Node) -> None:
    """It says what would be done."""
    run = aquactl(node, "run", "--gpu", "SHM-1", "--dry-run", "--", "echo", "started")
    assert (run.returncode, run.stdout.count("\n")) == (0, 1)
    assert run.stdout.startswith("dry run: would take back what is lent of SHM-1")
    run = aquactl(node, "quiesce", "SHM-1", "--dry-run")
    assert run.stdout == "dry run: would leave SHM-1 alone for 600 s at most\n"
