"""How soon 200 sessions hear that their leases are asked back.

Each holds a slab of one GPU, whose owner reclaims all of them in one call. From that call to the
push in the hands of each session's listener; all of them acknowledge meanwhile, as they would.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.crowd import crowd
from tests.benchmarks.figure import Figure, percentile
from tests.benchmarks.owners import running_owner
from tests.nodes import MIB, running_node, wait_until

SUBJECT = "revokes"
SESSIONS, PROCESSES = 200, 8
GPU_BYTES = 1024 * MIB
SLAB_BYTES = 4 * MIB  # the smallest
P99_MS = 50.0


def measure() -> Iterator[Figure]:
    """Measure on a node of its own: one GPU to borrow for, one that lends."""
    with (
        running_node(gpus=2, gpu_bytes=GPU_BYTES) as node,
        running_owner(node, "SHM-1") as owner,
    ):
        owner.ask(f"lend {2**30}")
        lendable = 'aqua_lendable_bytes{gpu="SHM-1"}'
        slabs = SESSIONS * SLAB_BYTES
        wait_until(lambda: node.scrape()[lendable] >= slabs, seconds=60, what="SHM-1 lends")
        with crowd(node, sessions=SESSIONS, processes=PROCESSES, home_gpu="SHM-0") as sessions:
            sessions.ask("borrow 1")
            said = owner.ask(f"reclaim {2**30} 10")
            arrivals = [at for part in sessions.ask("arrivals") for at in part["at"]]
    asked_at, freed_bytes = said["asked_at"], said["freed_bytes"]
    assert freed_bytes >= slabs, f"{freed_bytes:.0f} of {slabs} bytes came back"
    assert len(arrivals) >= SESSIONS, "not every session was told"
    waits = [(at - asked_at) * 1e3 for at in arrivals]
    yield Figure(
        subject=SUBJECT,
        name=f"{SESSIONS} sessions are told, p99",
        value=percentile(waits, 99),
        unit="ms",
        rival=f"p50 {percentile(waits, 50):.1f} ms; {slabs // MIB} MiB freed after "
        f"{(said['answered_at'] - asked_at) * 1e3:.0f} ms",
        at_most=P99_MS,
    )
