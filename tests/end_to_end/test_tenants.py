"""Users and groups of a real node, as the kernel tells them apart: who comes in, sees, rules, takes."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from aqua_protos import broker_pb2

from tests.conftest import NOT_RUN_HERE
from tests.end_to_end.bare_client import BareClient
from tests.end_to_end.control_groups import cgroup2_mount
from tests.end_to_end.other_users import (
    ALICE,
    MALLORY,
    let_in,
    needs_root,
    running_as,
    two_groups,
)
from tests.nodes import Node, running_node

pytestmark = needs_root

BYSTANDER = "tests.end_to_end.bystander"
MEMBERS = (two_groups()[0].gr_gid,)
# How a kernel says that nobody may make control groups here; anything else is a failure.
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EOPNOTSUPP}


@pytest.fixture
def node() -> Iterator[Node]:
    members, admins = two_groups()
    with running_node(gpus=2, group=members.gr_name, admin_group=admins.gr_name) as running:
        let_in(running)
        yield running


def test_the_sockets_group_guards_it(node: Node) -> None:
    """Who is not in it is refused by the kernel; nobody but the daemon's user comes to a keeper."""
    with (
        running_as(ALICE, BYSTANDER, "knock", node, groups=MEMBERS) as member,
        running_as(MALLORY, BYSTANDER, "knock", node) as stranger,
    ):
        met = member.ask(1.0)
        assert (met[""], met[".presence"]) == ("connected", "connected")
        assert met[".keeper-shm"] == "PermissionError"
        assert set(stranger.ask(1.0).values()) == {"PermissionError"}


def test_each_sees_its_own(node: Node) -> None:
    """Leases, tenants and events of others are not shown, whoever has some; root sees all."""
    with (
        BareClient(node.socket) as admin,
        running_as(ALICE, BYSTANDER, "look", node, groups=MEMBERS) as alice,
        running_as(MALLORY, BYSTANDER, "look", node, groups=MEMBERS) as mallory,
    ):
        mine = admin.acquire()
        seen = {uid: one.ask(1.0) for uid, one in ((ALICE, alice), (MALLORY, mallory))}
        for uid, found in seen.items():
            assert str(found["tenant"]).startswith(f"uid-{uid}")
            assert found["leases"] == [found["lease"]]
            assert found["tenants"] == [found["tenant"]]
            assert found["events"] == [found["tenant"]]
        everything = {one.lease_id for one in admin.state().leases}
        assert everything >= {mine, seen[ALICE]["lease"], seen[MALLORY]["lease"]}


def test_a_quota_of_sessions_keeps_a_user_out(node: Node) -> None:
    """Its hello is refused with the figures, and answered again when an admin has raised it."""
    with (
        BareClient(node.socket) as admin,
        running_as(ALICE, BYSTANDER, "look", node, groups=MEMBERS) as alice,
    ):
        tenant = str(alice.ask(1.0)["tenant"])
        for sessions in (1, 2):
            request = broker_pb2.SetQuotaRequest(
                request_id=secrets.token_hex(16), tenant=tenant, sessions=sessions
            )
            admin.call("SetQuota", request, broker_pb2.SetQuotaReply.FromString)
            met = alice.ask(1.0)
            if sessions == 1:  # the one that it left without a goodbye
                assert str(met["refused"]).startswith(
                    f"RESOURCE_EXHAUSTED: {tenant} has 1 of its 1 sessions"
                )
        assert met["tenant"] == tenant


def test_the_admin_group_rules_and_others_are_told_of_it(node: Node) -> None:
    """Membership of the process counts, whatever its uid; the refusal names the group."""
    members, admins = two_groups()
    both = (members.gr_gid, admins.gr_gid)
    with (
        running_as(ALICE, BYSTANDER, "rule", node, groups=both) as admin,
        running_as(MALLORY, BYSTANDER, "rule", node, groups=both[:1]) as other,
    ):
        assert admin.ask(1.0) == {"leases": 3}
        assert other.ask(1.0) == {
            "refused": "not_permitted: only an admin may set quotas: ask as root, as the daemon's "
            f"user, or as a member of the group {admins.gr_name}"
        }


def test_nobody_touches_what_is_anothers(node: Node) -> None:
    """Ids are no keys: a lease is not given back, a session not entered, an old token is dead."""
    with BareClient(node.socket) as holder, BareClient(node.socket) as gone:
        lease = holder.acquire()
        loot = {"lease": lease, "session": holder.session_id, "token": gone.token.hex()}
        gone.close()
        with running_as(
            MALLORY,
            BYSTANDER,
            "steal",
            node,
            groups=MEMBERS,
            variables={"LOOT": json.dumps(loot)},
        ) as thief:
            met = thief.ask(1.0)
        assert met["Release"] == met["Acknowledge"] == [[], [lease]]
        assert met["session"] == "PERMISSION_DENIED"
        assert met["with its token"] == "unauthenticated"
        (held,) = [one for one in holder.state().leases if one.lease_id == lease]
        assert (held.tenant, held.reason) == (holder.tenant, "")
        reply = holder.give_back("Release", lease)
        assert list(reply.returned_lease_ids) == [lease]


def test_processes_of_one_uid_in_two_cgroups_are_two_tenants(node: Node) -> None:
    """As the kernel has it when they say hello: each sees its own leases, and no other's."""
    with ExitStack() as stack:
        found = {}
        for unit in ("blue.service", "green.service"):
            program = stack.enter_context(
                running_as(ALICE, BYSTANDER, "look", node, groups=MEMBERS)
            )
            move_into_cgroup(stack, program.pid, unit)
            found[unit] = program.ask(1.0)
        for unit, seen in found.items():
            assert seen["tenant"] == f"uid-{ALICE}/{unit}"
            assert seen["leases"] == [seen["lease"]]
            assert seen["tenants"] == [seen["tenant"]]


def move_into_cgroup(stack: ExitStack, pid: int, unit: str) -> None:
    """A cgroup of that name for the process; where none can be made the test is not run."""
    place = cgroup2_mount() / f"aqua-test-{os.getpid()}"
    home = next(
        line
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    try:
        for directory in (place, place / unit):
            if not directory.exists():
                directory.mkdir()
                stack.callback(directory.rmdir)
        (place / unit / "cgroup.procs").write_text(f"{pid}\n")
    except OSError as error:
        if error.errno not in NOT_ALLOWED:
            raise
        pytest.skip(f"{NOT_RUN_HERE}cgroups can't be made here ({error})")
    back = cgroup2_mount() / home.removeprefix("0::/") / "cgroup.procs"
    stack.callback(lambda: back.write_text(f"{pid}\n") if Path(f"/proc/{pid}").exists() else 0)
