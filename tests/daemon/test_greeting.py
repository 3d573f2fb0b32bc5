"""Which greetings a daemon takes, before it asks who the peer is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from aqua_protos.agreement import SPOKEN, Protocols

from aqua_daemon.adapters.greeting import Roll, check_hello
from aqua_daemon.adapters.statuses import UnknownProtocol
from aqua_daemon.adapters.wire import frames
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.model import GpuUuid, HostRoom, ProcessIdentity, SessionId

HELLO = frames.Hello(
    protocols=SPOKEN,
    home_gpu=None,
    sub_tenant="",
    program="tests",
    version="1",
    session_id=None,
    uses=(),
    host_room=HostRoom(revision=0, nbytes=0),
)
STAND_INS = (GpuUuid("SHM-0"), GpuUuid("SHM-1"))


@pytest.mark.parametrize("home", [None, "SHM-1", "GPU-4757bb48-7913-54ac-b9b5-3d64f5a21a9b"])
def test_a_home_gpu_may_be_one_that_is_kept_or_a_real_one(home: str | None) -> None:
    """A server computes where it computes: also where nothing of that GPU is lent here."""
    hello = replace(HELLO, home_gpu=None if home is None else GpuUuid(home))
    assert check_hello(hello, gpus=STAND_INS) == SPOKEN.newest


def test_a_stand_in_that_is_not_there_is_a_slip() -> None:
    """The answer names those that are."""
    with pytest.raises(InvalidRequest, match="which has SHM-0, SHM-1"):
        check_hello(replace(HELLO, home_gpu=GpuUuid("SHM-7")), gpus=STAND_INS)


def test_another_protocol_is_refused_with_both_numbers() -> None:
    """Whoever reads it knows which side to bring up to date."""
    with pytest.raises(UnknownProtocol, match=f"protocol 99.* {SPOKEN}.* upgrade this daemon"):
        check_hello(replace(HELLO, protocols=Protocols(99, 99)), gpus=STAND_INS)


def test_a_client_of_the_release_before_is_spoken_to_in_its_own() -> None:
    """It names one protocol and knows no ranges."""
    hello = replace(HELLO, protocols=Protocols.said(SPOKEN.oldest, 0))
    assert check_hello(hello, gpus=STAND_INS) == SPOKEN.oldest


def test_the_roll_counts_sessions_by_their_version() -> None:
    """One that is back counts once, one that is over no more; few of very many are shown; observers are no clients."""
    roll, process = Roll(most_sessions=64), ProcessIdentity(pid=1, start_ticks=2, uid=3)
    for number in range(3):
        roll.enter(SessionId(f"{number}"), process, replace(HELLO, version="0.1.0"))
    roll.enter(SessionId("0"), process, replace(HELLO, version="0.2.0"))
    roll.strike(SessionId("1"))
    roll.enter(SessionId("aquactl"), process, replace(HELLO, version="0.3.0", is_observer=True))
    assert roll.versions() == {"0.2.0": 1, "0.1.0": 1}
    for number in range(40):
        roll.enter(SessionId(f"other {number}"), process, replace(HELLO, version=f"v{number}"))
    roll.enter(SessionId("3"), process, replace(HELLO, version="0.2.0"))
    assert len(roll.versions()) == 16
    assert roll.versions()["0.2.0"] == 2
