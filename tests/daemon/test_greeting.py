"""Which greetings a daemon takes, before it asks who the peer is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_daemon.adapters.greeting import check_hello
from aqua_daemon.adapters.wire import frames
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.model import GpuUuid, HostRoom

HELLO = frames.Hello(
    protocol=frames.PROTOCOL,
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
    check_hello(replace(HELLO, home_gpu=None if home is None else GpuUuid(home)), gpus=STAND_INS)


def test_a_stand_in_that_is_not_there_is_a_slip() -> None:
    """The answer names those that are."""
    with pytest.raises(InvalidRequest, match="which has SHM-0, SHM-1"):
        check_hello(replace(HELLO, home_gpu=GpuUuid("SHM-7")), gpus=STAND_INS)


def test_another_protocol_is_refused_with_both_numbers() -> None:
    """Whoever reads it knows which side to bring up to date."""
    with pytest.raises(InvalidRequest, match=f"protocol 99.* {frames.PROTOCOL}"):
        check_hello(replace(HELLO, protocol=99), gpus=STAND_INS)
