"""The processes that the demo starts: what they say is heard, and none is left behind."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from aqua_client.demo.happenings import GpuBytes, Happening, OwnerSaid
from aqua_client.demo.middle import Middle
from aqua_client.demo.neighbours import Neighbour, Owner, neighbour_command, owner_command
from aqua_client.demo.node import Node, NodeFailed
from aqua_client.demo.watching import Watch
from tests.demo.stores import TINY

LENT = GpuBytes(gpu="SHM-1", own=0, lent=2**25, quarantined=0, returning=0, free=7 * 2**25)

STEPS = """
import json, sys
def say(event, **figures):
    print(json.dumps({"event": event, **figures}), flush=True)
say("loaded", gpu="SHM-1", bytes=2**20, pid=5)
say("lends", offered_bytes=7)
for line in sys.stdin:
    if line == "burst\\n":
        say("reclaimed", asked_bytes=9, revoked_bytes=8, freed_bytes=8, quarantined_bytes=0, seconds=0.5)
        say("uses", nbytes=8)
    else:
        say("lends again", offered_bytes=7)
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
    """What it got back stands in the summary, and what is lent of it only once it lends again."""
    told: list[Happening] = []
    with closing(Owner(python(STEPS), tell=told.append)) as owner:
        assert owner.wait_lending()
        assert owner.taken_back() is None
        owner.note_lent(2**25)
        owner.burst()
        assert owner.wait_grown()
        owner.note_lent(2**25)
        taken = owner.taken_back()
        assert taken is not None
        assert (taken.asked_bytes, taken.freed_bytes, taken.seconds) == (9, 8, 0.5)
        assert taken.lent_again_bytes == 0
        assert owner.lend_again()
        for nbytes in (0, 3, 2):
            owner.note_lent(nbytes)
    assert told[-1] == replace(taken, lent_again_bytes=3) == owner.taken_back()
    assert "SHM-1: a process uses 1.0 MiB of it" in said(told)
    assert "SHM-1: a burst: 0.0 MiB asked back" in said(told)
    assert "SHM-1: the burst is over, its owner lends again" in said(told)


def test_an_owner_that_fails_is_told_and_not_waited_for() -> None:
    """What it wrote is shown; nothing was taken back."""
    told: list[Happening] = []
    with closing(Owner(python("raise SystemExit('no such GPU')"), tell=told.append)) as owner:
        assert not owner.wait_lending()
        owner.burst()
        assert not owner.wait_grown()
        assert not owner.lend_again()
        assert owner.taken_back() is None
    assert "no such GPU" in said(told)


def test_a_neighbour_ends_with_what_it_has_started() -> None:
    """At any time, and twice."""
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    child = (
        "import json, signal; print(json.dumps({'event': 'loaded'}), flush=True); signal.pause()"
    )
    neighbour = Neighbour(python(parent, child), tell=lambda _: None)
    assert neighbour.wait_loaded()
    neighbour.close()  # the pipe has ended, so the child has
    neighbour.close()
    assert not neighbour._listener.is_alive()


def test_the_commands_use_the_gpus() -> None:
    """The owner becomes its program; one process uses all the others."""
    words = owner_command(2**20, lend_bytes=2**21, socket="/s", keeper_socket="/k")
    load, owner = words[: words.index("--")], words[words.index("--") :]
    assert (load[load.index("--gpu") + 1], load[load.index("--bytes") + 1]) == ("SHM-1", str(2**20))
    assert owner[owner.index("--lend") + 1] == str(2**21)
    words = neighbour_command(("SHM-2", "SHM-3"), 2**20, keeper_socket="/k")
    assert words.count("load") == 2
    assert words.count("--") == 1


def test_the_burst_comes_in_the_middle_and_is_waited_for() -> None:
    """Not before the GPU lends; once; over two thirds through, when it has its answer."""
    lends = replace(LENT, lendable=1)
    seen: list[tuple[GpuBytes, ...]] = [(), (lends,)]
    watch = Watch(
        gauges=lambda: seen.pop(0) if len(seen) > 1 else seen[0], stats=dict, tell=lambda _: None
    )
    begun: list[int] = []
    turn = 0

    class Counted(Owner):
        def burst(self) -> None:
            begun.append(turn)
            super().burst()

    with closing(Counted(python(STEPS), tell=lambda _: None)) as owner:
        middle = Middle(TINY, watch, owner, tell=lambda _: None)
        for turn in range(TINY.total_turns):
            middle.before_turn(turn)
        assert begun == [int(0.4 * TINY.total_turns) + 1]  # at the first look nothing was lent yet
        taken = owner.taken_back()
        assert taken is not None
        assert taken.lent_again_bytes == LENT.lent


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
