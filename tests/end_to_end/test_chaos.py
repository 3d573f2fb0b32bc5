"""A node and its clients under faults chosen by chance: every byte is right, and all of it heals.

Daemon, keeper, clients and owners are killed, stopped and continued while the clients park, fetch,
compare and fork. A failure prints the seed, the faults in order and what the daemons logged. The
short run kills no keeper: only what one held may be lost.
"""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.aftermath import (
    HEAL_SECONDS,
    check_node,
    check_report,
    descriptors_of,
    is_quiet,
)
from tests.end_to_end.chaos import GPU_BYTES, GPUS, Chaos
from tests.nodes import running_node, wait_until


@pytest.mark.limit(150)
def test_clients_lose_nothing_while_everything_around_them_fails() -> None:
    """Ten seconds of faults: bytes exact, `store` kept, calls bounded, all of it returned."""
    run_chaos(1, seconds=10, keeper_dies=False)


@pytest.mark.long
@pytest.mark.limit(400)
@pytest.mark.parametrize("seed", range(8))
def test_minutes_of_faults_break_no_promise(seed: int) -> None:
    """Longer, and in every other run keepers die too."""
    run_chaos(seed, seconds=45, keeper_dies=seed % 2 == 1)


def run_chaos(seed: int, *, seconds: float, keeper_dies: bool) -> None:
    """Rage, calm down, and look at everything."""
    with running_node(gpus=GPUS, gpu_bytes=GPU_BYTES) as node:
        descriptors = descriptors_of(node.pid)
        chaos = Chaos(node, seed, keeper_dies=keeper_dies)
        try:
            chaos.rage(seconds)
            reports = chaos.calm_down()
            print(json.dumps(reports, indent=1))
            for report in reports:
                check_report(report, may_lose=chaos.keeper_died)
            chaos.leave()
            wait_until(lambda: is_quiet(node), seconds=HEAL_SECONDS, what="all came back")
            check_node(node, descriptors)
        except BaseException:
            print(f"seed {seed}: {chaos.told}\n{node.log()}")
            raise
        finally:
            chaos.end()
