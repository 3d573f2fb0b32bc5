"""One user against the node: its limits hold, another goes on, and afterwards all is as before."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aqua_protos import broker_pb2

from aqua_daemon.ctl.link import Link, opened
from tests.end_to_end.other_users import (
    ALICE,
    MALLORY,
    let_in,
    needs_root,
    running_as,
    two_groups,
)
from tests.nodes import MIB, Node, running_node, wait_until

pytestmark = needs_root

ATTACKERS, HONEST = "tests.end_to_end.attackers", "tests.end_to_end.honest_user"
SECONDS = 3.0
FLOODS = ("flood_calls", "flood_frames", "flood_leases", "flood_connections")
# It waits rather than going to host memory: that it is served at all is what is to be seen.
PATIENCE = {"AQUA_CONNECT_SECONDS": "10", "AQUA_CALL_SECONDS": "10", "AQUA_ACQUIRE_SECONDS": "10"}
LEASES, SESSIONS, CONNECTIONS, CALLS_A_SECOND = 5, 24, 32, 15
QUOTA_BYTES = 32 * MIB
MOST_DESCRIPTORS = 4 * (SESSIONS + CONNECTIONS)  # of all its sessions, connections and slabs
MOST_GROWTH_BYTES = 64 * MIB


@pytest.fixture
def node() -> Iterator[Node]:
    with running_node(
        gpus=3,
        gpu_bytes=128 * MIB,
        group=two_groups()[0].gr_name,
        tenant_quota_bytes=str(QUOTA_BYTES),
        tenant_quota_leases=LEASES,
        tenant_quota_sessions=SESSIONS,
        connections_per_uid=CONNECTIONS,
        calls_per_second_per_uid=CALLS_A_SECOND,
        calls_per_uid=16,
    ) as running:
        let_in(running)
        yield running


@pytest.mark.limit(180)
def test_a_flood_from_one_user_leaves_the_others_their_node(node: Node) -> None:
    """Its bytes, leases, sessions and calls stay within the limits, and the daemon small."""
    groups = (two_groups()[0].gr_gid,)
    with contextlib.ExitStack() as stack:
        attackers = [
            stack.enter_context(running_as(MALLORY, ATTACKERS, role, node, groups=groups))
            for role in FLOODS
        ]
        honest = stack.enter_context(
            running_as(ALICE, HONEST, "go_on", node, groups=groups, variables=PATIENCE)
        )
        admin = stack.enter_context(opened(Path(node.socket), seconds=30.0))
        before_bytes, before_descriptors = resident_bytes(node.pid), descriptors(node.pid)
        honest.tell(SECONDS)
        began = time.monotonic()
        attackers[0].tell(SECONDS)
        # Before it is crowded out by the other floods of the same user.
        wait_until(lambda: quota_of(admin, MALLORY).held_sessions >= 4, what="calls are made")
        for attacker in attackers[1:]:
            attacker.tell(SECONDS)
        held = watched(node, admin, before_descriptors)
        counts = {role: one.hear() for role, one in zip(FLOODS, attackers, strict=True)}
        seconds = time.monotonic() - began
        went_on = honest.hear()
        print(f"held at most {held}; {counts}; meanwhile {went_on}")
        check_attackers(counts, seconds=seconds)
        check_honest(went_on)
        assert resident_bytes(node.pid) - before_bytes < MOST_GROWTH_BYTES
        assert node.scrape()["aqua_invariant_violations_total"] == 0
        assert node.scrape()["aqua_faults_total"] == 0
        for attacker in attackers:
            attacker.end()
        wait_until(
            lambda: (
                quota_of(admin, MALLORY).held_sessions == 0
                and quota_of(admin, MALLORY).held_bytes == 0
            ),
            what="nothing is left of the attacker",
        )
        wait_until(
            lambda: descriptors(node.pid) <= before_descriptors + 8,
            what=f"descriptors fall back from {descriptors(node.pid)} to {before_descriptors}",
        )
        again = honest.ask(0.6)
        assert as_int(again, "new client: peer") == sum(
            as_int(again, name) for name in again if name.startswith("new client")
        )


def watched(node: Node, admin: Link, before_descriptors: int) -> dict[str, int]:
    """What the attacker holds while it lasts, never more than it may; the most that was seen."""
    most = {"bytes": 0, "leases": 0, "sessions": 0, "descriptors": 0}
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        quota = quota_of(admin, MALLORY)
        seen = {
            "bytes": quota.held_bytes,
            "leases": quota.held_leases,
            "sessions": quota.held_sessions,
            "descriptors": descriptors(node.pid) - before_descriptors,
        }
        assert seen["bytes"] <= QUOTA_BYTES, seen
        assert seen["leases"] <= LEASES, seen
        assert seen["sessions"] <= SESSIONS, seen
        assert seen["descriptors"] <= MOST_DESCRIPTORS, seen
        most = {name: max(most[name], value) for name, value in seen.items()}
    return most


def check_attackers(counts: dict[str, dict[str, object]], *, seconds: float) -> None:
    """Each was at it, and was refused what was too much."""
    calls = counts["flood_calls"]
    # A second's worth at once, and what comes each second after it.
    assert as_int(calls, "ok") <= CALLS_A_SECOND * (seconds + 1.0)
    assert as_int(counts["flood_connections"], "connected") > CONNECTIONS
    assert as_int(counts["flood_leases"], "leases") <= LEASES
    refusals = ("RESOURCE_EXHAUSTED", "quota", "too_many", "thrown out")
    assert all(
        sum(as_int(counts[flood], name) for name in refusals) > 0
        for flood in ("flood_calls", "flood_frames", "flood_leases")
    )


def check_honest(went_on: dict[str, object]) -> None:
    """Peers served it all along; ten times what the library promises is the most that it waited."""
    assert as_int(went_on, "old client: peer") > 0
    assert as_int(went_on, "new client: peer") > 0
    assert as_int(went_on, "slowest fetch us") < 1_000_000
    assert as_int(went_on, "slowest release us") < 1_000_000
    assert as_int(went_on, "slowest offload us") < 20_000_000


def quota_of(admin: Link, uid: int) -> broker_pb2.Quota:
    """What all of a user's tenants hold together."""
    reply = admin.call("GetQuotas", broker_pb2.GetQuotasRequest(), broker_pb2.GetQuotasReply)
    name = f"uid-{uid}"
    found = [one for one in reply.quotas if one.tenant == name]
    return found[0] if found else broker_pb2.Quota(tenant=name)


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def as_int(counts: dict[str, object], name: str) -> int:
    value = counts.get(name, 0)
    assert isinstance(value, int)
    return value
