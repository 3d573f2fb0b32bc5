"""An hour of ordinary trouble on a node, of which the last three fifths are one daemon's life.

    python -m tests.benchmarks.soak --seconds 3600 --json FILE

Clients park, fetch and compare all the time; one of them lives through everything, others are
killed; owners come and take their memory back; Prometheus scrapes. In the first two fifths the
daemon is restarted every few minutes, then not any more, so that its memory can be watched for
long. At the end: is every byte right, did everything come back, are memory and descriptors of the
last daemon, the keeper and the surviving client flat? Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import machine
from tests.benchmarks.processes import mapped_slabs
from tests.benchmarks.soak.flatness import CHANNEL_DESCRIPTORS, Flatness, Watch
from tests.benchmarks.soak.trouble import GPU_BYTES, GPUS, Trouble
from tests.nodes import Node, running_node, wait_until

RESTARTING_SHARE = 0.4
WARM_SHARE = 0.1  # of each process's time, before what is called its first
LEAST_RESTARTS = 3
SEED = 20


@dataclass(slots=True, kw_only=True)
class Chore:
    """Something that is done again and again."""

    seconds: float
    act: Callable[[], object]
    due: float
    last: float = float("inf")  # not after that


def main() -> int:
    """Run it, keep the result also when something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--json", type=Path, help="where the result is kept")
    chosen = parser.parse_args()
    described = machine.description()
    with running_node(gpus=GPUS, gpu_bytes=GPU_BYTES) as node:
        trouble = Trouble(node, SEED)
        try:
            result = soak(node, trouble, chosen.seconds)
        except BaseException:
            print(node.log()[-20_000:], file=sys.stderr)
            raise
        finally:
            trouble.end()
    document = {**described, "seconds": chosen.seconds, **result}
    print(json.dumps({name: document[name] for name in ("seconds", "failures", "done", "flat")}))
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if document["failures"] else 0


def soak(node: Node, trouble: Trouble, seconds: float) -> dict[str, object]:
    """So long, and what was seen."""
    start = time.monotonic()
    alone_at = start + RESTARTING_SHARE * seconds
    end = start + seconds
    watches = {"daemon": Watch(), "keeper": Watch(), "client": Watch(may_open=CHANNEL_DESCRIPTORS)}
    keeper_pid = node.keeper_pid()

    def look() -> None:
        at = time.monotonic()
        watches["daemon"].see(node.pid, at=at)
        watches["keeper"].see(keeper_pid, at=at)
        watches["client"].see(trouble.survivor.process.pid, at=at)
        trouble.check()

    restart_seconds = min(180.0, (alone_at - start) / (LEAST_RESTARTS + 1))
    chores = [
        Chore(seconds=1.0, act=look, due=start),
        Chore(seconds=15.0, act=node.scrape, due=start),
        Chore(seconds=6.0, act=trouble.change_owner, due=start + 3),
        Chore(seconds=45.0, act=trouble.kill_client, due=start + 20),
        Chore(
            seconds=restart_seconds,
            act=trouble.restart_daemon,
            due=start + restart_seconds,
            last=alone_at,
        ),
    ]
    work(chores, end)
    report = trouble.finish()
    client_pid = trouble.survivor.process.pid
    wait_until(lambda: not mapped_slabs(client_pid), seconds=30, what="the client unmapped all")
    metrics = node.scrape()
    flat = {
        "daemon": watches["daemon"].judged(warm_at=alone_at + WARM_SHARE * (end - alone_at)),
        "keeper": watches["keeper"].judged(warm_at=start + WARM_SHARE * seconds),
        "client": watches["client"].judged(warm_at=start + WARM_SHARE * seconds),
    }
    return {
        "failures": failures(flat, metrics),
        "done": dict(trouble.done),
        "survivor": report,
        "flat": {name: one.document() for name, one in flat.items()},
    }


def work(chores: list[Chore], end: float) -> None:
    """Do each chore when it is due."""
    while time.monotonic() < end:
        for chore in chores:
            now = time.monotonic()
            if chore.due <= now < chore.last:
                chore.act()
                chore.due = max(chore.due + chore.seconds, now)
        threading.Event().wait(max(0.0, min(chore.due for chore in chores) - time.monotonic()))
        chores = [chore for chore in chores if chore.due < chore.last]


def failures(flat: dict[str, Flatness], metrics: dict[str, float]) -> list[str]:
    """Everything that is wrong, in words."""
    found = [f"{name}: {words}" for name, one in flat.items() for words in one.failures]
    counted = ("aqua_invariant_violations_total", "aqua_faults_total")
    return found + [f"{name} is {metrics[name]:g}" for name in counted if metrics[name]]


if __name__ == "__main__":
    raise SystemExit(main())
