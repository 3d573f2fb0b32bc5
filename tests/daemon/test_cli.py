"""The command line as a shell sees it: exit statuses, and messages that say what to type."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqua_daemon import __version__, cli
from aqua_daemon.config import DEFAULTS
from tests.nodes import MIB, environment, read_line, short_directory, wait_until


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as made:
        yield made


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aqua_daemon", *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "aqua_daemon", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def keeper(directory: Path) -> Iterator[str]:
    """The socket of a keeper of two small GPUs."""
    path = directory / "k"
    words = ("--shm-gpus", "2", "--shm-gpu-bytes", "32MiB", "--socket", str(path))
    process = started("keeper", *words)
    try:
        wait_until(lambda: connects(path), seconds=20, what="the keeper listens")
        yield str(path)
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == 0


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def test_version_is_the_packages() -> None:
    """One line on stdout, and a success."""
    found = run("--version")
    assert (found.returncode, found.stdout) == (0, f"aqua-daemon {__version__}\n")


def test_help_shows_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    """A setting without a flag could not be set; its default is seen where it is looked for."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for key, default in DEFAULTS.items():
        assert f"--{key.replace('_', '-')}" in text
        if default not in {"", "false"}:
            assert f"(default: {default})" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shm-gpus", "0"), "shm_gpus = '0': give a whole number from 1 to 64"),
        (("--gpu", "0"), "gpu = '0': give a UUID"),
        (("--keepers", "external"), "gpu = '': name each GPU whose keeper runs"),
        (("--shm-gpus", "8", "--shm-gpu-bytes", "lots"), "shm_gpu_bytes = 'lots'"),
        (("--shm-gpus", "8", "--metrics", "0.0.0.0:1"), "--metrics-any-address"),
        (("--shm-gpu", "8"), "unrecognized arguments"),
        (("keeper", "--shm-gpus", "0", "--socket", "/tmp/k"), "shm_gpus = '0'"),
        (("keeper",), "shm_gpus = '': say what to keep: --gpu UUID, or how many stand-ins"),
        (("keeper", "--gpu", "0"), "gpu = '0': give a UUID"),
        (("keeper", "--shm-gpus", "65"), "64 (given in --shm-gpus)"),
        (("keeper", "--socket", "/tmp/k"), "shm_gpus = '': give a whole number"),
        (("keeper", "--shm-gpus", "1", "--socket", "k"), "socket = 'k': give an absolute path"),
        (("keeper", "--shm-gpus", "1", "--socket", "/tmp/k", "--linger", "x"), "linger = 'x'"),
        (("load", "--gpu", "SHM-0"), "--bytes"),
        (("load", "--gpu", "SHM-0", "--bytes", "0"), "bytes = '0': give 1 to 4TiB"),
        (("load", "--gpu", "SHM-0", "--bytes", "1", "--deadline", "-1"), "0 to 600 seconds"),
        (("load", "--gpu", "SHM-0", "--bytes", "1", "--keeper-socket", "/" + "x" * 107), "108"),
        (("steal",), "unrecognized arguments"),
    ],
)
def test_wrong_usage_says_what_is_wrong_and_exits_2(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is started, nothing is on stdout."""
    try:
        status = cli.main(words)
    except SystemExit as ended:
        status = int(str(ended.code))
    out, err = capsys.readouterr()
    assert (status, out) == (cli.USAGE, "")
    assert message in err


def test_a_keeper_ends_when_it_is_told_to(keeper: str) -> None:
    """It serves its socket until SIGTERM; the fixture asserts its status."""
    assert connects(Path(keeper))


def test_a_keeper_as_a_unit_starts_it_is_where_the_daemon_looks(directory: Path) -> None:
    """From the same file: how many stand-ins, of which size, at which socket."""
    described = directory / "aqua-daemon.toml"
    described.write_text(
        f'socket = "{directory}/s"\nshm_gpus = 2\nshm_gpu_bytes = "32MiB"\nkeepers = "external"\n'
        'metrics = "127.0.0.1:0"\n'
    )
    keeper = started("keeper", "--config", str(described))
    daemon = started("--config", str(described))
    try:
        assert daemon.stdout is not None
        assert json.loads(read_line(daemon.stdout, seconds=20))["event"] == "ready"
        assert connects(directory / "s.keeper-shm")
    finally:
        for process in (daemon, keeper):
            process.terminate()
        errors = [process.communicate(timeout=10)[1] for process in (daemon, keeper)]
    assert (daemon.returncode, keeper.returncode) == (0, 0), errors
    assert "not every keeper was heard" not in errors[0]


def test_a_second_keeper_on_a_socket_fails(keeper: str) -> None:
    """Exit status 1 and a reason; the first one goes on."""
    second = run("keeper", "--shm-gpus", "2", "--shm-gpu-bytes", "32MiB", "--socket", keeper)
    assert second.returncode == cli.FAILED
    assert keeper in second.stderr
    assert connects(Path(keeper))


def test_an_owner_says_when_it_has_its_memory(keeper: str) -> None:
    """One JSON line with its own pid, and it stays until it is ended."""
    owner = started("load", "--gpu", "SHM-1", "--bytes", "8MiB", "--keeper-socket", keeper)
    assert owner.stdout is not None
    loaded = json.loads(read_line(owner.stdout, seconds=20))
    assert loaded == {"event": "loaded", "gpu": "SHM-1", "bytes": 8 * MIB, "pid": owner.pid}
    assert owner.poll() is None
    owner.send_signal(signal.SIGINT)
    owner.communicate(timeout=10)
    assert owner.returncode == cli.OK


def test_an_owner_becomes_its_command(keeper: str) -> None:
    """The command runs in the process that registered, flags and all, and its status counts."""
    command = (sys.executable, "-c", "import os, sys; print(os.getpid()); sys.exit(7)", "--bytes")
    words = ("load", "--gpu", "SHM-0", "--bytes", "1MiB", "--keeper-socket", keeper, "--", *command)
    owner = started(*words)
    out, err = owner.communicate(timeout=30)
    loaded, pid = out.splitlines()
    assert (json.loads(loaded)["pid"], int(pid), owner.returncode) == (owner.pid, owner.pid, 7), err


@pytest.mark.parametrize(
    ("gpu", "nbytes", "message"),
    [("SHM-7", "1MiB", "SHM-7"), ("SHM-0", "64MiB", "of 67108864 bytes on SHM-0 after 0.2 s")],
)
def test_an_owner_that_can_get_nothing_fails(
    keeper: str, gpu: str, nbytes: str, message: str
) -> None:
    """No such GPU, or more than fits by the deadline: exit status 1 and the reason."""
    words = ("load", "--gpu", gpu, "--bytes", nbytes, "--keeper-socket", keeper)
    owner = run(*words, "--deadline", "0.2")
    assert (owner.returncode, owner.stdout) == (cli.FAILED, "")
    assert message in owner.stderr


def test_an_owner_without_a_keeper_fails(directory: Path) -> None:
    """Nobody at the socket: exit status 1, naming it."""
    path = str(directory / "nobody")
    owner = run("load", "--gpu", "SHM-0", "--bytes", "1", "--keeper-socket", path)
    assert owner.returncode == cli.FAILED
    assert path in owner.stderr


def test_the_command_line_needs_no_heavy_import() -> None:
    """`--help` and the refusals come at once: no gRPC, no protobuf, no torch before they do."""
    code = (
        "import sys, aqua_daemon.cli; print(*{'grpc', 'google.protobuf', 'torch'} & {*sys.modules})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ""
