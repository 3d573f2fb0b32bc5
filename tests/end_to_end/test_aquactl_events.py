"""`aquactl events` on a real node: the story as it happens, past restarts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import aqua_client
from tests.nodes import MIB, Node, environment, read_line, running_node, wait_until

SECONDS = 20.0


@pytest.fixture
def node() -> Iterator[Node]:
    with running_node(gpus=2, gpu_bytes=64 * MIB) as running:
        yield running


def words_of(node: Node, *words: str) -> list[str]:
    return [sys.executable, "-m", "aqua_daemon.ctl", "events", *words, "--socket", node.socket]


@contextmanager
def following(node: Node, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        words_of(node, "-f", *words),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def line_with(process: subprocess.Popen[str], words: str) -> str:
    """The next line that holds *words*; those before it are read over."""
    assert process.stdout is not None
    while True:
        line = read_line(process.stdout, seconds=SECONDS)
        assert line, f"no line with {words!r}"
        if words in line:
            return line


def texts(node: Node) -> list[str]:
    run = subprocess.run(
        words_of(node, "-n", "1000", "--json"),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line)["text"] for line in run.stdout.splitlines()]


def park_once(node: Node) -> None:
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        client.offload(torch.ones(MIB, dtype=torch.uint8)).release()
    wait_until(lambda: "freeing -> gone" in texts(node)[-1], what="the slab is freed")


def test_events_lists_the_last_ones_and_ends(node: Node) -> None:
    """Oldest first, as many as asked for, for people and for machines; exit status 0."""
    park_once(node)
    run = subprocess.run(
        words_of(node, "-n", "1000"), env=environment(), capture_output=True, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert "keeper of 2 GPUs attached" in lines[0]
    assert any("allocating -> leased" in line for line in lines)
    run = subprocess.run(
        words_of(node, "-n", "2", "--json"),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(found) == 2
    assert found[1]["number"] == found[0]["number"] + 1
    assert found[1]["text"].startswith("lease ")
    assert "freeing -> gone" in found[1]["text"]
    assert found[0]["schema"] == 1


def test_following_tells_what_happens_through_a_restart_until_ctrl_c(node: Node) -> None:
    """The next daemon's events come after a remark; Ctrl-C is the way to end it, so 0."""
    with following(node, "-n", "1") as process:
        line_with(process, "keeper of 2 GPUs attached")
        park_once(node)
        line_with(process, "allocating -> leased")
        node.kill_daemon()
        assert process.stderr is not None
        assert "waiting for it" in read_line(process.stderr, seconds=SECONDS)
        node.start_daemon()
        line_with(process, "keeper of 2 GPUs attached")
        assert "another daemon" in read_line(process.stderr, seconds=SECONDS)
        park_once(node)
        line_with(process, "allocating -> leased")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
        assert process.stderr.read() == ""


def test_a_reader_that_leaves_ends_it_quietly(node: Node) -> None:
    """`aquactl events | head -1`: no traceback, no complaint of the interpreter's."""
    park_once(node)
    command = " ".join(words_of(node, "-n", "1000")) + " | head -1"
    run = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.count("\n") == 1


def test_looking_leaves_no_trace_among_the_events(node: Node) -> None:
    """However often aquactl is asked, the last events are the node's; so it is with the log."""
    park_once(node)
    before = texts(node)
    for words in (("status",), ("quota", "get")):
        command = [sys.executable, "-m", "aqua_daemon.ctl", *words, "--socket", node.socket]
        subprocess.run(command, env=environment(), capture_output=True, check=False)
    assert texts(node) == before
    park_once(node)
    opened = re.compile('"event": ?"SessionOpened"')
    # Lines are written in their order: once the second client's is there, all before it are.
    wait_until(lambda: len(opened.findall(node.log())) >= 2, what="the log has both clients")
    assert len(opened.findall(node.log())) == 2
    assert "aquactl" not in node.log()
