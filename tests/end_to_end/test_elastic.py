"""An owner's load rises and falls, and four tenants borrow what it leaves: nobody loses a byte.

Real processes throughout: the owner reclaims with a deadline, uses what it got, lets it go and
lends again; the consumers park, fetch and compare meanwhile.
"""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from tests.end_to_end.aftermath import (
    HEAL_SECONDS,
    check_node,
    check_report,
    descriptors_of,
    is_quiet,
)
from tests.end_to_end.chaos import GPU_BYTES, GPUS, Client
from tests.end_to_end.wave import DEADLINE_SECONDS
from tests.nodes import MIB, Node, read_line, running_node, wait_until

TENANTS = "abcd"
WAVE_GPU = "SHM-1"
LOW_BYTES = 4 * MIB
OTHER_GPUS = ("SHM-2", "SHM-3")
OTHERS_BYTES = 44 * MIB  # so that most of what is lent lies where the waves are
GRACE_SECONDS = 2.0  # after the deadline what has not come is in quarantine, and said to be
STALL_SECONDS = 2.0  # of a daemon on a busy machine
START_SECONDS = 60.0


@pytest.mark.limit(150)
def test_consumers_keep_every_byte_while_an_owner_comes_and_goes() -> None:
    """Half a minute of waves: each reclaim answered in time, bytes exact, `store` kept, all heals."""
    run_waves(seconds=30.0, pause_seconds=0.02)


@pytest.mark.long
@pytest.mark.limit(900)
def test_minutes_of_waves_break_no_promise() -> None:
    """Ten of them, with consumers that hardly rest."""
    run_waves(seconds=600.0, pause_seconds=0.002)


def run_waves(*, seconds: float, pause_seconds: float) -> None:
    """Consumers beside waves of an owner; then all come to rest, and everything is looked at."""
    with ExitStack() as undo:
        node = undo.enter_context(
            running_node(
                gpus=GPUS,
                gpu_bytes=GPU_BYTES,
                is_steady=False,
                settle_seconds=0.2,
                newcomer_seconds=0.2,
                rebalance_seconds=1,
            )
        )
        undo.push(lambda kind, *_: print(node.log() if kind else ""))
        descriptors = descriptors_of(node.pid)
        others = [node.load(gpu, OTHERS_BYTES) for gpu in OTHER_GPUS]
        consumers = []
        for seed, tenant in enumerate(TENANTS):
            client = Client(node, seed, str(pause_seconds), AQUA_TENANT=tenant)
            undo.callback(client.end)
            consumers.append(client)
        for client in consumers:
            client.answer()
        owner = node.load(WAVE_GPU, LOW_BYTES, *wave_command(node, seconds))
        assert owner.stdout is not None
        waves = json.loads(read_line(owner.stdout, seconds=seconds + START_SECONDS))["waves"]
        for process in (owner, *others):
            node.end_owner(process)
        check_waves(waves)
        for client in consumers:
            client.say()
        for client in consumers:
            check_report(client.answer(), may_lose=False)
        check_nothing_in_quarantine(node)
        for client in consumers:
            client.say()
        for client in consumers:
            assert client.process.wait(START_SECONDS) == 0
        wait_until(lambda: is_quiet(node), seconds=HEAL_SECONDS, what="all came back")
        check_node(node, descriptors)


def wave_command(node: Node, seconds: float) -> tuple[str, ...]:
    """What an owner becomes that uses LOW_BYTES between waves."""
    import sys

    words = (node.socket, WAVE_GPU, str(LOW_BYTES), str(seconds))
    return (sys.executable, "-m", "tests.end_to_end.wave", *words)


def check_waves(waves: list[dict[str, float]]) -> None:
    """Each reclaim is answered in time, accounts for what was asked of borrowers, and some freed."""
    print(json.dumps(waves))
    assert len(waves) > 2
    for wave in waves:
        assert wave["seconds"] <= DEADLINE_SECONDS + GRACE_SECONDS + STALL_SECONDS
        assert wave["freed_bytes"] + wave["quarantined_bytes"] == wave["revoked_bytes"]
        assert wave["grew"] >= wave["freed_bytes"]
    assert sum(wave["freed_bytes"] for wave in waves) > GPU_BYTES // 2


def check_nothing_in_quarantine(node: Node) -> None:
    """What came too late has come by now."""
    wait_until(
        lambda: (
            not any(
                value
                for name, value in node.scrape().items()
                if name.startswith("aqua_quarantined")
            )
        ),
        seconds=HEAL_SECONDS,
        what="nothing is in quarantine",
    )
