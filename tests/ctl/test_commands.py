"""aquactl without a daemon, or with one that misbehaves: exit status and words."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aqua_protos import presence_pb2
from aqua_protos.framing import send_frame

from tests.nodes import environment, short_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


def aquactl(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run aquactl as an operator would."""
    return subprocess.run(
        [sys.executable, "-m", "aqua_daemon.ctl", *words],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def listening(directory: Path) -> socket.socket:
    """A presence socket behind which nothing need answer."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(directory / "aqua.sock.presence"))
    server.listen()
    server.settimeout(20)
    return server


def test_no_daemon_is_exit_status_3_with_the_place_and_the_remedy(directory: Path) -> None:
    """One line on stderr, nothing on stdout, no traceback."""
    run = aquactl("status", "--socket", str(directory / "aqua.sock"))
    assert run.returncode == 3
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert f"no daemon at {directory}/aqua.sock.presence" in run.stderr
    assert "systemctl status aqua-daemon" in run.stderr


def test_the_socket_may_come_from_the_environment(directory: Path) -> None:
    """AQUA_SOCKET names the daemon for aquactl as it does for clients."""
    run = aquactl("leases", "--json", AQUA_SOCKET=str(directory / "other.sock"))
    assert run.returncode == 3
    assert f"{directory}/other.sock.presence" in run.stderr


def test_a_daemon_that_does_not_answer_costs_the_timeout_and_no_more(directory: Path) -> None:
    """A stopped daemon's socket still accepts; aquactl gives up when it said that it would."""
    with listening(directory):
        start = time.monotonic()
        run = aquactl("status", "--socket", str(directory / "aqua.sock"), "--timeout", "0.2")
    assert run.returncode == 3
    assert "no answer in time" in run.stderr
    assert time.monotonic() - start < 20


def test_a_refusal_is_shown_in_the_daemons_own_words(directory: Path) -> None:
    """Exit status 1: the daemon was reached, and said no."""
    with listening(directory) as server:
        words = [sys.executable, "-m", "aqua_daemon.ctl", "status"]
        words += ["--socket", str(directory / "aqua.sock")]
        with subprocess.Popen(
            words, env=environment(), stderr=subprocess.PIPE, text=True
        ) as running:
            connection, _ = server.accept()
            with connection:
                refusal = presence_pb2.Refusal(code="RESOURCE_EXHAUSTED", message="too many of you")
                frame = presence_pb2.DaemonFrame(refusal=refusal)
                send_frame(connection, frame.SerializeToString())
                _, errors = running.communicate(timeout=30)
    assert running.returncode == 1
    assert errors == "aquactl: too many of you\n"


@pytest.mark.parametrize(
    "words",
    [("stauts",), ("status", "--timeout", "never"), ("leases", "--state", "gone"), ("status", "x")],
)
def test_a_wrong_call_is_exit_status_2(words: tuple[str, ...]) -> None:
    """And says which word was wrong."""
    run = aquactl(*words)
    assert run.returncode == 2
    assert words[-1] in run.stderr


@pytest.mark.parametrize(
    "words",
    [("drain",), ("drain", "SHM-1", "--all"), ("drain", "--all", "--deadline", "0"), ("undrain",)],
)
def test_which_gpus_to_drain_is_said_clearly_or_nothing_is_asked(words: tuple[str, ...]) -> None:
    """All are meant only where that is said: a usage error, without a daemon already."""
    assert aquactl(*words, "--socket", "/nowhere/aqua.sock").returncode == 2
