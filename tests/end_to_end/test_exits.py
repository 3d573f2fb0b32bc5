"""Programs that just end, whatever the library is doing for them: at once, with 0, and silently.

What the interpreter does when all hooks are over is not the library's: it takes torch apart, which
costs it a second of computing alone, and many on a busy machine. So there are two limits.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.end_to_end.programs import PARKING, START_SECONDS
from tests.end_to_end.test_client_deaths import PROMISE_SECONDS, held_bytes
from tests.nodes import Node, environment, read_line, running_node, wait_until

# Before the library's own hook, so it runs after that, when all is closed; then one that runs before.
HOOKS = """
import atexit

def use(when):
    for call in (lambda: handles[0].fetch(), lambda: aqua_client.offload(noise(1)).fetch(),
                 lambda: aqua_client.stats(), lambda: handles[0].release()):
        try:
            call()
        except aqua_client.HandleReleased:
            assert when == "after"

atexit.register(print, "over", flush=True)
atexit.register(use, "after")
"""
HOOK = 'atexit.register(use, "before")\n'
RING = "ring = [handles]\nring.append(ring)\n"
THREADS = """
import asyncio, threading

def work(seed):
    tensor = noise(seed).repeat(12)
    while True:
        try:
            handle = aqua_client.offload(tensor)
            said.set()
            asyncio.run(handle.fetch_async())
        except (aqua_client.HandleReleased, RuntimeError):
            return  # the client is closed, or the interpreter takes no more work

said = threading.Event()
for seed in range(3):
    threading.Thread(target=work, args=(seed,), daemon=True).start()
assert said.wait(30)
"""
ENDING = """
say(**state())
sys.stdin.read()
"""
SOURCE = HOOKS + PARKING + HOOK + RING + THREADS + ENDING


@contextmanager
def running(node: Node) -> Iterator[subprocess.Popen[str]]:
    """A program that has parked six MiB and waits to be told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SOURCE, "6"],
        env=environment(
            AQUA_SOCKET=node.socket,
            AQUA_HOME_GPU="SHM-0",
            AQUA_CONNECT_SECONDS="10",
            PYTHONFAULTHANDLER="1",
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def is_ready(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    if '"peer"' in read_line(process.stdout, seconds=START_SECONDS):
        return True
    process.kill()
    print(process.communicate()[1])
    return False


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Tell it to, then see how it has ended; one that hangs says where."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdin = None  # `communicate` would close it again
    if read_line(process.stdout, seconds=PROMISE_SECONDS) != "over\n":
        process.send_signal(signal.SIGABRT)
    errors = process.communicate(timeout=START_SECONDS)[1]
    print(errors)
    return process.returncode, errors


@pytest.mark.limit(240)
def test_programs_end_whatever_is_under_way() -> None:
    """Handles alive, threads that copy, hooks that use it; also when the daemon hangs."""
    with (
        running_node(gpus=5, gpu_bytes=128 * 2**20) as node,
        running(node) as one,
        running(node) as other,
    ):
        assert is_ready(one)
        assert is_ready(other)
        assert end(one) == (0, "")
        node.stop_daemon()
        assert end(other) == (0, "")
        node.continue_daemon()
        wait_until(lambda: held_bytes(node) == 0, seconds=PROMISE_SECONDS, what="all is free")
