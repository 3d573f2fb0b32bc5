"""What must hold when parkers and everything around them have come to rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.end_to_end.chaos import GPU_BYTES, GPUS
from tests.nodes import Node, environment, wait_until

SLOWEST_SECONDS = 20.0  # ten times what a call may take: a hang fails, a slow machine does not
HEAL_SECONDS = 30.0  # a term, a restart's grace, and the keeper's look at slabs
LOGGED_FAULTS = ("Traceback", "fault while applying", '"reason": "fault"')


def check_report(report: dict[str, object], *, may_lose: bool) -> None:
    """Every byte right, no call endless, nothing lost that was promised, and leases to be had."""
    seen, slowest = report["seen"], report["slowest"]
    assert isinstance(seen, dict)
    assert isinstance(slowest, dict)
    assert seen["fetched"]
    assert not seen.get("wrong")
    assert not seen.get("children_failed")
    assert may_lose or not seen.get("lost_store")
    assert max(slowest.values()) < SLOWEST_SECONDS
    assert report["healed"]


def is_quiet(node: Node) -> bool:
    """Whether nothing is lent, reserved or remembered any more."""
    metrics = node.scrape()
    free = sum(value for name, value in metrics.items() if 'state="free"' in name)
    leases = sum(value for name, value in metrics.items() if name.startswith("aqua_leases{"))
    rest = (leases, metrics["aqua_sessions"], metrics["aqua_host_reserved_bytes"])
    return free == GPUS * GPU_BYTES and not any(rest)


def check_node(node: Node, descriptors: int) -> None:
    """No daemon found a fault in itself, and the last one is as the first was."""
    metrics = node.scrape()
    assert metrics["aqua_invariant_violations_total"] == metrics["aqua_faults_total"] == 0
    assert [trouble for trouble in LOGGED_FAULTS if trouble in node.log()] == []
    wait_until(lambda: findings_of(node) == [], seconds=10.0, what=f"well: {findings_of(node)}")
    wait_until(lambda: descriptors_of(node.pid) <= descriptors, what="descriptors are closed")
    held = [link for link in Path(f"/proc/{node.keeper_pid()}/fd").iterdir() if is_slab(link)]
    assert held == []


def findings_of(node: Node) -> list[object]:
    """What `aquactl status` finds unusual."""
    words = [sys.executable, "-m", "aqua_daemon.ctl", "status", "--json", "--socket", node.socket]
    done = subprocess.run(words, env=environment(), capture_output=True, timeout=30, check=True)
    found = json.loads(done.stdout)
    return [one for one in [found["verdict"], *found["findings"]] if one["level"] != "ok"]


def descriptors_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def is_slab(descriptor: Path) -> bool:
    return "memfd:aqua-" in str(descriptor.readlink())
