"""The verdict names the worst thing that is true, and a command that helps."""

from __future__ import annotations

import pytest
from aqua_protos import broker_pb2

from aqua_daemon.ctl.verdict import findings, verdict
from tests.ctl.states import MIB, gpu, node

BELOW_RESERVE = gpu("SHM-3", free_bytes=10 * MIB, lendable_bytes=0)
QUARANTINED = gpu("SHM-2", quarantined_bytes=8 * MIB)
TROUBLED = gpu("SHM-1", trouble="its keeper does not answer", lendable_bytes=0)


@pytest.mark.parametrize(
    ("state", "level", "words", "command"),
    [
        (node(), "ok", "434 MiB can be lent", "aquactl leases"),
        (node(gpu("SHM-0", lendable_bytes=0)), "warn", "goes to host memory", "aquactl leases"),
        (node(BELOW_RESERVE), "warn", "SHM-3 is 16 MiB below its reserve", "--state revoking"),
        (node(BELOW_RESERVE, restarting=True), "warn", "waits for the holders", "aquactl status"),
        (node(QUARANTINED, BELOW_RESERVE), "warn", "8 MiB of SHM-2", "--state quarantined"),
        (node(QUARANTINED, TROUBLED), "fail", "SHM-1 lends nothing: its keeper", "aqua-keeper@"),
        (node(TROUBLED, invariant_violations=2), "fail", "invariant 2 times", "invariant"),
    ],
)
def test_the_worst_thing_is_named_first(
    state: broker_pb2.GetStateReply, level: str, words: str, command: str
) -> None:
    """Each trouble outranks those above it in the table."""
    judged = verdict(state)
    assert judged.level == level
    assert words in judged.sentence
    assert command in judged.next_command


def test_what_is_true_of_several_gpus_is_said_once() -> None:
    """One keeper may serve all of a node: its end is one finding, with how many GPUs it concerns."""
    gone = [gpu(f"SHM-{n}", trouble="its keeper ended", quarantined_bytes=MIB) for n in range(3)]
    ended, quarantined = findings(node(*gone))[:2]
    assert ended.sentence == "SHM-0 and 2 more lend nothing: its keeper ended"
    assert quarantined.sentence.startswith("3 MiB of SHM-0 and 2 more did not come back")


NEVER = {"lending": "never", "lendable_bytes": 0, "waits_for": "its lending policy is `never`"}


def test_a_gpu_that_waits_says_for_what() -> None:
    """Nothing is wrong, but it explains what is seen; of several that wait alike it is said once."""
    state = node(gpu("SHM-0"), gpu("SHM-1", **NEVER), gpu("SHM-2", **NEVER))
    judged, note = findings(state)
    assert (judged.level, note.level) == ("ok", "ok")
    assert note.sentence == "SHM-1 and 1 more lend nothing: its lending policy is `never`"
    assert note.next_command == "aqua-daemon --check-config  # lending"


def test_a_node_on_which_nothing_is_ever_lent_is_told_as_one() -> None:
    """All GPUs wait for the same: the verdict names it, instead of memory that is short."""
    judged, *others = findings(node(gpu("SHM-0", **NEVER), gpu("SHM-1", **NEVER)))
    assert judged.level == "warn"
    assert judged.sentence.startswith("no GPU lends: its lending policy is `never`; new data")
    assert judged.next_command == "aqua-daemon --check-config  # lending"
    assert others == []
    never = gpu("SHM-0", **NEVER, quarantined_bytes=MIB)
    assert "lends nothing: its lending policy" in findings(node(never))[-1].sentence


def test_a_gpu_where_a_new_process_settles_is_told_with_the_events() -> None:
    """It passes by itself; the events say who came."""
    settling = gpu("SHM-1", lending="auto", waits_for="a new process settles there")
    note = findings(node(gpu("SHM-0"), settling))[-1]
    assert note.sentence == "SHM-1 lends nothing: a new process settles there"
    assert note.next_command == "aquactl events"


def test_host_room_that_is_nearly_used_up_is_told_before_it_is() -> None:
    """As the alert tells it: what a tenant parks next may be refused."""
    judged = verdict(node(host_pool_bytes=100 * MIB, host_reserved_bytes=96 * MIB))
    assert (judged.level, "96 of 100 MiB of host room" in judged.sentence) == ("warn", True)
    assert "--check-config" in judged.next_command
    assert verdict(node(host_pool_bytes=100 * MIB, host_reserved_bytes=95 * MIB)).level == "ok"
    assert verdict(node(host_pool_bytes=0)).level == "ok"  # somebody wanted it so
