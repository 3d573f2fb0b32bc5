"""What aquactl says of a drain: who is hit, what is left, and who did not give back what."""

from __future__ import annotations

import json

from aqua_protos import broker_pb2

from aqua_daemon.ctl.draining import Left, late_lines, left_on, plan, plan_document
from aqua_daemon.ctl.verdict import findings
from tests.ctl.states import MIB, gpu, lease, node

QUARANTINED = broker_pb2.LEASE_STATE_QUARANTINED


def hit(number: int, **fields: object) -> broker_pb2.DrainHit:
    usual: dict[str, object] = {
        "gpu": "SHM-1",
        "tenant": "uid-1000",
        "session_id": f"{number:032x}",
        "pid": 4000 + number,
        "leases": 2,
        "nbytes": 64 * MIB,
        "copy_bytes": 16 * MIB,
    }
    return broker_pb2.DrainHit(**(usual | fields))  # type: ignore[arg-type]  # the message's own fields


def reply(*hits: broker_pb2.DrainHit) -> broker_pb2.DrainReply:
    return broker_pb2.DrainReply(
        gpus=["SHM-1"], hits=hits, deadline_seconds=2.0, copy_seconds=0.5, dry_run=True
    )


def test_a_plan_names_who_is_hit_with_figures_and_sums() -> None:
    """A line per session, then one sentence with the time that it takes."""
    lines = plan(reply(hit(1), hit(2, tenant="uid-1001", quarantined_bytes=32 * MIB))).plain
    rows = [line.split() for line in lines.splitlines()]
    assert rows[0] == ["GPU", "TENANT", "PID", "LEASES", "MIB", "TO", "COPY", "LATE"]
    assert rows[1] == ["SHM-1", "uid-1000", "4001", "2", "64", "16", "0"]
    assert rows[2] == ["SHM-1", "uid-1001", "4002", "2", "64", "16", "32"]
    assert lines.splitlines()[-1] == (
        "SHM-1: 4 leases, 128 MiB, of 2 sessions of 2 tenants; to copy 32 MiB takes 0.5 s, "
        "and what is not back after 2.0 s is quarantined"
    )


def test_a_long_plan_is_cut_and_says_so() -> None:
    """The sums are of all; the rest is a command away."""
    lines = plan(reply(*map(hit, range(200)))).plain.splitlines()
    assert len(lines) == 21
    assert lines[-2] == "... and 182 more (aquactl drain --dry-run --json)"
    assert lines[-1].startswith("SHM-1: 400 leases")


def test_a_gpu_of_which_nothing_is_lent_hits_nobody() -> None:
    """One line is enough."""
    assert plan(reply()).plain == "SHM-1: nothing is lent there"


def test_it_goes_on_until_nothing_comes_back_by_itself() -> None:
    """Lent, then being freed, then clean; other GPUs do not matter."""
    busy = gpu("SHM-0", lent_bytes=MIB, returning_bytes=MIB, quarantined_bytes=MIB)
    lent = left_on(node(busy, gpu("SHM-1", lent_bytes=8 * MIB)), ["SHM-1"])
    freed = left_on(node(busy, gpu("SHM-1", returning_bytes=8 * MIB)), ["SHM-1"])
    gone = left_on(node(busy, gpu("SHM-1")), ["SHM-1"])
    assert [(one.is_over, one.is_clean) for one in (lent, freed, gone)] == [
        (False, False),
        (False, False),
        (True, True),
    ]
    assert [str(one) for one in (lent, freed, gone)] == [
        "8 MiB still lent",
        "8 MiB being freed",
        "nothing is lent there any more",
    ]


def test_what_can_not_be_freed_now_is_not_waited_for() -> None:
    """On a quiet GPU, or without its keeper, it may take minutes; it is nobody's any more."""
    for why in ({"quiet_seconds": 60.0}, {"trouble": "its keeper does not answer"}):
        left = left_on(node(gpu("SHM-1", returning_bytes=8 * MIB, **why)), ["SHM-1"])
        assert left.is_clean
        assert str(left) == "8 MiB given back, to be freed later"


def test_a_daemon_that_has_just_started_says_nothing_yet() -> None:
    """It may hear of leases there any moment: that is not the end."""
    left = left_on(node(gpu("SHM-1"), restarting=True), ["SHM-1"])
    assert not left.is_over
    assert "waits for keepers and holders" in str(left)


def test_who_is_late_is_named_with_process_and_bytes() -> None:
    """Once per process and GPU; bytes of which nobody knows the holder are named, too."""
    leases = [lease(n, state=QUARANTINED) for n in range(2)]
    leases.append(lease(3, state=QUARANTINED, lender_gpu="SHM-0", pid=7))
    state = node(gpu("SHM-1", quarantined_bytes=65 * MIB), gpu("SHM-0"), leases=leases)
    left = left_on(state, ["SHM-1"])
    assert (left.is_over, left.is_clean) == (True, False)
    assert late_lines(left) == [
        f"quarantined on SHM-1: {64 * MIB} bytes in 2 leases of uid-1000, process 4242",
        f"quarantined: {MIB} bytes that nobody is known to hold",
    ]
    assert str(left) == "65 MiB late"


def test_machines_get_the_plan_and_what_is_late() -> None:
    """Every figure under its own name; what was not waited for is null."""
    document = json.loads(json.dumps(plan_document(reply(hit(1)), None)))
    assert (document["schema"], document["dry_run"], document["gpus"]) == (1, True, ["SHM-1"])
    assert document["hits"][0]["copy_bytes"] == 16 * MIB
    assert document["quarantined"] is None
    late = plan_document(reply(), Left(late=(lease(1, state=QUARANTINED),)))
    assert json.loads(json.dumps(late))["quarantined"][0]["pid"] == 4242


def test_a_drained_gpu_is_told_with_the_command_that_ends_it() -> None:
    """By name, or all at once where several are."""
    why = "it is drained: aquactl undrain GPU"
    drained = [gpu(f"SHM-{n}", drained=True, waits_for=why) for n in (1, 2)]
    assert findings(node(gpu("SHM-0"), drained[0]))[-1].next_command == "aquactl undrain SHM-1"
    assert findings(node(gpu("SHM-0"), *drained))[-1].next_command == "aquactl undrain --all"
    verdict = findings(node(*drained))[0]
    assert verdict.sentence.startswith("no GPU lends: it is drained")
    assert verdict.next_command == "aquactl undrain --all"
