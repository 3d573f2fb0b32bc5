"""A node under load goes from one release to its neighbour, and back: nobody loses anything.

Each case has a keeper of the first release, a daemon of the first and then of the second, and a
client of either: together every mixture of the two.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from aqua_daemon import __version__
from tests.compat.releases import CLIENT, OLD_VERSION, Release
from tests.end_to_end.programs import Program, running_program
from tests.nodes import MIB, Node, running_node, wait_until

REATTACH_SECONDS = 20.0  # ten times what the README promises
Stats = dict[str, object]


def stats(program: Program) -> Stats:
    """How the client stands; all that it has parked must be as it went, and on a peer."""
    found = program.ask()
    assert found["intact"], found
    assert found["wrong"] == 0
    counted = found["stats"]
    assert isinstance(counted, dict)
    return counted


def steps(program: Program) -> int:
    return int(str(program.ask()["steps"]))


def has_reattached(program: Program) -> bool:
    found = stats(program)
    return bool(found["attached"]) and found["session_reattaches"] == 1


def gets_a_lease(program: Program) -> bool:
    found = program.ask("grow")
    assert found["intact"]
    return found["tier"] == "peer"


def revokes(node: Node) -> dict[str, float]:
    return {
        name: count
        for name, count in node.scrape().items()
        if name.startswith("aqua_revokes_total") and count
    }


def check_nothing_was_taken(node: Node, *programs: Program) -> None:
    """No revoke on either side, nothing moved, nothing lost, one session all along."""
    assert revokes(node) == {}
    for program in programs:
        found = program.ask()
        assert found["tiers"] == ["peer"], found
        counted = stats(program)
        names = ("revokes_served", "evacuated_bytes", "leases_lost", "session_opens")
        assert [counted[name] for name in names] == [0, 0, 0, 1]


@pytest.mark.limit(180)
@pytest.mark.parametrize(("before", "after"), [("old", "new"), ("new", "old")])
def test_a_change_of_release_under_load_takes_nothing(
    request: pytest.FixtureRequest, old: Release, new: Release, before: str, after: str
) -> None:
    """No revoke, no lost byte; both clients re-attach, the keeper lives on, and grants resume."""
    first: Release = request.getfixturevalue(before)
    second: Release = request.getfixturevalue(after)
    with (
        running_node(
            gpus=3, gpu_bytes=96 * MIB, variables=first.variables, is_steady=False
        ) as node,
        running_program(node, tensors=1, source=CLIENT, variables=old.variables) as one,
        running_program(node, tensors=2, source=CLIENT, variables=new.variables) as other,
    ):
        assert [one.first["version"], other.first["version"]] == [old.version, new.version]
        assert version_served(node) == first.version
        keeper = node.keeper_pid()
        check_nothing_was_taken(node, one, other)
        aquactl(node, first, "quota", "set", "uid-4242", "48MiB")
        steps_before = steps(one), steps(other)

        started_at = time.monotonic()
        assert node.terminate_daemon() == 0
        node.become(second.variables)
        node.start_daemon()
        assert version_served(node) == second.version
        for program in (one, other):
            wait_until(called(has_reattached, program), seconds=REATTACH_SECONDS, what="it is back")
        print(f"{before} to {after}: all back after {time.monotonic() - started_at:.2f} s")

        for program in (one, other):
            wait_until(called(gets_a_lease, program), seconds=20, what="grants resume")
        assert node.keeper_pid() == keeper
        assert quota_of(node, second, "uid-4242") == 48 * MIB
        check_shown(node, old, daemon=second, keeper=first)
        check_shown(node, new, daemon=second, keeper=first)
        check_nothing_was_taken(node, one, other)
        assert steps(one) > steps_before[0]
        assert steps(other) > steps_before[1]


def check_shown(node: Node, release: Release, *, daemon: Release, keeper: Release) -> None:
    """Either release's aquactl shows what is there; this one's also which releases run."""
    status = document(node, release, "status")
    assert status["version"] == daemon.version
    if release.version == OLD_VERSION:
        assert document(node, release, "leases")["leases"]
    if not release.version == daemon.version == __version__:
        return
    versions = {one["version"] for one in rows(status, "clients")}
    assert versions == {OLD_VERSION, __version__}
    warned = f"its keeper is of release {keeper.version}, this daemon of {daemon.version}"
    assert all(warned in str(gpu["warnings"]) for gpu in rows(status, "gpus"))


def document(node: Node, release: Release, what: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(aquactl(node, release, what, "--json"))
    return found


def quota_of(node: Node, release: Release, tenant: str) -> object:
    printed = aquactl(node, release, "quota", "get", tenant, "--json")
    (quota,) = rows(json.loads(printed), "quotas")
    return quota["nbytes"]


def aquactl(node: Node, release: Release, *words: str) -> str:
    """What that release's aquactl prints; it must succeed."""
    run = release.run("-m", "aqua_daemon.ctl", *words, "--socket", node.socket)
    assert run.returncode == 0, run.stderr
    return run.stdout


def rows(found: dict[str, object], name: str) -> list[dict[str, object]]:
    listed = found[name]
    assert isinstance(listed, list)
    return listed


def called(check: Callable[[Program], bool], program: Program) -> Callable[[], bool]:
    return lambda: check(program)


def version_served(node: Node) -> str:
    """Which release's daemon serves, by its own metrics."""
    (name,) = [name for name in node.scrape() if name.startswith("aqua_build_info")]
    return name.partition('version="')[2].partition('"')[0]
