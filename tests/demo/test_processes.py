"""The processes that the demo starts: what they say is heard, and none is left behind."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from aqua_client.demo.happenings import GpuBytes, Happening, OwnerSaid
from aqua_client.demo.middle import Middle
from aqua_client.demo.node import Node, NodeFailed
from aqua_client.demo.taking_back import Owner, growth_bytes, owner_command
from aqua_client.demo.watching import Watch
from tests.demo.stores import TINY

GPU = GpuBytes(gpu="SHM-3", own=0, lent=2**25, quarantined=0, returning=0, free=7 * 2**25)

RECLAIMS = """
import json, sys
print(json.dumps({"event": "loaded", "gpu": "SHM-3", "bytes": 2**20, "pid": 5}), flush=True)
asked = {"asked_bytes": 9, "revoked_bytes": 8, "freed_bytes": 8, "quarantined_bytes": 0}
print(json.dumps({"event": "reclaimed", **asked, "seconds": 0.5}), flush=True)
sys.stdin.read()
print(json.dumps({"event": "lends again", "offered_bytes": 7, "lent_bytes": 0}), flush=True)
"""

# A daemon that says it is ready and waits; its keeper is a child that listens beside its socket.
SERVES = """
import json, os, signal, socket, sys
keeper = socket.socket(socket.AF_UNIX)
pid = os.fork()
if pid == 0:
    keeper.bind(sys.argv[1] + ".keeper-shm")
    keeper.listen()
    os.setsid()
    open(sys.argv[2], "w").write(str(os.getpid()))
    print(json.dumps({"event": "ready", "metrics": "http://127.0.0.1:1/metrics"}), flush=True)
signal.pause()
"""


def python(script: str, *arguments: str) -> list[str]:
    """A command that runs this."""
    return [sys.executable, "-c", textwrap.dedent(script), *arguments]


def serving(pid_file: Path) -> Callable[[str], list[str]]:
    """A node's command, for `Node`."""
    return lambda socket: python(SERVES, socket, str(pid_file))


def said(told: list[Happening]) -> str:
    """All that the owner said."""
    return "\n".join(one.text for one in told if isinstance(one, OwnerSaid))


def test_an_owner_is_heard_and_lends_again_when_told() -> None:
    """What it got back stands in the summary."""
    told: list[Happening] = []
    owner = Owner(GPU, python(RECLAIMS), tell=told.append)
    assert owner.wait_answered()
    owner.lend_again()
    taken = owner.taken_back()
    assert taken is not None
    assert (taken.gpu, taken.asked_bytes, taken.freed_bytes) == ("SHM-3", 9, 8)
    assert (taken.seconds, taken.lent_again_bytes) == (0.5, 7)
    assert taken.own_bytes == growth_bytes(GPU)
    assert "SHM-3 uses 1.0 MiB itself now" in said(told)
    assert "SHM-3 asked for 0.0 MiB back" in said(told)
    assert "SHM-3 lends again" in said(told)


def test_an_owner_that_fails_is_told_and_not_waited_for() -> None:
    """What it wrote is shown; nothing was taken back."""
    told: list[Happening] = []
    owner = Owner(GPU, python("raise SystemExit('no such GPU')"), tell=told.append)
    assert not owner.wait_answered()
    owner.lend_again()
    assert owner.taken_back() is None
    assert "no such GPU" in said(told)


def test_an_owner_can_be_ended_at_any_time() -> None:
    """Also while it waits, and twice."""
    owner = Owner(GPU, python(RECLAIMS), tell=lambda _: None)
    owner.close()
    owner.close()
    assert owner._process.poll() is not None


def test_owner_command_takes_what_is_lent() -> None:
    """It grows on the GPU, then asks for all that was lent there."""
    words = owner_command(GPU, socket="/s", keeper_socket="/k")
    load, owner = words[: words.index("--")], words[words.index("--") :]
    assert load[load.index("--gpu") + 1] == "SHM-3"
    assert int(load[load.index("--bytes") + 1]) == growth_bytes(GPU)
    assert owner[owner.index("--reclaim") + 1] == str(GPU.lent)


def test_the_owner_comes_in_the_middle_and_is_waited_for() -> None:
    """Not before a GPU lends; once; and by four fifths of the turns it has its answer."""
    seen: list[tuple[GpuBytes, ...]] = [(), (GPU,)]
    watch = Watch(
        gauges=lambda: seen.pop(0) if len(seen) > 1 else seen[0], stats=dict, tell=lambda _: None
    )
    made: list[int] = []
    turn = 0

    def make_owner(gpu: GpuBytes) -> Owner:
        made.append(turn)
        return Owner(gpu, python(RECLAIMS), tell=lambda _: None)

    middle = Middle(TINY, watch, make_owner=make_owner, tell=lambda _: None)
    for turn in range(TINY.total_turns):
        middle.before_turn(turn)
    middle.close()
    begin = int(0.45 * TINY.total_turns)
    assert made == [begin + 1]  # at the first look nothing was lent yet
    taken = middle.taken_back()
    assert taken is not None
    assert taken.lent_again_bytes == 7


def test_a_node_ends_with_its_keeper_and_its_folder(tmp_path: Path) -> None:
    """The keeper outlives the daemon, and is found by its socket."""
    pid_file = tmp_path / "keeper"
    with Node(serving(pid_file)) as node:
        node.ready()
        folder = Path(node.socket).parent
        keeper = os.pidfd_open(int(pid_file.read_text()))
        assert node.metrics == "127.0.0.1:1"
    assert not folder.exists()
    assert has_ended(keeper)
    os.close(keeper)
    node.close()  # again: nothing happens


def test_a_daemon_that_ends_at_once_is_said() -> None:
    """With its status and what it wrote."""
    failing = python("raise SystemExit('the socket is taken')")
    with Node(lambda _: failing) as node, pytest.raises(NodeFailed, match="the socket is taken"):
        node.ready()


def test_a_node_ends_when_the_run_fails(tmp_path: Path) -> None:
    """Whatever is raised meanwhile."""
    pid_file = tmp_path / "keeper"
    with pytest.raises(KeyboardInterrupt), Node(serving(pid_file)) as node:  # noqa: PT012 - the run
        node.ready()
        keeper = os.pidfd_open(int(pid_file.read_text()))
        raise KeyboardInterrupt
    assert has_ended(keeper)
    os.close(keeper)


def has_ended(pidfd: int) -> bool:
    """Whether the process is gone, by its descriptor."""
    import select

    return bool(select.select([pidfd], [], [], 10)[0])
